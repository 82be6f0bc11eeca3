"""What callers see when the link between edge and node breaks, in each way networks and clients break it."""

from __future__ import annotations

import asyncio
import json
import time
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest

from node.app import run_node
from shared.contract.sse import Decoder, Event
from shared.link import session as session_module
from shared.link.frames import Kind, pack
from tests.fake_runtime import FakeRuntime
from tests.fake_scripts import normal, text
from tests.link_client import HELLO, dial
from tests.pair import Pair, events_of, node_settings, question, running_pair
from tests.tcp_proxy import TcpProxy
from tests.waiting import HANGS, Stopwatch, wait_until

NATIVE = "/v1/chat"
OPENAI = "/v1/chat/completions"
STREAMED: dict[str, Any] = {"stream": True}


@dataclass(slots=True)
class Bench:
    """Runtime, node, proxy and edge in a row."""

    runtime: FakeRuntime
    proxy: TcpProxy
    pair: Pair

    @property
    def linked(self) -> bool:
        return self.pair.edge.services.upstreams.ready

    async def until_linked(self, seconds: float = HANGS) -> None:
        await wait_until(lambda: self.linked, seconds, what=lambda: self.pair.edge.services.upstreams.all[0].reason)

    async def tokens(self, key: str) -> dict[str, int]:
        """The caller's quota: what is used, and what running chats have reserved."""
        async with self.pair.get("/v1/me", key=key) as response:
            return (await response.json())["usage"]["tokens"]

    async def ask(self) -> str:
        """The text of a whole answer."""
        async with self.pair.post(NATIVE, question()) as response:
            assert response.status == 200, await response.text()
            return (await response.json())["choices"][0]["message"]["content"]


@asynccontextmanager
async def running_bench(script: Any = "slow") -> AsyncIterator[Bench]:
    async with FakeRuntime(script) as runtime, TcpProxy() as proxy:
        edge = {"upstreams": {"default": {"url": proxy.url}}}
        async with running_pair(runtime.url, edge=edge, wait=False) as pair:
            proxy.target = pair.node.listener.port
            bench = Bench(runtime, proxy, pair)
            await bench.until_linked()
            yield bench


async def first_event(response: aiohttp.ClientResponse) -> bytes:
    """Bytes up to the end of the first event that holds text."""
    received = b""
    while b'"content":"' not in received.replace(b'"content":""', b"") or not received.endswith(b"\n\n"):
        piece = await response.content.readany()
        assert piece, received
        received += piece
    return received


def last_error(stream: bytes) -> tuple[Event, dict[str, Any]]:
    """The error that ends a stream, and its event; nothing may follow, and no clean end come before."""
    assert stream.endswith(b"\n\n")
    events = events_of(stream)
    assert "[DONE]" not in [event.data for event in events]
    body = json.loads(events[-1].data)
    assert body["request_id"]
    return events[-1], body["error"]


# -- cut --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "fields", "name"), [(NATIVE, {}, "error"), (OPENAI, {"model": "chat:home"}, "")])
async def test_a_link_cut_in_mid_stream_is_an_error_in_the_stream_and_comes_back(
    path: str, fields: dict[str, Any], name: str
) -> None:
    async with running_bench() as bench:
        key = await bench.pair.new_key("member")
        async with bench.pair.post(path, question(**STREAMED, **fields), key=key) as response:
            received = await first_event(response)
            exchange = await bench.runtime.chat(0)
            bench.proxy.cut()
            cut = Stopwatch()
            received += await response.content.read()
        event, error = last_error(received)
        assert (event.event, error["code"]) == (name, "upstream_incomplete")
        assert "try again" in error["message"]
        await exchange.peer_left()
        assert cut.seconds < 0.5  # the node stopped the runtime
        await bench.until_linked()
        bench.runtime.script = "normal"
        assert await bench.ask() == text(5)
        await bench.pair.idle()
        tokens = await bench.tokens(key)
        assert tokens["used"] > 0  # settled at what was relayed: nobody can say more
        assert tokens["reserved"] == 0


@pytest.mark.parametrize("fields", [{}, STREAMED], ids=["json", "stream"])
async def test_a_link_cut_before_the_answer_has_begun_keeps_its_status(fields: dict[str, Any]) -> None:
    async with running_bench("stall_before_headers") as bench:
        key = await bench.pair.new_key("member")
        asking = asyncio.create_task(bench.pair.post(NATIVE, question(**fields), key=key).__aenter__())
        exchange = await bench.runtime.chat(0)
        assert (await bench.tokens(key))["reserved"] > 0
        bench.proxy.cut()
        response = await asyncio.wait_for(asking, 5)  # not when the silence is noticed, after 12 s
        assert response.status == 503
        assert (await response.json())["error"]["code"] == "node_unavailable"
        assert response.headers["retry-after"]
        await exchange.peer_left()
        await bench.until_linked()
        await bench.pair.idle()
        tokens = await bench.tokens(key)
        assert (tokens["used"], tokens["reserved"]) == (0, 0)


