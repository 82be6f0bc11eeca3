"""The SQLite file: what stands in it, keys that another process makes while the edge runs, and files of no use."""

from __future__ import annotations

import asyncio
import sqlite3
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from edge.plans import built_in
from edge.store.errors import StoreError
from edge.store.sqlite import keys
from edge.store.sqlite.database import open_for_admin
from edge.store.sqlite.store import SQLiteStore
from edge.tokens import Tokens
from shared.contract.errors import ApiError
from shared.state import StateDir
from tests.waiting import Stopwatch

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "edge.db"


@pytest.fixture
def admin(database: Path) -> Iterator[sqlite3.Connection]:
    connection = open_for_admin(database)
    yield connection
    connection.close()


@pytest.fixture
async def store(database: Path) -> AsyncIterator[SQLiteStore]:
    opened = SQLiteStore(StateDir(database.parent), requests_per_minute_per_ip=100)
    await opened.open()
    yield opened
    await opened.close()


def test_the_secret_is_nowhere_on_disk(database: Path, admin: sqlite3.Connection) -> None:
    _, text = keys.create(admin, "ci", "member", ["chat"])
    files = list(database.parent.iterdir())
    assert files and all(text[17:].encode() not in file.read_bytes() for file in files)


async def test_the_files_are_for_their_owner_only(store: SQLiteStore, database: Path) -> None:
    files = list(database.parent.iterdir())
    assert {file.name for file in files} == {"edge.db", "edge.db-wal", "edge.db-shm", "edge.db.lock", "signing-keys"}
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


# The command line beside a running edge: another process, the same file.


def other_process(database: Path, code: str) -> subprocess.Popen[str]:
    prelude = (
        "from pathlib import Path; from edge.store.sqlite import database, keys; "
        f"c = database.open_for_admin(Path({str(database)!r})); "
    )
    return subprocess.Popen([sys.executable, "-c", prelude + code], cwd=ROOT, text=True, stdout=subprocess.PIPE)


async def run_other(database: Path, code: str) -> str:
    process = other_process(database, code)
    out, _ = await asyncio.to_thread(process.communicate, timeout=30)
    assert process.returncode == 0
    return out.strip()


def opens(store: SQLiteStore, text: str) -> bool:
    try:
        return bool(store.lookup(text))
    except ApiError:
        return False


async def seen_within_a_second(condition: object) -> bool:
    watch = Stopwatch()
    while watch.seconds < 1.0:
        if condition():  # type: ignore[operator]
            return True
        await asyncio.sleep(0.01)
    return False


async def test_keys_of_another_process_are_seen_within_a_second(store: SQLiteStore, database: Path) -> None:
    text = await run_other(database, "print(keys.create(c, 'ci', 'member', ['chat'])[1])")
    assert await seen_within_a_second(lambda: opens(store, text))
    holder = store.lookup(text)
    tokens = Tokens(["s" * 43], 600)
    minted = tokens.verify(tokens.mint(holder)[0])
    assert store.refusal("127.0.0.1", minted, built_in()["member"]) is None

    await run_other(database, "keys.revoke(c, 'ci')")
    assert await seen_within_a_second(lambda: not opens(store, text))
    assert store.revoked(holder) and store.revoked(minted)
    early = store.refusal("127.0.0.1", minted, built_in()["member"])
    assert early is not None and early.code == "token_revoked"


async def test_processes_that_make_the_file_at_once_agree(database: Path) -> None:
    racing = [other_process(database, f"keys.create(c, 'key-{n}', 'member', ['chat'])") for n in range(6)]
    for process in racing:
        await asyncio.to_thread(process.communicate, timeout=30)
    assert [process.returncode for process in racing] == [0] * 6
    admin = open_for_admin(database)
    assert {info.name for info in keys.list_keys(admin)} == {f"key-{n}" for n in range(6)}
    admin.close()


async def test_opening_the_file_twice_in_a_process_keeps_its_locks(store: SQLiteStore, database: Path) -> None:
    open_for_admin(database).close()
    await run_other(database, "keys.create(c, 'ci', 'member', ['chat']); c.close()")
    assert database.with_name("edge.db-wal").exists(), "the other process left it to the store, which has it open"


# Files that cannot be used


def test_a_file_of_a_newer_version_is_left_alone(database: Path, admin: sqlite3.Connection) -> None:
    admin.execute("PRAGMA user_version = 99")
    with pytest.raises(StoreError, match="newer Hearthlink"):
        open_for_admin(database)


def test_a_file_that_is_no_database_says_so(database: Path) -> None:
    database.write_bytes(b"this is a text file, not a database at all\n" * 100)
    with pytest.raises(StoreError, match="cannot be used"):
        open_for_admin(database)


def test_a_folder_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be opened"):
        open_for_admin(tmp_path / "missing" / "edge.db")
