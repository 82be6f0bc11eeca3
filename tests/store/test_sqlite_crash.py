"""The SQLite store when its process dies, when another one is in its way, and when it runs for long."""

from __future__ import annotations

import asyncio
import os
import random
import select
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from edge.plans import Plan
from edge.principals import Principal, day_of
from edge.store.errors import StoreError
from edge.store.ledger import Cost
from edge.store.sqlite.store import COMMIT_SECONDS, SQLiteStore
from edge.store.sqlite.write_ahead_log import WriteAheadLog
from shared.contract.errors import ApiError
from shared.contract.usage import Usage
from tests.store.files import opened, rows
from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
ANY = Principal("caller", "anonymous", "test", ("chat",), jti="j" * 22, expires_at=4_000_000_000)
PLAN = Plan("test", requests_per_minute=None, streams=4, tokens_per_day=1000)
IP = "203.0.113.7"

# What a crash may forget, design §6.
FORGOTTEN_SECONDS = 0.1
# A process that was not given the processor neither settled nor committed: a longer gap between two ticks of the
# victim counts as this much of its time.
LONGEST_TICK = 0.02

# Admits and settles chats, each for a principal of its own, and says what it did once it has done it. Estimates are
# thousands, usages are below a thousand, so that a sum tells what it was made of.
VICTIM = """
import asyncio, os, random, sys, time
from pathlib import Path
from edge.plans import Plan
from edge.principals import Principal
from edge.store.ledger import Cost
from edge.store.sqlite.store import SQLiteStore
from shared.contract.usage import Usage
from shared.state import StateDir

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

async def main(path, run):
    store = SQLiteStore(StateDir(Path(path)), requests_per_minute_per_ip=None)
    say("opening", 0, time.monotonic())
    await store.open()
    plan, running, number = Plan("test", tokens_per_day=10**9, tokens_per_day_together=10**9), [], 0
    while True:
        say("tick", 0, time.monotonic())
        for _ in range(3):
            number += 1
            chat = f"{run}-{number}"
            principal = Principal(chat, "anonymous", "test", ("chat",))
            await store.admit("127.0.0.1", principal, plan, Cost(1000 + number), chat)
            say("admitted", chat, 1000 + number)
            if number % 9:  # the others run on
                running.append((chat, number))
        random.shuffle(running)
        while len(running) > 20:
            chat, number_ = running.pop()
            used = number_ % 900
            await store.settle(chat, Usage(used, 0) if number_ % 3 else None)
            say("settled", chat, used if number_ % 3 else 0)
        await asyncio.sleep(0.004)

asyncio.run(main(sys.argv[1], sys.argv[2]))
"""


@dataclass
class Told:
    """What a victim said before it died. Times are its own running time in seconds."""

    lived: float = 0.0
    admitted: dict[str, tuple[float, int]] = field(default_factory=dict)
    settled: dict[str, tuple[float, int]] = field(default_factory=dict)

    def read(self, lines: list[str]) -> Told:
        last: float | None = None
        for line in lines:
            what, chat, value = line.split()
            if what in ("opening", "tick"):
                self.lived += min(float(value) - last, LONGEST_TICK) if last is not None else 0.0
                last = float(value)
            else:
                getattr(self, what)[chat] = (self.lived, int(value))
        return self


def kill_a_victim(database: Path, run: int, after: float) -> Told:
    """Start a victim, kill -9 it ``after`` seconds from its first word, and read what it said."""
    victim = subprocess.Popen(
        [sys.executable, "-c", VICTIM, str(database.parent), f"run{run}"], cwd=ROOT, stdout=subprocess.PIPE, bufsize=0
    )
    assert victim.stdout is not None
    said = bytearray()
    try:
        said += victim.stdout.readline()
        deadline = time.monotonic() + after
        while (left := deadline - time.monotonic()) > 0:
            said += _read_for(victim.stdout.fileno(), left)
    finally:
        victim.send_signal(signal.SIGKILL)
        said += victim.stdout.read()
        victim.stdout.close()
        assert victim.wait(10) == -signal.SIGKILL
    # The last line may be cut.
    return Told().read(said.decode().split("\n")[:-1])


def _read_for(descriptor: int, seconds: float) -> bytes:
    ready, _, _ = select.select([descriptor], [], [], seconds)
    return os.read(descriptor, 65536) if ready else b""


