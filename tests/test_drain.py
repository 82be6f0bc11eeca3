"""SIGTERM with running streams, on real processes: no new ones, running ones finish or are told, exit status 0."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.fake_runtime import Exchange, FakeRuntime
from tests.fake_scripts import Script, answer, completion, normal
from tests.pair import events_of, question
from tests.processes import Processes, running_processes
from tests.raw_http import RawClient
from tests.waiting import HANGS

NATIVE = "/v1/chat"
OPENAI = "/v1/chat/completions"
EXIT_WITHIN = 30.0  # seconds (design §4)


async def opened(pair: Processes, path: str = NATIVE) -> RawClient:
    """A stream whose first word has been read."""
    raw = await RawClient.connect(pair.url)
    await raw.post(path, question(stream=True, model="default"), pair.bearer())
    assert (await raw.head()).status == 200
    await raw.read_until(b"one ")
    return raw


async def asked(pair: Processes, method: str, path: str, **options: Any) -> tuple[int, Any]:
    async with pair.client.request(method, pair.url + path, headers=pair.bearer(), **options) as response:
        return response.status, await response.json()


async def draining(pair: Processes) -> None:
    """Wait until the edge says so."""
    async with asyncio.timeout(HANGS):
        while (await asked(pair, "GET", "/readyz"))[0] == 200:
            pass


def in_two_parts(go_on: asyncio.Event) -> Script:
    """An answer of 40 words, of which the second half waits."""

    async def script(exchange: Exchange) -> None:
        if not exchange.json.get("stream"):
            await go_on.wait()
            await exchange.respond(200, completion(40))
            return
        await exchange.start_stream()
        for number, piece in enumerate(answer(exchange, 40)):
            if number == 20:
                await go_on.wait()
            await exchange.send(piece)
        await exchange.end_stream()

    return script


def last_error(stream: bytes) -> str:
    assert b"[DONE]" not in stream
    return json.loads(events_of(stream)[-1].data)["error"]["code"]


@pytest.mark.case("E61")
async def test_running_streams_finish_and_new_ones_are_refused(tmp_path: Path) -> None:
    go_on = asyncio.Event()
    async with FakeRuntime(in_two_parts(go_on)) as runtime, running_processes(runtime.url, tmp_path) as pair:
        streams = [await opened(pair, path) for path in (NATIVE, OPENAI)]
        whole = asyncio.create_task(asked(pair, "POST", NATIVE, json=question()))
        await runtime.chat(2)
        pair.edge.signal(signal.SIGTERM)
        await draining(pair)
        assert await asked(pair, "GET", "/readyz") == (503, {"status": "draining"})
        assert (await asked(pair, "GET", "/healthz"))[0] == 503
        assert (await asked(pair, "GET", "/livez"))[0] == 200
        async with pair.client.post(pair.url + NATIVE, json=question(), headers=pair.bearer()) as response:
            assert (response.status, (await response.json())["error"]["code"]) == (503, "draining")
            assert int(response.headers["retry-after"]) >= 1
        go_on.set()
        for raw in streams:
            assert (await raw.body(10)).endswith(b"data: [DONE]\n\n")
            raw.close()
        assert (await whole)[0] == 200
        ended = time.monotonic()
        assert await pair.edge.exit_status(EXIT_WITHIN) == 0
        assert time.monotonic() - ended < 5  # nobody is waited for any more
        assert len(runtime.chats) == 3
        assert (list(pair.ledger().used.values()), pair.ledger().reserved) == ([3 * 47], {})


@pytest.mark.case("E61")
async def test_streams_that_do_not_finish_are_told(tmp_path: Path) -> None:
    environ = {"HEARTHLINK_EDGE__DRAIN_TIMEOUT": "1"}
    async with (
        FakeRuntime("stall_mid_stream") as runtime,
        running_processes(runtime.url, tmp_path, environ=environ) as pair,
    ):
        streams = [await opened(pair, path) for path in (NATIVE, OPENAI)]
        whole = asyncio.create_task(asked(pair, "POST", NATIVE, json=question()))
        await runtime.chat(2)
        began = time.monotonic()
        pair.edge.signal(signal.SIGTERM)
        for raw in streams:
            assert last_error(await raw.body(EXIT_WITHIN)) == "server_draining"
            raw.close()
        status, answer = await whole
        assert (status, answer["error"]["code"]) == (503, "draining")
        assert time.monotonic() - began >= 1
        assert await pair.edge.exit_status(EXIT_WITHIN) == 0
        await runtime.idle()
        assert [exchange.outcome for exchange in runtime.chats] == ["aborted"] * 3
        assert pair.ledger().reserved == {}
        (used,) = pair.ledger().used.values()
        assert used > 3 * 2
        outcomes = [line["outcome"] for line in pair.edge.lines() if line["event"] == "request" and "outcome" in line]
        assert outcomes.count("server_draining") + outcomes.count("draining") == 3


async def test_a_node_that_stops_lets_its_streams_finish(tmp_path: Path) -> None:
    async with FakeRuntime(normal(30, 0.05)) as runtime, running_processes(runtime.url, tmp_path) as pair:
        raw = await opened(pair)
        pair.node.signal(signal.SIGTERM)
        async with asyncio.timeout(HANGS):
            while (await asked(pair, "GET", "/healthz"))[0] == 200:
                pass
        status, answer = await asked(pair, "POST", NATIVE, json=question())
        assert status == 503
        assert answer["error"]["code"] in ("node_unavailable", "draining")
        assert (await raw.body(10)).endswith(b"data: [DONE]\n\n")
        raw.close()
        assert await pair.node.exit_status(EXIT_WITHIN) == 0
        assert len(runtime.chats) == 1
        assert (await asked(pair, "GET", "/readyz"))[0] == 200  # the edge itself goes on


async def test_streams_of_a_node_that_do_not_finish_are_told(tmp_path: Path) -> None:
    environ = {"HEARTHLINK_NODE__DRAIN_TIMEOUT": "1"}
    async with (
        FakeRuntime("stall_mid_stream") as runtime,
        running_processes(runtime.url, tmp_path, environ=environ) as pair,
    ):
        raw = await opened(pair)
        pair.node.signal(signal.SIGTERM)
        assert last_error(await raw.body(EXIT_WITHIN)) == "server_draining"
        raw.close()
        assert await pair.node.exit_status(EXIT_WITHIN) == 0
        assert runtime.chats[0].outcome == "aborted"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_nothing_to_wait_for_is_nothing_waited_for(runtime: FakeRuntime, tmp_path: Path, number: int) -> None:
    async with running_processes(runtime.url, tmp_path) as pair:
        for process in (pair.edge, pair.node):
            process.signal(signal.Signals(number))
            assert await process.exit_status(5) == 0


async def test_a_second_signal_cuts_the_wait_short(tmp_path: Path) -> None:
    async with FakeRuntime("stall_mid_stream") as runtime, running_processes(runtime.url, tmp_path) as pair:
        raw = await opened(pair)
        pair.edge.signal(signal.SIGTERM)
        await draining(pair)
        pair.edge.signal(signal.SIGTERM)
        assert last_error(await raw.body(3)) == "server_draining"
        raw.close()
        assert await pair.edge.exit_status(5) == 0  # the drain alone would take 20 s
        await (await runtime.chat(0)).peer_left()
        assert pair.ledger().reserved == {}
