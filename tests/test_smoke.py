"""``hearthlink smoke``: well when an edge is well, and for each thing that can be wrong one line that says which."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.command_line import Finished, run
from tests.fake_runtime import FakeRuntime
from tests.fake_scripts import DONE, chunk, normal, words
from tests.pair import Pair

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
NAMES = ["health", "token", "chat", "stream", "cancel", "memory"]


def outcomes(smoke: Finished) -> dict[str, str]:
    """What stands before each check's name."""
    return {line[4:].split()[0]: line[:4].strip() for line in smoke.out.splitlines()}


async def smoke_json(*arguments: str, state: Path) -> dict[str, Any]:
    finished = await run("smoke", *arguments, "--json", state=state)
    found = json.loads(finished.out)
    assert finished.status == (0 if found["ok"] else 1), finished
    return found


# -- a real pair ------------------------------------------------------------------------------------------------------


async def test_a_good_edge_passes_with_a_key(pair: Pair) -> None:
    smoke = await run("smoke", pair.url, "--key", "-", state=pair.state, stdin=pair.key)
    assert smoke.status == 0 and list(outcomes(smoke)) == NAMES and set(outcomes(smoke).values()) == {"[ok]"}, smoke
    assert pair.key not in smoke.out + smoke.err
    assert all(" ms  " in line for line in smoke.out.splitlines())
    await pair.idle()


async def test_a_token_can_be_given_in_the_environment(pair: Pair) -> None:
    async with pair.post("/v1/token", {}) as response:
        environ = {"HEARTHLINK_SMOKE_TOKEN": (await response.json())["token"]}
    smoke = await run("smoke", pair.url + "/", state=pair.state, environ=environ)
    assert smoke.status == 0 and "given, plan owner" in smoke.out, smoke


async def test_an_origin_that_may_get_no_token_is_told(pair: Pair) -> None:
    refused = await smoke_json(pair.url, state=pair.state)
    assert [check["outcome"] for check in refused["checks"]] == ["ok", "failed", *["skipped"] * 4]
    assert "edge.allowed_origins" in refused["checks"][1]["detail"] and refused["ok"] is False


async def test_cancel_stops_the_model(pair: Pair, runtime: FakeRuntime) -> None:
    runtime.script = [normal(3), normal(3), normal(400, 0.05), normal(3)]
    smoke = await run("smoke", pair.url, "--key", pair.key, state=pair.state)
    assert smoke.status == 0 and "stopped after" in smoke.out, smoke
    assert runtime.aborted == 1
    await pair.idle()


async def test_an_edge_without_a_model_fails_health_and_chat(pair: Pair, runtime: FakeRuntime) -> None:
    await runtime.kill()
    async with asyncio.timeout(10):
        while True:
            async with pair.client.get(pair.url + "/healthz") as response:
                if response.status == 503:
                    break
            await asyncio.sleep(0.05)
    smoke = await run("smoke", pair.url, "--key", pair.key, state=pair.state)
    found = outcomes(smoke)
    assert smoke.status == 1 and found["token"] == "[ok]", smoke
    assert [found[name] for name in ("health", "chat", "stream", "cancel")] == ["[x]"] * 4
    assert "cannot answer a chat (unavailable)" in smoke.out


async def test_nobody_there(tmp_path: Path) -> None:
    found = await smoke_json("http://127.0.0.1:9", state=tmp_path)
    assert [check["outcome"] for check in found["checks"]] == ["failed", "failed", *["skipped"] * 4]
    assert "Nothing answers at http://127.0.0.1:9 (" in found["checks"][0]["detail"]


@pytest.mark.parametrize("url", ["127.0.0.1:8700", "ws://127.0.0.1", "http://a.test/?x=1"])
async def test_what_is_no_url_is_a_usage_error(tmp_path: Path, url: str) -> None:
    smoke = await run("smoke", url, state=tmp_path)
    assert (smoke.status, smoke.out) == (2, "") and "URL" in smoke.err


# -- edges that are not well ------------------------------------------------------------------------------------------


async def ok(request: web.Request) -> web.StreamResponse:
    return web.json_response({"status": "ok", "version": "0.1.0"})


