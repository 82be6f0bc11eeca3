"""Invites in the SQLite file: who is let in and how often, whatever else writes to it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edge.principals import Principal, invite_of, invited_id
from edge.store.sqlite import invites, keys
from edge.store.sqlite.database import connect, open_for_admin
from edge.store.sqlite.invites import Invites
from shared.contract.errors import ApiError
from tests import command_line
from tests.logged import logged
from tests.waiting import wait_until

NOW = 1_800_000_000
DAY = 86_400
SECRET = b"s" * 32
ORIGIN = "http://app.test"
ELSEWHERE = "http://other.test"
# What the versions after the first one added, taken away.
FIRST_VERSION = """
DROP TABLE invites; DROP TABLE invite_uses;
DROP TABLE limits; DROP TABLE revoked_principals; DROP TABLE resets; DROP TABLE token_uses; DROP TABLE seats;
DROP TABLE plan_usage; DROP TABLE plan_reservations;
PRAGMA user_version = 1
"""


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "edge.db"


@pytest.fixture
def admin(database: Path) -> Iterator[Any]:
    connection = open_for_admin(database)
    yield connection
    connection.close()


@pytest.fixture
def said() -> Iterator[list[str]]:
    with logged("TRACE", of="edge.store.sqlite.invites") as lines:
        yield lines


def make(connection: Any, uses: int = 1, *, lifetime: int = DAY, name: str | None = None) -> str:
    return invites.create(connection, "member", uses, NOW + lifetime, name, now=lambda: NOW)[1]


def enters(connection: Any, text: str, caller: str = "ann", at: float = NOW) -> bool:
    return invites.spend(connection, text, lambda invite: f"{invite}-{caller}", at) is not None


def used(connection: Any) -> list[int]:
    return [info.used for info in invites.list_invites(connection)]


def test_each_use_lets_one_caller_in(admin: Any) -> None:
    text = make(admin, 2)
    assert enters(admin, text, "ann") and enters(admin, text, "bob")
    assert not enters(admin, text, "cem")
    assert enters(admin, text, "ann"), "who was let in spends nothing more"
    assert used(admin) == [2]


def test_an_invite_ends(admin: Any) -> None:
    text = make(admin, 5, lifetime=60)
    assert enters(admin, text, at=NOW + 58)
    assert not enters(admin, text, at=NOW + 60), "nor the one who was in"
    kept = make(admin, 5, name="kept")
    invites.revoke(admin, text)
    assert not enters(admin, text) and enters(admin, kept)


def test_no_other_text_is_an_invite(admin: Any) -> None:
    text = make(admin, 100)
    other = make(admin, 100)
    for wrong in (
        *("", "hli_", text[:-1], text + "A", text + "\n", " " + text, text.upper(), text[4:], "hlk_" + text[4:]),
        text[:-1] + ("A" if text[-1] != "A" else "B"),
        other[:17] + text[17:],
    ):
        assert not enters(admin, wrong)
    assert used(admin) == [0, 0]


def test_processes_that_spend_at_once_never_overspend(database: Path, admin: Any) -> None:
    text = make(admin, 7)
    code = (
        "import sys; from pathlib import Path; from edge.store.sqlite import database, invites\n"
        f"connection = database.open_for_admin(Path({str(database)!r}))\n"
        "sys.stdin.readline()\n"
        f"found = [invites.spend(connection, {text!r}, lambda i: sys.argv[1] + str(n % 9), {NOW}) for n in range(18)]\n"
        "print(len({who[1] for who in found if who}))"
    )
    racing = [
        subprocess.Popen(
            [sys.executable, "-c", code, name],
            cwd=command_line.ROOT,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for name in ("a", "b", "c")
    ]
    try:
        for process in racing:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        entered = [int(process.communicate(timeout=30)[0]) for process in racing]
    finally:
        for process in racing:
            process.kill()
    assert sum(entered) == 7 and used(admin) == [7]


def test_what_ended_is_swept(admin: Any) -> None:
    short, long = make(admin, 5, lifetime=60), make(admin, 5, lifetime=3 * DAY)
    assert enters(admin, short) and enters(admin, long)

    def left(at: float) -> tuple[int, int]:
        Invites(admin, SECRET, now=lambda: at).forget(35)
        return tuple(
            admin.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in ("invites", "invite_uses")
        )  # type: ignore[return-value]

    assert left(NOW + 59) == (2, 2)
    assert left(NOW + 60) == (2, 1), "the list still shows it"
    assert left(NOW + 60 + 35 * DAY) == (1, 0)


async def test_a_use_waits_for_another_process_and_not_for_ever(
    database: Path, admin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = make(admin)
    connection = connect(database, busy_seconds=0)
    book = Invites(connection, SECRET, now=lambda: NOW)
    try:
        admin.execute("BEGIN IMMEDIATE")
        waiting = asyncio.create_task(book.enter(text, "192.0.2.1", None))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        admin.execute("COMMIT")
        assert (await waiting).plan == "member"

        monkeypatch.setattr(invites, "_WRITE_SECONDS", 0.2)
        admin.execute("BEGIN IMMEDIATE")
        with pytest.raises(ApiError) as caught:
            await book.enter(make_elsewhere(admin), "192.0.2.1", None)
        assert (caught.value.code, caught.value.status) == ("overloaded", 503)
    finally:
        admin.execute("COMMIT")
        connection.close()


async def test_guests_who_wait_for_a_write_try_one_at_a_time(
    database: Path, admin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each try stops the loop for the busy timeout: thirty in a row would stop every answer for as long together."""
    monkeypatch.setattr(invites, "_WRITE_SECONDS", 30.0)
    text = make(admin, 30)
    connection = connect(database, busy_seconds=0.01)
    said: list[str] = []
    connection.set_trace_callback(said.append)
    book = Invites(connection, SECRET, now=lambda: NOW)
    admin.execute("BEGIN IMMEDIATE")
    waiting = [asyncio.create_task(book.enter(text, f"192.0.2.{n}", None)) for n in range(30)]
    try:
        await wait_until(lambda: said.count("BEGIN IMMEDIATE") >= 2, 10)
        assert said.count("BEGIN IMMEDIATE") == 2, "that of the first, and its second"
        with pytest.raises(ApiError, match="not valid"):
            async with asyncio.timeout(0):
                await book.enter(text[:-1], "192.0.2.99", None)  # what needs no write does not wait
        admin.execute("COMMIT")
        assert len({principal.id for principal in await asyncio.gather(*waiting)}) == 30
        assert used(admin) == [30]
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        connection.close()