@pytest.mark.case("E62")
async def test_kill_9_forgets_100_ms_at_most_and_counts_nothing_twice(tmp_path: Path) -> None:
    database = tmp_path / "edge.db"
    moments = [0.0, 0.02, *(random.uniform(0.1, 0.8) for _ in range(6))]
    told = [await asyncio.to_thread(kill_a_victim, database, run, after) for run, after in enumerate(moments)]
    await (await opened(database)).close()  # settles what the last one left
    counted = dict(rows(database, "SELECT principal, SUM(tokens) FROM usage GROUP BY principal"))
    assert rows(database, "SELECT SUM(tokens) FROM plan_usage") == [(sum(counted.values()),)]
    assert rows(database, "SELECT count(*) FROM reservations") == [(0,)]

    kept_settlements = kept_reservations = 0
    for run in told:
        for chat, (admitted_at, estimate) in run.admitted.items():
            settled_at, usage = run.settled.get(chat, (None, None))
            found = counted.pop(chat, 0)
            if settled_at is not None and run.lived - settled_at >= FORGOTTEN_SECONDS:
                assert found == usage, "a settlement was forgotten, or counted beside its estimate"
                kept_settlements += 1
            elif settled_at is None and run.lived - admitted_at >= FORGOTTEN_SECONDS:
                assert found == estimate, "an open reservation was not settled once at its estimate"
                kept_reservations += 1
            else:
                assert found in {0, estimate, usage}
    assert counted == {}
    assert kept_settlements > 20 and kept_reservations > 20


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SQLiteStore]:
    opened_store = await opened(tmp_path / "edge.db")
    yield opened_store
    await opened_store.close()


async def test_a_clean_end_loses_nothing(tmp_path: Path) -> None:
    database = tmp_path / "edge.db"
    first = await opened(database)
    await first.admit(IP, ANY, PLAN, Cost(100), "settled")
    await first.settle("settled", Usage(3, 4))
    await first.admit(IP, ANY, PLAN, Cost(200), "running")
    await first.revoke(ANY)
    key = first.pseudonym_key
    await first.close()
    await first.close()
    second = await opened(database)
    tokens = (await second.usage_today(ANY, PLAN))["tokens"]
    assert (tokens["used"], tokens["reserved"]) == (207, 0)
    assert second.revoked(ANY)
    assert second.pseudonym_key == key and len(key) == 32
    assert await second.settle("running", Usage(1, 1)) is False
    await second.close()


async def test_two_edges_cannot_share_the_file(store: SQLiteStore, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="Another edge"):
        await opened(tmp_path / "edge.db")


async def test_a_commit_comes_by_itself(store: SQLiteStore, tmp_path: Path) -> None:
    await store.admit(IP, ANY, PLAN, Cost(100), "running")
    deadline = time.monotonic() + 5
    while rows(tmp_path / "edge.db", "SELECT tokens FROM reservations") != [(100,)]:
        assert time.monotonic() < deadline
        await asyncio.sleep(COMMIT_SECONDS)
    await store.settle("running", Usage(3, 4))
    while rows(tmp_path / "edge.db", "SELECT tokens FROM usage") != [(7,)]:
        assert time.monotonic() < deadline
        await asyncio.sleep(COMMIT_SECONDS)
    assert rows(tmp_path / "edge.db", "SELECT count(*) FROM reservations") == [(0,)]


async def test_a_file_that_cannot_be_written_is_reported_and_nothing_is_lost(
    store: SQLiteStore, tmp_path: Path
) -> None:
    blocker = sqlite3.connect(tmp_path / "edge.db", isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    for number in range(30):
        await store.admit(IP, ANY, PLAN, Cost(100), str(number))
        await store.settle(str(number), Usage(1, 1))
    deadline = time.monotonic() + 10
    while store.problem is None:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)
    assert "cannot be kept" in store.problem
    blocker.execute("ROLLBACK")
    blocker.close()
    while store.problem is not None:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)
    assert rows(tmp_path / "edge.db", "SELECT tokens FROM usage") == [(60,)]


