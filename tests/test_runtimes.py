"""A server as the runtime, against a scriptable server: states and their sentences, requests, cancel, connections."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from node.runtime import Api, Inference
from node.runtimes import server as server_module
from node.runtimes.client import Client
from node.runtimes.context_window import fitted_answer
from node.runtimes.dialect import Dialect
from node.runtimes.llama_cpp import LlamaCpp
from node.runtimes.openai_compatible import OpenAI
from node.runtimes.server import FAR_POLL_SECONDS, PATIENCE, READY_POLL_SECONDS, ServerRuntime, api_base
from node.runtimes.transport import Transport
from node.runtimes.watched import Watched
from shared.contract.errors import ApiError
from shared.contract.snapshot import ModelInfo
from tests.fake_presets import PRESETS
from tests.fake_runtime import Exchange, FakeRuntime
from tests.fake_scripts import normal, text
from tests.runtime_support import REQUEST, ask, is_ready, is_unavailable, read_all, running, said
from tests.waiting import HANGS, Stopwatch

# -- its task and its connections --------------------------------------------------------------------------------------


class Failing(Watched):
    """Its task ends at once, with an error."""

    transport: Transport

    def start(self) -> None:
        self._begin(self._fail, "failing")

    async def _fail(self, transport: Transport) -> None:
        self.transport = transport
        raise OSError("it broke")


async def test_connections_are_closed_after_a_task_that_failed() -> None:
    failing = Failing()
    failing.start()
    await asyncio.sleep(0)
    with pytest.raises(OSError, match="it broke"):
        await failing.close()
    with pytest.raises(OSError, match="while asking"):
        await failing.transport.ask("http://127.0.0.1:9/", {}, 1.0)
    await failing.close()


# -- states -----------------------------------------------------------------------------------------------------------


async def test_llama_cpp_is_ready_with_its_slots_and_context() -> None:
    async with FakeRuntime(slots=3, context=2048) as fake, running(runtime := ServerRuntime(fake.url)) as until:
        assert runtime.status().state == "starting"
        status = await until(is_ready)
        assert (runtime.kind, status.slots, status.default_model) == ("llama.cpp", 3, "fake-model")
        assert [(model.id, model.context) for model in status.models] == [("fake-model", 2048)]
        assert "/slots" not in [exchange.path for exchange in fake.exchanges], "asking it wakes a sleeping model"


async def test_settings_replace_slots_and_default_model() -> None:
    async with (
        FakeRuntime(models=["one", "two"]) as fake,
        running(ServerRuntime(fake.url, default_model="two", slots=9)) as until,
    ):
        status = await until(is_ready)
        assert (status.slots, status.default_model, status.models[0].id) == (9, "two", "two")


async def test_nobody_there_says_so_and_is_found_when_it_comes() -> None:
    async with FakeRuntime() as fake:
        await fake.kill()
        async with running(runtime := ServerRuntime(fake.url)) as until:
            status = await until(is_unavailable)
            assert fake.url in status.reason and "Start the runtime" in status.reason
            with pytest.raises(ApiError) as refused:
                await read_all(runtime, ask())
            assert refused.value.code == "node_unavailable"
            assert fake.url not in refused.value.message, "addresses are for the owner only"
            await fake.listen()
            await until(is_ready)
            assert said(await read_all(runtime, ask())) == text(5)


async def test_a_runtime_that_dies_is_noticed_by_the_next_chat() -> None:
    async with FakeRuntime() as fake, running(runtime := ServerRuntime(fake.url)) as until:
        await until(is_ready)
        await fake.kill()
        with pytest.raises(ApiError) as refused:
            await read_all(runtime, ask())
        assert refused.value.code == "node_unavailable"
        status = await until(is_unavailable)
        assert status.default_model == "fake-model"


async def test_loading_is_told_as_loading() -> None:
    async with FakeRuntime(loading=True) as fake, running(runtime := ServerRuntime(fake.url)) as until:
        status = await until(lambda status: status.state == "loading")
        assert "loading" in status.reason
        with pytest.raises(ApiError) as refused:
            await read_all(runtime, ask())
        assert refused.value.code == "model_loading" and refused.value.retry_after
        fake.loading = False
        await until(is_ready)


async def test_a_key_is_sent_and_its_absence_explained() -> None:
    async with FakeRuntime(key="right") as fake:
        async with running(ServerRuntime(fake.url)) as until:
            assert "node.runtime.key" in (await until(is_unavailable)).reason
        async with running(runtime := ServerRuntime(fake.url, key="right")) as until:
            await until(is_ready)
            assert said(await read_all(runtime, ask())) == text(5)


async def test_something_else_on_the_port() -> None:
    routes = {"/v1/models": {"error": "Unexpected endpoint or method. (GET /v1/models)"}}
    async with FakeRuntime(server_header=None, routes=routes) as fake, running(ServerRuntime(fake.url)) as until:
        assert "no OpenAI-compatible server" in (await until(is_unavailable)).reason


async def test_an_absurd_description_of_models_is_survived() -> None:
    routes = {"/v1/models": {"data": [{"id": "x", "status": {"value": "loaded", "args": 5}}]}}
    async with FakeRuntime(routes=routes) as fake, running(ServerRuntime(fake.url)) as until:
        assert "unknown here" in (await until(is_unavailable)).reason
        fake.routes.clear()
        await until(is_ready)


# -- requests ---------------------------------------------------------------------------------------------------------


def body_of(dialect: type[Dialect], inference: Inference) -> dict[str, Any]:
    """What a server of this kind is sent, without one."""
    return dialect(cast(Client, None)).body(inference, ModelInfo(inference.model))


def test_the_body_holds_known_fields_only() -> None:
    inference = ask("m", "hi", max_tokens=5, temperature=0.5, stop=["x"], invented=1)
    assert body_of(LlamaCpp, inference) == {
        "model": "m",
        "messages": [{"role": "user", "content": "hi"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 5,
        "temperature": 0.5,
        "stop": ["x"],
        "return_progress": True,
    }
    assert body_of(OpenAI, inference)["max_completion_tokens"] == 5


@pytest.mark.parametrize(
    ("api", "longest", "more"),
    [
        ("chat", "max_tokens", {"stream_options", "return_progress", "id_slot"}),
        ("completions", "max_tokens", {"stream_options", "return_progress", "id_slot"}),
        ("responses", "max_output_tokens", {"return_progress", "id_slot"}),
        ("messages", "max_tokens", set()),
    ],
)
def test_each_way_of_asking_has_its_own_words(api: Api, longest: str, more: set[str]) -> None:
    """Slots are chosen and prompts interrupted where llama.cpp b11549 was seen to do so."""
    body = body_of(LlamaCpp, Inference(api, "m", {"told": 1}, 5, {"stop": ["x"]}, slot=2))
    stop = "stop_sequences" if api == "messages" else "stop"
    assert body.keys() == {"model", "told", "stream", longest, stop, *more} and body[longest] == 5
    assert body.get("id_slot", 2) == 2


def test_what_answers_with_one_object_is_not_streamed() -> None:
    inference = Inference("embeddings", "m", {"input": ["x"]})
    assert body_of(LlamaCpp, inference) == {"model": "m", "input": ["x"]}


def test_of_images_the_bytes_are_no_tokens_and_of_tools_all_text_is() -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 3000}}
    seen = Inference("chat", "m", {"messages": [{"role": "user", "content": [picture]}]}, 1000)
    assert fitted_answer(seen, 500) == 500 - 8
    tools = [{"type": "function", "function": {"name": "x" * 30, "description": "y" * 30}}]
    assert fitted_answer(ask(max_tokens=1000, tools=tools), 500) == 500 - 8 - (5 + 60) // 3
    assert fitted_answer(seen, 0) == 1000 and fitted_answer(seen, 5) == 1


async def test_the_runtime_sees_our_request_id_made_unique_and_nothing_else_of_the_caller() -> None:
    async with FakeRuntime() as fake, running(runtime := ServerRuntime(fake.url, key="k")) as until:
        await until(is_ready)
        await read_all(runtime, ask())
        await read_all(runtime, ask())
        ids = [exchange.headers["x-request-id"] for exchange in fake.chats]
        assert len(set(ids)) == 2 and all(name.startswith(f"{REQUEST}-") for name in ids)
        assert set(fake.chats[0].headers) <= {
            "host", "accept", "accept-encoding", "user-agent", "authorization", "content-type", "content-length",
            "x-request-id",
        }  # fmt: skip


@pytest.mark.parametrize(
    ("given", "base"),
    [
        ("http://127.0.0.1:1234", "http://127.0.0.1:1234/v1"),
        ("http://127.0.0.1:1234/", "http://127.0.0.1:1234/v1"),
        ("http://127.0.0.1:1234/v1/", "http://127.0.0.1:1234/v1"),
        ("http://127.0.0.1:12434/engines/v1", "http://127.0.0.1:12434/engines/v1"),
        ("http://127.0.0.1:12434/engines", "http://127.0.0.1:12434/engines/v1"),
        ("https://api.example.com/v1beta/openai/", "https://api.example.com/v1beta/openai"),
    ],
)
def test_urls_with_and_without_version(given: str, base: str) -> None:
    assert api_base(given) == base


@pytest.mark.parametrize("script", ["normal", "split_every_byte", "half_characters"])
async def test_the_bytes_arrive_as_they_were_sent(script: str) -> None:
    async with FakeRuntime(script) as fake, running(runtime := ServerRuntime(fake.url)) as until:
        await until(is_ready)
        raw = await read_all(runtime, ask())
        assert said(raw) == text(5) and raw.endswith(b"data: [DONE]\n\n")


async def test_events_are_read_before_the_last_is_made() -> None:
    async with FakeRuntime("stall_mid_stream") as fake, running(runtime := ServerRuntime(fake.url)) as until:
        await until(is_ready)
        async with runtime.stream(ask(), REQUEST) as stream:
            assert stream.content_type == "text/event-stream"
            assert await stream.read()


# -- cancel and connections -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", ["stall_before_headers", "stall_mid_stream", "progress_forever", "endless_line"])
async def test_leaving_closes_the_runtimes_side_within_100_ms(script: str) -> None:
    async with FakeRuntime(script) as fake, running(runtime := ServerRuntime(fake.url)) as until:
        await until(is_ready)
        task = asyncio.create_task(read_all(runtime, ask()))
        exchange = await fake.chat(0)
        await asyncio.sleep(0.05)
        left = Stopwatch()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await exchange.peer_left()
        assert left.seconds < 0.1
        await fake.idle()


async def test_connections_are_kept_after_a_whole_answer_and_only_then() -> None:
    async with FakeRuntime() as fake, running(runtime := ServerRuntime(fake.url)) as until:
        await until(is_ready)
        before = fake.accepted
        for _ in range(5):
            await read_all(runtime, ask())
        assert fake.accepted <= before + 1
        fake.script = "stall_mid_stream"
        async with runtime.stream(ask(), REQUEST) as stream:
            await stream.read()
        fake.script = "normal"
        used = fake.accepted
        await read_all(runtime, ask())
        assert fake.accepted <= used + 1
        assert said(await read_all(runtime, ask())) == text(5)


async def test_a_kept_connection_that_the_runtime_dropped_is_no_error() -> None:
    async def answer_and_hang_up(exchange: Exchange) -> None:
        if len(fake.chats) == 2:
            await exchange.reset()
        else:
            await normal(5)(exchange)

    async with FakeRuntime(answer_and_hang_up) as fake, running(runtime := ServerRuntime(fake.url)) as until:
        await until(is_ready)
        await read_all(runtime, ask())
        assert said(await read_all(runtime, ask())) == text(5)
        assert len(fake.chats) == 3


async def test_nor_are_all_of_them() -> None:
    dead: set[object] = set()

    async def answer_on_new_connections(exchange: Exchange) -> None:
        await (exchange.reset() if exchange._connection in dead else normal(5, 0.01)(exchange))

    async with (
        FakeRuntime(answer_on_new_connections) as fake,
        running(runtime := ServerRuntime(fake.url)) as until,
    ):
        await until(is_ready)
        await asyncio.gather(*(read_all(runtime, ask()) for _ in range(4)))
        dead.update(fake.connections)
        assert said(await read_all(runtime, ask())) == text(5)
        assert len(fake.chats) == 4 + 2, "the second time over a new one"


async def test_what_may_be_an_order_is_never_given_twice() -> None:
    """LM Studio makes a second instance of a model that is loaded twice (runtimes §1.3)."""
    async with FakeRuntime() as fake:
        transport = Transport()
        try:
            await asyncio.gather(*(transport.ask(f"{fake.url}/health", {}, 5) for _ in range(3)))
            fake.routes["/load"] = PRESETS["reset_before_headers"]
            with pytest.raises(OSError, match="while asking the runtime"):
                await transport.ask(f"{fake.url}/load", {}, 5, {"model": "m"})
            assert [exchange.path for exchange in fake.exchanges].count("/load") == 1
        finally:
            await transport.close()


@pytest.mark.parametrize("script", ["stall_mid_stream", "stall_before_headers"])
async def test_what_runs_breaks_when_the_runtime_is_closed(script: str) -> None:
    async with FakeRuntime(script) as fake:
        async with running(runtime := ServerRuntime(fake.url)) as until:
            await until(is_ready)
            asked = asyncio.create_task(read_all(runtime, ask()))
            await fake.chat(0)
            if script == "stall_mid_stream":
                await fake.until(lambda: fake.chats[0].sent > 300)
        with pytest.raises(ApiError) as broken:
            await asyncio.wait_for(asked, HANGS)
        assert broken.value.code == "runtime_error" and len(fake.chats) == 1


async def test_a_slow_read_leaves_nothing_behind() -> None:
    """An answer that leaves as a whole is looked at 20 times a second, for minutes."""
    async with FakeRuntime("stall_mid_stream") as fake, running(runtime := ServerRuntime(fake.url)) as until:
        await until(is_ready)
        async with runtime.stream(ask(), REQUEST) as stream:
            await stream.read_slowly(0.01)
            callbacks = stream._content._eof_callbacks  # type: ignore[attr-defined]  # aiohttp's, of a private field
            before = len(callbacks)
            for _ in range(20):
                await stream.read_slowly(0)
            assert len(callbacks) == before


@pytest.mark.parametrize("status", [429, 500, 502])
async def test_a_failure_of_its_own_is_forgiven_for_a_while(status: int) -> None:
    """A public API counts requests, and a proxy restarts what is behind it."""
    async with FakeRuntime(server_header=None) as fake, running(runtime := ServerRuntime(fake.url)) as until:
        await until(is_ready)
        fake.routes["/v1/models"] = (status, {"error": {"message": "Rate limit reached", "type": "requests"}})
        for _ in range(PATIENCE - 1):
            await runtime.look()
            assert said(await read_all(runtime, ask())) == text(5)
        await runtime.look()
        reason = (await until(is_unavailable)).reason
        assert f"HTTP {status}" in reason and "node.runtime.url" not in reason
        del fake.routes["/v1/models"]
        await until(is_ready)


async def test_what_is_noticed_right_after_a_look_is_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not at the next regular one."""
    monkeypatch.setattr(server_module, "READY_POLL_SECONDS", 3600.0)
    monkeypatch.setattr(server_module, "MIN_PAUSE_SECONDS", 0.3)
    async with FakeRuntime() as fake, running(runtime := ServerRuntime(fake.url)) as until:
        await until(is_ready)
        await fake.kill()
        with pytest.raises(ApiError):
            await read_all(runtime, ask())
        await until(is_unavailable)


@pytest.mark.parametrize(
    ("url", "seconds"),
    [
        ("http://127.0.0.1:1", READY_POLL_SECONDS),
        ("http://localhost:1", READY_POLL_SECONDS),
        ("https://api.example.com", FAR_POLL_SECONDS),
    ],
)
def test_a_public_api_is_seldom_asked_for_its_models(url: str, seconds: float) -> None:
    assert ServerRuntime(url)._ready_pause() == seconds


async def test_two_hundred_cancels_leave_no_connection() -> None:
    async with FakeRuntime("slow") as fake, running(runtime := ServerRuntime(fake.url)) as until:
        await until(is_ready)
        tasks = [asyncio.create_task(read_all(runtime, ask())) for _ in range(200)]
        for turn, task in enumerate(tasks):
            if turn % 20 == 0:
                await asyncio.sleep(0.01)
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await fake.idle()
        await fake.until(lambda: fake.open_connections <= 1)  # the one that polls
