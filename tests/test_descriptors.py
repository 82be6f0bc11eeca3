"""A process that has as many connections as it may have files open."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
from pathlib import Path

import pytest

from shared.asgi import descriptors
from tests.fake_runtime import FakeRuntime
from tests.pair import question
from tests.processes import Processes, running_processes
from tests.raw_http import RawClient
from tests.waiting import wait_until

_TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """What the process has used so far."""
    after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(after_name[11]) + int(after_name[12])) / _TICKS


def open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


async def chat(pair: Processes) -> int:
    async with pair.client.post(f"{pair.url}/v1/chat", json=question(), headers=pair.bearer()) as answer:
        await answer.read()
        return answer.status


@pytest.mark.case("E65")
async def test_callers_cannot_take_the_last_files_and_the_edge_does_not_spin(
    runtime: FakeRuntime, tmp_path: Path
) -> None:
    """The others are refused in words, operations answer, and once callers leave all is as before."""
    environ = {"HEARTHLINK_EDGE__CONNECTIONS_PER_IP": "1000"}
    async with running_processes(runtime.url, tmp_path, environ=environ) as pair:
        pid = pair.edge.child.pid
        assert await chat(pair) == 200
        limit = open_files(pid) + 48
        reserve = limit // 8
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, limit))
        async with contextlib.AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(await RawClient.connect(pair.url)) for _ in range(2 * limit)]
            refused = [client for client in clients[limit:]]
            heads = [await client.head() for client in refused[:5]]
            assert {head.status for head in heads} == {503}
            await wait_until(lambda: limit - reserve - 2 <= open_files(pid) <= limit - reserve // 2)
            before = cpu_seconds(pid)
            for _ in range(10):
                async with pair.client.get(f"{pair.edge.ops_url}/healthz") as answer:
                    assert (answer.status, (await answer.json())["status"]) == (200, "ok")
                await asyncio.sleep(0.1)
            assert cpu_seconds(pid) - before < 0.5, "of one second that it had nothing to do"
            assert await chat(pair) == 200, "who is connected is served"
        await pair.healthy()
        async with await RawClient.connect(pair.url) as client:
            await client.request("GET", "/livez")
            assert (await client.head()).status == 200


def test_the_limit_is_raised_as_far_as_it_may_be() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))
    try:
        descriptors.raise_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (min(hard, 1 << 20), hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Accepted:
    """A transport whose socket has the descriptor ``number``."""

    def __init__(self, number: int) -> None:
        self.number = number

    def get_extra_info(self, name: str) -> Accepted:
        return self

    def fileno(self) -> int:
        return self.number


@pytest.mark.parametrize(
    ("soft", "last"), [(1024, 1024 - 64), (100_000, 100_000 - 64), (80, 70)], ids=["usual", "large", "small"]
)
def test_some_are_kept_for_operations(soft: int, last: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (soft, soft))
    assert not descriptors.scarce(Accepted(last - 1)) and descriptors.scarce(Accepted(last))
