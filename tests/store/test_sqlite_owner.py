"""The SQLite store and its owner: files of an earlier version, and what is done beside an edge or without one."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from loguru import logger

from edge.plans import Plan
from edge.store.errors import StoreError
from edge.store.ledger import Cost
from edge.store.records import Maintenance
from edge.store.sqlite.admin import SQLiteAdmin
from edge.store.sqlite.database import open_for_admin
from edge.store.sqlite.store import POLL_SECONDS, SQLiteStore
from shared.contract.usage import Usage
from shared.signing_keys import SigningKeys
from shared.state import StateDir, StateError
from tests.store.callers import IP, caller
from tests.store.files import opened, rows
from tests.waiting import wait_until

ANY = caller()
PLAN = Plan("test", streams=4, tokens_per_day=1000)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SQLiteStore]:
    opened_store = await opened(tmp_path / "edge.db")
    yield opened_store
    await opened_store.close()


# What the third version added, taken away.
SECOND_VERSION = """
DROP TABLE limits; DROP TABLE revoked_principals; DROP TABLE resets; DROP TABLE token_uses; DROP TABLE seats;
DROP TABLE plan_usage; DROP TABLE plan_reservations;
INSERT INTO usage VALUES ('caller', 20000, 40); INSERT INTO reservations VALUES ('running', 'caller', 20000, 60);
PRAGMA user_version = 2
"""


async def test_a_database_of_the_second_version_is_brought_up_to_date(tmp_path: Path) -> None:
    database = tmp_path / "edge.db"
    connection = open_for_admin(database)
    connection.executescript(SECOND_VERSION)
    connection.close()
    store = await opened(database, now=lambda: 20_000 * 86_400 + 1.0)
    assert (await store.usage_today(ANY, PLAN))["tokens"]["used"] == 100
    plan = Plan("test", seats=1, tokens_per_day_together=10)
    await store.admit(IP, ANY, plan, Cost(10), "new")
    await store.settle("new", Usage(10, 0))
    await store.close()
    assert rows(database, "SELECT plan, tokens FROM plan_usage") == [("test", 10)]
    assert rows(database, "SELECT plan, principal FROM seats") == [("test", "caller")]


async def test_usage_is_reset_while_no_edge_runs(tmp_path: Path) -> None:
    store = await opened(tmp_path / "edge.db")
    await store.admit(IP, ANY, PLAN, Cost(100), "settled")
    await store.settle("settled", Usage(100, 0))
    await store.admit(IP, ANY, PLAN, Cost(70), "running")
    await store.close()
    admin = SQLiteAdmin(StateDir(tmp_path))
    await admin.reset_usage(ANY.id)
    await admin.close()
    store = await opened(tmp_path / "edge.db")
    tokens = (await store.usage_today(ANY, PLAN))["tokens"]
    assert (tokens["used"], tokens["reserved"]) == (70, 0), "what ran when the edge ended was not used before"
    assert rows(tmp_path / "edge.db", "SELECT * FROM resets") == []
    await store.close()


async def test_signing_keys_that_cannot_be_read_leave_the_old_ones(store: SQLiteStore, tmp_path: Path) -> None:
    before, said = store.records.signing_keys, list[str]()
    sink = logger.add(said.append, format="{message}", filter="edge.store.sqlite.store")
    try:
        (tmp_path / "signing-keys").write_text("{}")
        await wait_until(lambda: said)
        await asyncio.sleep(3 * POLL_SECONDS)
    finally:
        logger.remove(sink)
    assert len(said) == 1 and "signing-keys" in said[0] and before.current not in said[0]
    assert store.records.signing_keys is before


async def test_signing_keys_that_could_not_be_read_once_are_read_again(
    store: SQLiteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, failures = StateDir(tmp_path), list[str]()
    rotated = state.rotate_signing_keys(10**9, 3600)

    def fails(*args: object, **options: object) -> SigningKeys:
        failures.append("once")
        raise StateError("too many files are open")

    with monkeypatch.context() as patch:
        patch.setattr(StateDir, "signing_keys", fails)
        await wait_until(lambda: failures)
        assert store.records.signing_keys != rotated
    await wait_until(lambda: store.records.signing_keys == rotated)


async def test_a_legacy_list_of_keys_under_a_lock_does_not_hold_the_loop(store: SQLiteStore, tmp_path: Path) -> None:
    """It is read once the other process is done."""
    state, legacy = StateDir(tmp_path), "k" * 43
    with state._locked():
        (tmp_path / "signing-keys").write_text(f'["{legacy}"]')
        loop = asyncio.get_running_loop()
        until, longest, before = loop.time() + 4 * POLL_SECONDS, 0.0, loop.time()
        while before < until:
            await asyncio.sleep(0.01)
            longest, before = max(longest, loop.time() - before), loop.time()
        assert longest < 1.0
    await wait_until(lambda: store.records.signing_keys.current == legacy)


async def test_usage_that_cannot_be_written_keeps_no_decision_of_the_owner(
    store: SQLiteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full() -> None:
        raise sqlite3.OperationalError("database or disk is full")

    admin = SQLiteAdmin(StateDir(tmp_path))
    await admin.open()
    info, _ = await admin.create_key("ci", "member", ["chat"])
    with monkeypatch.context() as patch:
        patch.setattr(store._journal, "commit", full)
        await store.admit(IP, ANY, PLAN, Cost(100), "chat")
        await store.settle("chat", Usage(100, 0))
        await admin.revoke_key("ci")
        await admin.set_maintenance(Maintenance.begun("back soon", 1.0, ends_answers=True))
        await admin.reset_usage(ANY.id)
        await wait_until(lambda: store.records.maintenance)
        assert store.records.keys.revoked(f"key_{info.id}")
        await wait_until(lambda: store.problem)
        assert (await store.usage_today(ANY, PLAN))["tokens"]["used"] == 100
    await wait_until(lambda: not store.problem)
    await wait_until(lambda: rows(tmp_path / "edge.db", "SELECT * FROM resets") == [])
    assert (await store.usage_today(ANY, PLAN))["tokens"]["used"] == 0
    await admin.close()


async def test_an_owner_who_cannot_write_is_told(
    store: SQLiteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.store.sqlite.database._ADMIN_BUSY_SECONDS", 0.05)
    admin = SQLiteAdmin(StateDir(tmp_path))
    await admin.open()
    with contextlib.closing(sqlite3.connect(tmp_path / "edge.db", isolation_level=None)) as blocker:
        blocker.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="cannot be used"):
            await admin.create_key("ci", "member", ["chat"])
        blocker.execute("ROLLBACK")
    await admin.create_key("ci", "member", ["chat"])
    await admin.close()


async def test_what_the_owner_does_stops_no_answer(store: SQLiteStore, tmp_path: Path) -> None:
    """While another process holds the file, the owner waits on a thread and the loop goes on."""
    admin = SQLiteAdmin(StateDir(tmp_path))
    await admin.open()
    with contextlib.closing(sqlite3.connect(tmp_path / "edge.db", isolation_level=None)) as blocker:
        blocker.execute("BEGIN IMMEDIATE")
        making = asyncio.create_task(admin.create_key("ci", "member", ["chat"]))
        for number in range(20):
            await store.admit(IP, ANY, PLAN, Cost(1), str(number))
            await store.settle(str(number), Usage(1, 0))
            await asyncio.sleep(0.005)
        assert not making.done()
        blocker.execute("ROLLBACK")
    assert (await making)[0].name == "ci"
    await admin.close()
