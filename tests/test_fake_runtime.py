"""The fake runtime does what its scripts say: a fault test proves nothing if the fault did not happen."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest

from shared.contract.sse import Decoder
from tests.fake_presets import PRESETS
from tests.fake_runtime import CHAT, Exchange, FakeRuntime
from tests.fake_scripts import normal, split_at, text
from tests.waiting import Stopwatch

BODY = {"model": "fake-model", "stream": True, "stream_options": {"include_usage": True}, "messages": []}


@asynccontextmanager
async def post(runtime: FakeRuntime) -> AsyncIterator[aiohttp.ClientResponse]:
    async with (
        aiohttp.ClientSession(trust_env=False) as session,
        session.post(runtime.url + CHAT, json=BODY) as response,
    ):
        yield response


async def read_text(response: aiohttp.ClientResponse) -> tuple[str, list[str]]:
    """Content of the stream, and the data of every event."""
    decoder, content, seen = Decoder(), "", []
    async for data in response.content.iter_any():
        for event in decoder.feed(data):
            seen.append(event.data)
            if event.data.startswith("{") and (choices := json.loads(event.data).get("choices")):
                content += choices[0]["delta"].get("content") or ""
    return content, seen


@pytest.mark.parametrize(
    "preset",
    ["normal", "split_every_byte", "half_characters", "crlf", "cr", "no_space", "comments", "bom", "progress"],
)
async def test_good_answers_hold_the_same_text(preset: str) -> None:
    async with FakeRuntime(preset) as runtime, post(runtime) as response:
        content, seen = await read_text(response)
        assert content == text(5)
        assert seen[-1] == "[DONE]"
        assert json.loads(seen[-2])["usage"]["completion_tokens"] == 5
        await runtime.idle()
        assert runtime.chats[0].json == BODY
        assert runtime.chats[0].outcome == "completed"


async def test_the_first_event_leaves_before_the_last_is_made() -> None:
    async with FakeRuntime(normal(3, delay=0.05)) as runtime, post(runtime) as response:
        await response.content.readany()
        assert runtime.active_streams == 1
        assert (await read_text(response))[0] == text(3)


async def test_every_byte_is_a_read_of_its_own() -> None:
    async with FakeRuntime("split_every_byte") as runtime, post(runtime) as response:
        reads = [len(data) async for data in response.content.iter_any()]
        assert max(reads) < 20  # a loaded machine may merge a few; never an event
        assert sum(reads) > 500


async def test_a_split_at_any_offset_keeps_the_text() -> None:
    async with FakeRuntime(lambda exchange: split_at(int(exchange.headers["x-offset"]), n=2, gap=0.001)) as runtime:
        async with aiohttp.ClientSession(trust_env=False) as session:
            for offset in range(0, 700, 23):
                headers = {"x-offset": str(offset)}
                async with session.post(runtime.url + CHAT, json=BODY, headers=headers) as response:
                    assert (await read_text(response))[0] == text(2)
        assert runtime.accepted == 1  # keep-alive: one connection served them all


@pytest.mark.parametrize("preset", ["slow", "stall_before_headers", "stall_mid_stream", "endless_line"])
async def test_a_leaving_peer_is_seen_at_once(preset: str) -> None:
    async with FakeRuntime(preset) as runtime:
        reader, writer = await asyncio.open_connection("127.0.0.1", runtime.port)
        body = json.dumps(BODY).encode()
        writer.write(b"POST %s HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s" % (CHAT.encode(), len(body), body))
        exchange = await runtime.chat(0)
        await asyncio.sleep(0.02)
        assert (runtime.open_connections, runtime.active_streams) == (1, 1)
        left = Stopwatch()
        writer.close()
        await exchange.peer_left()
        assert left.seconds < 0.1
        await runtime.until(lambda: runtime.open_connections == 0)
        assert (exchange.outcome, runtime.aborted, runtime.active_streams) == ("aborted", 1, 0)
        del reader


async def test_a_peer_that_does_not_read_holds_the_script_up() -> None:
    async with FakeRuntime("endless_line") as runtime, post(runtime):
        exchange = await runtime.chat(0)
        await asyncio.sleep(0.2)
        before = exchange.sent
        await asyncio.sleep(0.1)
        assert exchange.sent == before  # kernel buffers are full, and nothing piles up here


@pytest.mark.parametrize(
    "preset", ["reset_before_headers", "reset_mid_stream", "cut_mid_stream", "garbage", "huge_header"]
)
async def test_broken_answers_break_the_client(preset: str) -> None:
    async with FakeRuntime(preset) as runtime:
        with pytest.raises(aiohttp.ClientError):
            async with post(runtime) as response:
                await read_text(response)
        await runtime.idle()


@pytest.mark.parametrize(
    ("preset", "status", "needle"),
    [
        ("loading", 503, "Loading model"),
        ("llamacpp_context", 400, "exceed_context_size_error"),
        ("lmstudio_unknown_path", 200, "Unexpected endpoint"),
        ("vllm_busy", 503, "overloaded"),
        ("sglang_busy", 503, '"object": "error"'),
        ("html", 200, "<html>"),
        ("error_data", 200, 'data: {"error":'),
        ("error_event", 200, "event: error\n"),
        ("error_field", 200, "\nerror: {"),
    ],
)
async def test_errors_have_the_status_and_shape_of_their_runtime(preset: str, status: int, needle: str) -> None:
    async with FakeRuntime(preset) as runtime, post(runtime) as response:
        assert response.status == status
        assert needle in await response.text()


@pytest.mark.parametrize("preset", ["eof_without_done", "eof_after_finish", "error_data", "lmstudio_context_in_stream"])
async def test_failed_streams_have_no_done(preset: str) -> None:
    async with FakeRuntime(preset) as runtime, post(runtime) as response:
        assert "[DONE]" not in await response.text()


async def test_after_done_and_usage_presets() -> None:
    async with FakeRuntime(["after_done", "usage_missing", "usage_absurd"]) as runtime:
        async with post(runtime) as response:
            assert "too late" in (await response.text()).split("[DONE]")[1]
        async with post(runtime) as response:
            assert '"usage"' not in await response.text()
        async with post(runtime) as response:
            assert "1000000000000" in await response.text()


async def test_probes() -> None:
    routes = {"/version": {"version": "0.9"}}
    async with (
        FakeRuntime(models=[], slots=2, routes=routes) as runtime,
        aiohttp.ClientSession(trust_env=False) as session,
    ):

        async def get(path: str) -> tuple[int, object]:
            async with session.get(runtime.url + path) as response:
                assert response.headers["Server"] == "llama.cpp"
                return response.status, await response.json()

        assert await get("/v1/models") == (200, {"object": "list", "data": []})
        assert await get("/health") == (200, {"status": "ok"})
        assert await get("/version") == (200, {"version": "0.9"})
        status, slots = await get("/slots")
        assert status == 200
        assert isinstance(slots, list)
        assert [slot["is_processing"] for slot in slots] == [False, False]
        assert (await get("/nothing"))[0] == 404
        runtime.loading = True
        assert (await get("/health"))[0] == 503
        runtime.loading, runtime.key = False, "secret"
        assert (await get("/v1/models"))[0] == 401
        assert (await get("/health"))[0] == 200


async def test_killed_and_back_on_the_same_port() -> None:
    async with FakeRuntime("stall_mid_stream") as runtime:
        with pytest.raises(aiohttp.ClientError):
            async with post(runtime) as response:
                await response.content.readany()
                await runtime.kill()
                await response.content.read()
        with pytest.raises(aiohttp.ClientConnectorError):
            async with post(runtime):
                pass
        await runtime.listen()
        runtime.script = "normal"
        async with post(runtime) as response:
            assert (await read_text(response))[0] == text(5)
        assert [exchange.outcome for exchange in runtime.chats] == ["dropped", "completed"]


async def test_a_broken_script_fails_the_test_that_used_it() -> None:
    async def broken(exchange: Exchange) -> None:
        raise LookupError("a typing error in a script")

    with pytest.raises(LookupError):
        async with FakeRuntime(broken) as runtime:
            with pytest.raises(aiohttp.ClientError):
                async with post(runtime):
                    pass


@pytest.mark.parametrize("preset", sorted(PRESETS))
async def test_every_preset_runs_until_its_peer_leaves(preset: str) -> None:
    async with FakeRuntime(preset) as runtime:
        with contextlib.suppress(aiohttp.ClientError, TimeoutError, ValueError):
            async with asyncio.timeout(0.1), post(runtime) as response:
                await read_text(response)
        await runtime.idle()