async def token(request: web.Request) -> web.StreamResponse:
    return web.json_response({"token": "hlt_x", "expires_in": 600, "principal": {"plan": "anonymous"}})


async def not_running(request: web.Request) -> web.StreamResponse:
    error = {"message": "No chat with this id is running for you.", "type": "x", "code": "not_found", "param": None}
    return web.json_response({"error": error, "request_id": "r"}, status=404)


async def no_conversations(request: web.Request) -> web.StreamResponse:
    error = {"message": "This node keeps none.", "type": "x", "code": "not_supported", "param": None}
    return web.json_response({"error": error, "request_id": "r"}, status=404)


async def no_content(request: web.Request) -> web.StreamResponse:
    return web.Response(status=204)


@asynccontextmanager
async def an_edge(stream: Handler, stop: Handler = not_running) -> AsyncIterator[str]:
    """The URL of a server that does everything as an edge does, and streams with ``stream``."""

    async def chat(request: web.Request) -> web.StreamResponse:
        if (await request.json()).get("stream") is False:
            message = {"role": "assistant", "content": "Well."}
            usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
            return web.json_response({"choices": [{"message": message}], "usage": usage, "model": "m"})
        return await stream(request)

    app = web.Application()
    app.router.add_get("/healthz", ok)
    app.router.add_post("/v1/token", token)
    app.router.add_post("/v1/chat", chat)
    app.router.add_delete("/v1/chat/{id}", stop)
    app.router.add_post("/api/chat", no_conversations)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def streaming(*events: bytes, before: float = 0.0, between: float = 0.0) -> Handler:
    """Answers with ``events``, ``between`` seconds apart."""

    async def handler(request: web.Request) -> web.StreamResponse:
        headers = {"content-type": "text/event-stream", "hearthlink-chat-id": "c"}
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        await asyncio.sleep(before)
        for event in events:
            await response.write(event)
            await asyncio.sleep(between)
        return response

    return handler


ANSWER = [chunk({"content": word}) for word in words(8)]


async def test_a_good_stream_passes(tmp_path: Path) -> None:
    async with an_edge(streaming(*ANSWER, DONE, between=0.02)) as url:
        found = await smoke_json(url, state=tmp_path)
    assert found["ok"] and "8 events" in found["checks"][3]["detail"]
    assert "was over before it could be stopped" in found["checks"][4]["detail"]
    assert found["checks"][5]["detail"] == "the node keeps no conversations"


@pytest.mark.parametrize(
    ("stream", "sentence"),
    [
        (streaming(*ANSWER), "The answer was cut: the stream ended without its last event."),
        (streaming(DONE), "The stream had no words in it."),
        (streaming(b"data: nonsense\n\n"), "The stream is not one of a Hearthlink edge."),
        (streaming(*ANSWER, DONE, before=1.3), "something between here and the edge collects them"),
    ],
)
async def test_a_bad_stream_is_told(tmp_path: Path, stream: Handler, sentence: str) -> None:
    async with an_edge(stream) as url:
        found = await smoke_json(url, state=tmp_path)
    check = found["checks"][3]
    assert check["name"] == "stream" and check["outcome"] == "failed" and sentence in check["detail"]


async def test_a_cancel_that_stops_nothing_is_told(tmp_path: Path) -> None:
    quick, slow = streaming(*ANSWER, DONE), streaming(*ANSWER, DONE, between=0.8)
    streams = iter((quick, slow))
    async with an_edge(lambda request: next(streams)(request), stop=no_content) as url:
        found = await smoke_json(url, state=tmp_path)
    assert [check["outcome"] for check in found["checks"]] == ["ok", "ok", "ok", "ok", "failed", "ok"]
    assert "The answer went on" in found["checks"][4]["detail"]


async def test_something_else_at_the_url_is_told(tmp_path: Path) -> None:
    async def page(request: web.Request) -> web.StreamResponse:
        return web.Response(text="<h1>It works!</h1>", content_type="text/html", status=502)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", page)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        smoke = await run("smoke", f"http://127.0.0.1:{runner.addresses[0][1]}", state=tmp_path)
    finally:
        await runner.cleanup()
    assert smoke.status == 1 and "[ok]" not in smoke.out
    assert "answered HTTP 502, but not as a Hearthlink edge does: <h1>It works!</h1>" in smoke.out
