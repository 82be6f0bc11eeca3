"""API keys: shown once, kept as a hash, made and revoked by another process while the edge runs."""

from __future__ import annotations

import asyncio
import re
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge.plans import built_in
from edge.principals import Principal
from edge.store import keys
from edge.store.database import AdminError, NoSuchError, StoreError, open_for_admin
from edge.store.keys import KeyRing
from edge.store.sqlite import SQLiteStore
from edge.tokens import Tokens
from shared.contract.errors import ApiError

NOW = 1_800_000_000
ROOT = Path(__file__).resolve().parent.parent


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
    opened = SQLiteStore(database, requests_per_minute_per_ip=100)
    await opened.open()
    yield opened
    await opened.close()


def ring(connection: sqlite3.Connection, at: float = NOW) -> KeyRing:
    loaded = KeyRing(now=lambda: at)
    loaded.load(connection)
    return loaded


def refusal(ring: KeyRing, text: str) -> ApiError:
    with pytest.raises(ApiError) as caught:
        ring.lookup(text)
    assert (caught.value.code, caught.value.status) == ("invalid_token", 401)
    return caught.value


def test_a_key_opens_as_what_it_was_made_for(admin: sqlite3.Connection) -> None:
    text = keys.create(admin, "ci", "member", ["chat", "admin"], NOW + 60, now=lambda: NOW)
    assert re.fullmatch(r"hlk_[0-9a-f]{12}_[A-Za-z0-9_-]{43}", text)
    found = ring(admin).lookup(text)
    assert found == Principal(f"key_{text[4:16]}", "key", "member", ("chat", "admin"), expires_at=NOW + 60)
    assert "has expired" in refusal(ring(admin, NOW + 60), text).message


def test_revoking_closes_the_key_and_what_was_made_with_it(admin: sqlite3.Connection) -> None:
    text = keys.create(admin, "ci", "member", ["chat"])
    holder = ring(admin).lookup(text)
    keys.revoke(admin, "ci")
    assert "revoked" in refusal(ring(admin), text).message
    assert ring(admin).revoked(holder.id)
    assert not ring(admin).revoked("key_ffffffffffff")


@pytest.mark.parametrize("shown", ["name", "id", "principal", "text"])
def test_a_key_is_revoked_by_any_of_its_names(admin: sqlite3.Connection, shown: str) -> None:
    text = keys.create(admin, "ci", "member", ["chat"])
    kept = keys.create(admin, "other", "member", ["chat"])
    which = {"name": "ci", "id": text[4:16], "principal": f"key_{text[4:16]}", "text": text}[shown]
    assert keys.revoke(admin, which).name == "ci"
    refusal(ring(admin), text)
    ring(admin).lookup(kept)
    with pytest.raises(NoSuchError, match="No living key") as caught:
        keys.revoke(admin, which)
    assert text[17:] not in str(caught.value)


def test_the_list_shows_everything_but_the_secret(admin: sqlite3.Connection) -> None:
    first = keys.create(admin, "first", "owner", ["chat", "admin"], now=lambda: NOW)
    keys.create(admin, "second", "member", ["chat"], NOW + 99, now=lambda: NOW + 1)
    keys.revoke(admin, "second", now=lambda: NOW + 2)
    one, two = keys.list_keys(admin)
    assert one == keys.KeyInfo(first[4:16], "first", "owner", ("chat", "admin"), NOW)
    assert (two.name, two.expires_at, two.revoked_at) == ("second", NOW + 99, NOW + 2)


def test_a_name_is_free_again_once_its_key_is_revoked(admin: sqlite3.Connection) -> None:
    old = keys.create(admin, "ci", "member", ["chat"])
    with pytest.raises(AdminError, match="already"):
        keys.create(admin, "ci", "member", ["chat"])
    keys.revoke(admin, "ci")
    new = keys.create(admin, "ci", "member", ["chat"])
    refusal(ring(admin), old)
    ring(admin).lookup(new)


@pytest.mark.parametrize(
    "name", ["", "a b", "a\n", "-x", "x" * 65, "0123456789ab", "key_0123456789ab", "ключ", "a'; DROP"]
)
def test_bad_names_are_refused(admin: sqlite3.Connection, name: str) -> None:
    with pytest.raises(AdminError, match="not a name"):
        keys.create(admin, name, "member", ["chat"])


def test_bad_plans_scopes_and_ends_are_refused(admin: sqlite3.Connection) -> None:
    for plan, scopes, expires in (("a b", ["chat"], None), ("member", ["chat admin"], None), ("member", [""], None)):
        with pytest.raises(AdminError, match="one word"):
            keys.create(admin, "ci", plan, scopes, expires)
    with pytest.raises(AdminError, match="expired at once"):
        keys.create(admin, "ci", "member", ["chat"], NOW, now=lambda: NOW)
    assert keys.list_keys(admin) == []


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(data=st.data())
def test_no_other_text_is_a_key(admin: sqlite3.Connection, data: st.DataObject) -> None:
    name = "ci"
    for info in keys.list_keys(admin):
        if info.revoked_at is None:
            keys.revoke(admin, info.id)
    text = keys.create(admin, name, "member", ["chat"])
    place = data.draw(st.integers(0, len(text)))
    letter = data.draw(st.sampled_from("Aa0_-=\n \0") | st.characters())
    kept = data.draw(st.integers(0, 2))
    changed = text[:place] + letter + text[place + kept :]
    if changed != text:
        refusal(ring(admin), changed)
    for other in (text[: min(place, len(text) - 1)], text + "\n", text.upper(), data.draw(st.text(max_size=80))):
        refusal(ring(admin), other)


def test_the_secret_is_nowhere_on_disk_and_in_no_refusal(database: Path, admin: sqlite3.Connection) -> None:
    text = keys.create(admin, "ci", "member", ["chat"])
    secret = text[17:]
    assert all(secret.encode() not in file.read_bytes() for file in database.parent.iterdir())
    error = refusal(ring(admin), text[:-1])
    assert secret[:10] not in error.message


async def test_the_files_are_for_their_owner_only(store: SQLiteStore, database: Path) -> None:
    files = list(database.parent.iterdir())
    assert {file.name for file in files} == {"edge.db", "edge.db-wal", "edge.db-shm", "edge.db.lock"}
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


# The command line beside a running edge: another process, the same file.


def other_process(database: Path, code: str) -> subprocess.Popen[str]:
    prelude = (
        "from pathlib import Path; from edge.store import database, keys; "
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
    deadline = time.monotonic() + 1.0
    while time.monotonic() < deadline:
        if condition():  # type: ignore[operator]
            return True
        await asyncio.sleep(0.01)
    return False


async def test_keys_of_another_process_are_seen_within_a_second(store: SQLiteStore, database: Path) -> None:
    text = await run_other(database, "print(keys.create(c, 'ci', 'member', ['chat']))")
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