def read_only(connection: Any) -> None:
    connection.execute("PRAGMA query_only = ON")


def full(connection: Any) -> None:
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count = {pages}")


@pytest.mark.parametrize(("fault", "code"), [(read_only, "SQLITE_READONLY"), (full, "SQLITE_FULL")])
async def test_a_use_that_cannot_be_written_lets_nobody_in(
    database: Path, admin: Any, said: list[str], fault: Callable[[Any], None], code: str
) -> None:
    text = make(admin, 1000)
    connection = connect(database, busy_seconds=0.01)
    book = Invites(connection, SECRET, now=lambda: NOW)
    try:
        fault(connection)
        entered = 0
        with pytest.raises(ApiError) as caught:
            for entered in range(1000):  # a page of the file takes some dozens
                await book.enter(text, f"192.0.{entered // 250}.{entered % 250}", None)
        assert (caught.value.code, caught.value.status) == ("overloaded", 503)
        assert caught.value.__cause__ is None and caught.value.__suppress_context__
        assert used(admin) == [entered] and not connection.in_transaction
        assert len(said) == 1 and code in said[0] and text not in said[0]
    finally:
        connection.close()


def make_elsewhere(connection: Any) -> str:
    """An invite that is visible to others while ``connection`` goes on writing."""
    connection.execute("COMMIT")
    text = make(connection)
    connection.execute("BEGIN IMMEDIATE")
    return text


def test_a_database_of_the_first_version_is_brought_up_to_date(database: Path) -> None:
    connection = open_for_admin(database)
    _, key = keys.create(connection, "ci", "member", ["chat"])
    connection.executescript(FIRST_VERSION)
    connection.close()
    connection = open_for_admin(database)
    try:
        assert [info.id for info in keys.list_keys(connection)] == [key[4:16]]
        assert enters(connection, make(connection))
    finally:
        connection.close()


def test_who_counts_as_one_caller() -> None:
    def caller(invite: str = "a" * 12, ip: str = "192.0.2.1", origin: str | None = ORIGIN) -> str:
        return invited_id(SECRET, invite, ip, origin)

    assert caller() == caller(ip="::ffff:192.0.2.1")
    assert caller(ip="2001:db8:1:2::7") == caller(ip="2001:db8:1:2:aaaa::9")
    assert len({caller(), caller("b" * 12), caller(ip="192.0.2.2"), caller(origin=ELSEWHERE), caller(origin=None)}) == 5
    assert invite_of(Principal(caller(), "invite", "member", ())) == "a" * 12
    assert invite_of(Principal(caller(), "token", "member", ())) is None