async def test_a_json_answer_cut_in_the_middle_is_an_error() -> None:
    async with running_bench("slow") as bench:
        asking = asyncio.create_task(bench.pair.post(NATIVE, question()).__aenter__())
        await bench.runtime.chat(0)
        await asyncio.sleep(0.2)
        bench.proxy.cut()
        response = await asyncio.wait_for(asking, 5)  # not when the silence is noticed, after 12 s
        assert response.status in (502, 503)
        assert (await response.json())["error"]["code"] in ("node_unavailable", "upstream_incomplete")
        await bench.pair.idle()


@pytest.mark.parametrize("to", ["client", "server"])
async def test_garbage_on_the_wire_ends_the_link_and_it_comes_back(to: Any) -> None:
    async with running_bench() as bench:
        async with bench.pair.post(NATIVE, question(**STREAMED)) as response:
            received = await first_event(response)
            bench.proxy.inject(b"\xff\x00garbage" * 100, to)
            received += await asyncio.wait_for(response.content.read(), HANGS)
        assert last_error(received)[1]["code"] == "upstream_incomplete"
        await bench.until_linked()
        bench.runtime.script = "normal"
        assert await bench.ask() == text(5)
        await bench.pair.idle()


# -- silence ----------------------------------------------------------------------------------------------------------


async def test_half_open_streams_end_within_15_s_and_the_link_is_back_before() -> None:
    """Bytes vanish both ways and nobody is told. The one test that waits as long as the promise is."""
    async with running_bench(normal(2000, 0.05)) as bench:
        async with bench.pair.post(NATIVE, question(**STREAMED)) as response:
            received = await first_event(response)
            exchange = await bench.runtime.chat(0)
            bench.proxy.lose()
            lost, dials = time.monotonic(), bench.proxy.accepted
            ending = asyncio.create_task(response.content.read())
            # A new link is dialled as soon as this one is suspect, and new requests use it.
            await wait_until(lambda: bench.proxy.accepted == dials + 1, 12)
            await bench.until_linked(2)
            bench.runtime.script = "normal"
            assert await bench.ask() == text(5)
            assert not ending.done()
            received += await asyncio.wait_for(ending, 15 - (time.monotonic() - lost))
        assert last_error(received)[1]["code"] == "upstream_incomplete"
        assert await exchange.peer_left(15) - lost < 15  # and the node has given its slot back
        await bench.pair.idle()
        assert len(bench.pair.node.link.sessions) == 1


async def test_a_link_that_is_held_up_for_a_moment_loses_nothing() -> None:
    async with running_bench(normal(40, 0.02)) as bench:
        dials = bench.proxy.accepted
        async with bench.pair.post(NATIVE, question(**STREAMED)) as response:
            received = await first_event(response)
            bench.proxy.hold()
            await asyncio.sleep(1.5)
            bench.proxy.release()
            received += await response.content.read()
        chunks = [json.loads(event.data) for event in events_of(received) if event.data != "[DONE]"]
        deltas = [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]]
        assert "".join(delta.get("content", "") for delta in deltas) == text(40)
        assert bench.proxy.accepted == dials


async def test_a_slow_link_is_slow_and_nothing_else() -> None:
    async with running_bench(normal(60, 0.001)) as bench:
        dials = bench.proxy.accepted
        bench.proxy.bytes_per_second = 60_000
        streams = await asyncio.gather(*(whole(bench, question(**STREAMED)) for _ in range(4)))
        for received in streams:
            events = Decoder().feed(received)
            assert events[-1].data == "[DONE]"
        assert bench.proxy.accepted == dials


async def whole(bench: Bench, payload: dict[str, Any]) -> bytes:
    async with bench.pair.post(NATIVE, payload) as response:
        return await response.content.read()


async def test_a_suspect_link_that_recovers_is_given_up_for_the_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("PING_AFTER", 0.3), ("SUSPECT_AFTER", 0.2), ("_TICK", 0.05)):
        monkeypatch.setattr(session_module, name, seconds)
    async with running_bench(normal(400, 0.01)) as bench:
        dials = bench.proxy.accepted
        bench.proxy.hold()
        await wait_until(lambda: bench.proxy.accepted > dials)
        await bench.until_linked()
        bench.proxy.release()
        await wait_until(lambda: len(bench.pair.node.link.sessions) == 1)  # not one more link each time
        bench.runtime.script = "normal"
        assert await bench.ask() == text(5)


# -- the node goes away -----------------------------------------------------------------------------------------------