async def test_a_chat_nobody_settles_is_settled_at_its_estimate(tmp_path: Path) -> None:
    elapsed = [100.0]
    store = await opened(tmp_path / "edge.db", abandoned_after=60.0, monotonic=lambda: elapsed[0])
    await store.admit(IP, ANY, PLAN, Cost(100), "lost")
    elapsed[0] += 30
    await store.admit(IP, ANY, PLAN, Cost(10), "alive")
    elapsed[0] += 31
    deadline = time.monotonic() + 5
    while (await store.usage_today(ANY, PLAN))["streams"]["running"] != 1:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)
    assert await store.settle("lost", Usage(1, 1)) is False
    assert await store.settle("alive", Usage(1, 1)) is True
    assert (await store.usage_today(ANY, PLAN))["tokens"]["used"] == 102
    await store.close()


async def test_how_long_a_chat_may_run_can_change(tmp_path: Path) -> None:
    elapsed = [100.0]
    store = await opened(tmp_path / "edge.db", abandoned_after=60.0, monotonic=lambda: elapsed[0])
    await store.admit(IP, ANY, PLAN, Cost(100), "before")
    store.abandoned_after = 600.0
    await store.admit(IP, ANY, PLAN, Cost(10), "after")
    elapsed[0] += 61
    await wait_until(lambda: store.refusal(IP, ANY, replace(PLAN, streams=2)) is None)
    assert await store.settle("before", Usage(1, 1)) is False
    assert await store.settle("after", Usage(1, 1)) is True
    await store.close()


async def test_old_days_and_old_revocations_are_forgotten(tmp_path: Path) -> None:
    database, clock = tmp_path / "edge.db", [1_800_000_000.0]
    token = Principal("caller", "token", "test", ("chat",), jti="k" * 22, expires_at=1_800_000_600)
    store = await opened(database, now=lambda: clock[0])
    await store.admit(IP, ANY, PLAN, Cost(100), "old")
    await store.settle("old", Usage(1, 1))
    await store.revoke(token)
    await store.close()
    assert rows(database, "SELECT day FROM usage") == [(day_of(clock[0]),)]
    clock[0] += 40 * 86_400
    store = await opened(database, now=lambda: clock[0])
    assert not store.revoked(token)
    await store.close()
    assert rows(database, "SELECT * FROM usage") == rows(database, "SELECT * FROM revocations") == []


@pytest.mark.case("E66")
@pytest.mark.parametrize("jump", [3600, -3600])
async def test_a_clock_that_jumps_touches_no_rate_and_abandons_no_chat(tmp_path: Path, jump: int) -> None:
    unix = [1_800_000_000.0]
    store = await opened(tmp_path / "edge.db", abandoned_after=60.0, now=lambda: unix[0], monotonic=lambda: 100.0)
    plan = Plan("test", requests_per_minute=2)
    await store.admit(IP, ANY, plan, Cost(1), "running")
    await store.charge_request(IP, ANY, plan)
    unix[0] += jump
    with pytest.raises(ApiError) as caught:
        await store.charge_request(IP, ANY, plan)
    assert caught.value.retry_after == pytest.approx(30)
    for step in store._upkeep:
        step()
    assert await store.settle("running", None) is True
    await store.close()


async def test_the_write_ahead_log_is_moved_into_the_file(tmp_path: Path) -> None:
    database = tmp_path / "edge.db"
    store = await opened(database)
    writer = sqlite3.connect(database, isolation_level=None)
    log = WriteAheadLog(database, writer)
    sizes = []
    for _ in range(3):
        writer.execute("CREATE TABLE IF NOT EXISTS padding (text)")
        writer.executemany("INSERT INTO padding VALUES (?)", [("x" * 1000,)] * 500)
        log.shorten()
        log.shorten()  # one at a time
        await log.close()
        sizes.append((tmp_path / "edge.db-wal").stat().st_size)
    assert sizes[-1] < 2 * sizes[0]
    assert database.stat().st_size > 1_000_000
    writer.close()
    await store.close()


async def test_a_refused_caller_costs_no_row(store: SQLiteStore, tmp_path: Path) -> None:
    with pytest.raises(ApiError):
        await store.admit(IP, ANY, PLAN, Cost(5000), "too-much")
    assert store.refusal(IP, ANY, PLAN) is None
    await asyncio.sleep(3 * COMMIT_SECONDS)
    assert (
        rows(tmp_path / "edge.db", "SELECT * FROM usage")
        == rows(tmp_path / "edge.db", "SELECT * FROM reservations")
        == []
    )
