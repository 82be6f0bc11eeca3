"""Is the event loop blocked, and does systemd hear the truth about it?"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from shared.loop_watch import BLOCKED, LoopWatch
from shared.systemd import READY, STOPPING, Notifier
from tests.fake_runtime import FakeRuntime
from tests.logged import logged
from tests.processes import running_processes
from tests.waiting import wait_until


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[socket.socket]:
    """Where systemd listens for what services say."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.setblocking(False)
        yield sock


def said(systemd: socket.socket) -> list[str]:
    """All that was said since the last time."""
    found = []
    with contextlib.suppress(BlockingIOError):
        while True:
            found.append(systemd.recv(4096).decode())
    return found


def told(systemd: socket.socket, **more: str) -> Notifier:
    return Notifier({"NOTIFY_SOCKET": systemd.getsockname(), **more})


@asynccontextmanager
async def watching(notifier: Notifier) -> AsyncIterator[list[float]]:
    """What the watch reports while the block runs, in seconds."""
    reported: list[float] = []
    task = asyncio.create_task(LoopWatch(reported.append, notifier).run())
    await asyncio.sleep(0.15)
    try:
        yield reported
    finally:
        task.cancel()
        await asyncio.wait([task])


@pytest.mark.case("E70")
async def test_a_loop_that_stood_still_is_reported_once_and_said(log: list[str]) -> None:
    async with watching(Notifier({})) as reported:
        for _ in range(3):
            reported.clear()
            time.sleep(2 * BLOCKED)  # noqa: ASYNC251 - it blocks the loop
            await wait_until(lambda: reported)
            assert reported[0] > 1.9 * BLOCKED
    assert len(log) == 1 and "the event loop stood still" in log[0], "the next two are within a minute"


@pytest.fixture
def log() -> Iterator[list[str]]:
    with logged() as lines:
        yield lines


@pytest.mark.case("E70")
async def test_the_watchdog_hears_of_a_loop_that_runs_and_nothing_of_one_that_does_not(systemd: socket.socket) -> None:
    async with watching(told(systemd, WATCHDOG_USEC="400000", WATCHDOG_PID=str(os.getpid()))):
        heard: list[str] = []
        await wait_until(lambda: heard.extend(said(systemd)) or len(heard) >= 3)
        assert set(heard) == {"WATCHDOG=1"}
        said(systemd)
        time.sleep(1)  # noqa: ASYNC251 - it blocks the loop
        assert said(systemd) == []
        await wait_until(lambda: said(systemd))


@pytest.mark.parametrize(
    "environ",
    [{}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "soon"}, {"WATCHDOG_USEC": "400000", "WATCHDOG_PID": "1"}],
    ids=["none", "off", "garbage", "another-process"],
)
def test_a_watchdog_that_is_not_ours_hears_nothing(environ: dict[str, str]) -> None:
    assert Notifier(environ).watchdog is None


def test_a_systemd_that_does_not_listen_stops_nobody(tmp_path: Path, log: list[str]) -> None:
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "none")}).tell(READY)
    assert len(log) == 1 and "READY=1" in log[0]
    Notifier({}).tell(READY)
    assert len(log) == 1


def test_the_socket_may_have_an_abstract_name() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(f"\0hearthlink-{os.getpid()}")
        sock.setblocking(False)
        Notifier({"NOTIFY_SOCKET": f"@hearthlink-{os.getpid()}"}).tell(STOPPING)
        assert said(sock) == [STOPPING]


@pytest.mark.case("E70")
async def test_an_edge_says_when_it_is_ready_alive_and_stopping(
    runtime: FakeRuntime, systemd: socket.socket, tmp_path: Path
) -> None:
    """As a unit of Type=notify with WatchdogSec; the process is stopped and goes on, as if it had been blocked."""
    environ = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "400000"}
    heard: list[str] = []
    asyncio.get_running_loop().add_reader(systemd, lambda: heard.extend(said(systemd)))
    async with running_processes(runtime.url, tmp_path, environ=environ) as pair:
        await wait_until(lambda: heard.count(READY) == 2)  # the node, then the edge
        heard.clear()
        await wait_until(lambda: heard.count("WATCHDOG=1") >= 4)
        pair.edge.signal(signal.SIGSTOP)
        await asyncio.sleep(2 * BLOCKED)
        pair.edge.signal(signal.SIGCONT)
        await wait_until(lambda: "the event loop stood still" in pair.edge.text())
        async with pair.client.get(f"{pair.edge.ops_url}/metrics") as answer:
            assert "hearthlink_edge_loop_blocked_seconds_count 0.0" not in await answer.text()
        pair.edge.signal(signal.SIGTERM)
        await wait_until(lambda: STOPPING in heard)
        assert await pair.edge.exit_status(30) == 0
        asyncio.get_running_loop().remove_reader(systemd)