async def test_a_node_that_restarts_is_found_again() -> None:
    async with FakeRuntime("slow") as runtime, TcpProxy() as proxy:
        edge = {"upstreams": {"default": {"url": proxy.url}}}
        async with running_pair(runtime.url, edge=edge, wait=False) as pair:
            bench = Bench(runtime, proxy, pair)
            async with run_node(node_settings(pair.state, runtime.url)) as first:
                proxy.target = first.listener.port
                await bench.until_linked()
                boot = first.services.boot_id
                async with pair.post(NATIVE, question(**STREAMED)) as response:
                    received = await first_event(response)
                    draining = asyncio.create_task(first.link.drain(0.2))
                    received += await response.content.read()
                    assert last_error(received)[1]["code"] == "server_draining"
                    await draining
            proxy.target = None
            await wait_until(lambda: not bench.linked)
            async with pair.post(NATIVE, question()) as response:
                assert response.status == 503
                assert (await response.json())["error"]["code"] == "node_unavailable"
            async with run_node(node_settings(pair.state, runtime.url)) as second:
                proxy.target = second.listener.port
                await bench.until_linked(8)
                snapshot = pair.edge.services.upstreams.all[0].snapshot
                assert snapshot is not None
                assert snapshot.boot_id == second.services.boot_id != boot
                runtime.script = "normal"
                assert await bench.ask() == text(5)


async def test_a_node_that_is_away_is_dialled_with_backoff() -> None:
    async with running_bench("normal") as bench:
        bench.proxy.target = None
        bench.proxy.cut()
        before = bench.proxy.accepted
        await asyncio.sleep(1.5)
        connections = bench.proxy.accepted - before
        # Dials after 0.1, 0.2, 0.4, 0.8 s with jitter, two connections each (aiohttp tries a GET again at once);
        # without backoff there were 30 and more.
        assert 2 <= connections <= 12
        bench.proxy.target = bench.pair.node.listener.port
        await bench.until_linked(6)


async def test_a_draining_node_takes_no_new_link() -> None:
    async with running_bench() as bench:
        node, upstream = bench.pair.node, bench.pair.edge.services.upstreams.all[0]
        async with bench.pair.post(NATIVE, question(**STREAMED)) as response:
            received = await first_event(response)
            node.services.draining = True
            draining = asyncio.create_task(node.link.drain(5))
            await wait_until(lambda: "restarting" in upstream.reason)
            async with bench.pair.post(NATIVE, question()) as refused:
                assert refused.status == 503
            received += await response.content.read()
            assert events_of(received)[-1].data == "[DONE]"  # what ran has ended well
        await asyncio.wait_for(draining, HANGS)
        assert not node.link.sessions


# -- clients of /link -------------------------------------------------------------------------------------------------


async def test_a_flood_of_malformed_frames_disturbs_nobody_else(runtime: FakeRuntime) -> None:
    runtime.script = normal(150, 0.01)
    async with running_pair(runtime.url) as pair:
        tracemalloc.start()
        stop = asyncio.Event()

        async def flood() -> int:
            links = 0
            while not stop.is_set():
                links += 1
                async with dial(pair) as socket:
                    try:
                        await socket.send_bytes(HELLO)
                        for _ in range(20):
                            await socket.send_bytes(pack(1, Kind.DATA, bytes(1000)) * 200)
                            await socket.send_bytes(b"\xff" * 100_000)
                    except (aiohttp.ClientError, ConnectionError):
                        pass
            return links

        flooding = [asyncio.create_task(flood()) for _ in range(2)]
        async with pair.post(NATIVE, question(**STREAMED)) as response:
            received = await response.content.read()
        stop.set()
        links = await asyncio.wait_for(asyncio.gather(*flooding), HANGS)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert events_of(received)[-1].data == "[DONE]"
        assert sum(links) > 5
        assert peak < 64 << 20
        await wait_until(lambda: len(pair.node.link.sessions) == 1)
        await pair.idle()


async def test_a_wrong_node_token_is_named_by_its_setting(runtime: FakeRuntime) -> None:
    async with running_pair(runtime.url, node={"tokens": ["hln_" + "n" * 43]}, wait=False) as pair:
        upstream = pair.edge.services.upstreams.all[0]
        await wait_until(lambda: "token" in upstream.reason)
        assert "edge.upstreams.default.token" in upstream.reason
        assert "node.tokens" in upstream.reason
        async with pair.client.get(pair.ops_url + "/healthz") as response:
            assert response.status == 503
            assert (await response.json())["nodes"][0]["reason"] == upstream.reason
        async with pair.get("/healthz") as response:
            assert "token" not in await response.text()  # reasons are the owner's
        async with pair.post(NATIVE, question()) as response:
            assert response.status == 503


async def test_the_token_list_admits_the_current_and_the_next(runtime: FakeRuntime) -> None:
    current, following = "hln_" + "a" * 43, "hln_" + "b" * 43
    for token in (current, following):
        async with (
            running_pair(
                runtime.url,
                node={"tokens": [current, following]},
                edge={"upstreams": {"default": {"token": token, "url": "ws://127.0.0.1:1/link"}}},
                wait=False,
            ) as pair,
            dial(pair, token=token) as socket,
        ):
            await socket.send_bytes(HELLO)
            assert (await socket.receive(timeout=2)).type is aiohttp.WSMsgType.BINARY
