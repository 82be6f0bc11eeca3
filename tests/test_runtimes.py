"""The ``openai`` runtime against a scriptable server: states and their sentences, requests, cancel, connections."""

from __future__ import annotations

import asyncio
import time

import pytest

from node.runtimes.base import Generation
from node.runtimes.openai import OpenAIRuntime, api_base
from node.runtimes.request_body import request_body
from node.runtimes.transport import Transport
from node.runtimes.watched import Watched
from shared.contract.errors import ApiError
from tests.fake_runtime import Exchange, FakeRuntime
from tests.fake_scripts import normal, text
from tests.runtime_support import REQUEST, ask, is_ready, is_unavailable, read_all, running, said

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
    with pytest.raises(RuntimeError, match="Session is closed"):
        await failing.transport.ask("http://127.0.0.1:9/", {}, 1.0)
    await failing.close()


# -- states -----------------------------------------------------------------------------------------------------------


async def test_llama_cpp_is_ready_with_its_slots_and_context() -> None:
    async with FakeRuntime(slots=3, context=2048) as fake, running(runtime := OpenAIRuntime(fake.url)) as until:
        assert runtime.status().state == "starting"
        status = await until(is_ready)
        assert (runtime.kind, status.slots, status.default_model) == ("llama.cpp", 3, "fake-model")
        assert [(model.id, model.context) for model in status.models] == [("fake-model", 2048)]
        assert "/slots" not in [exchange.path for exchange in fake.exchanges], "asking it wakes a sleeping model"


async def test_settings_replace_slots_and_default_model() -> None:
    async with (
        FakeRuntime(models=["one", "two"]) as fake,
        running(OpenAIRuntime(fake.url, default_model="two", slots=9)) as until,
    ):
        status = await until(is_ready)
        assert (status.slots, status.default_model, status.models[0].id) == (9, "two", "two")


async def test_nobody_there_says_so_and_is_found_when_it_comes() -> None:
    async with FakeRuntime() as fake:
        await fake.kill()
        async with running(runtime := OpenAIRuntime(fake.url)) as until:
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
    async with FakeRuntime() as fake, running(runtime := OpenAIRuntime(fake.url)) as until:
        await until(is_ready)
        await fake.kill()
        with pytest.raises(ApiError) as refused:
            await read_all(runtime, ask())
        assert refused.value.code == "node_unavailable"
        status = await until(is_unavailable)
        assert status.default_model == "fake-model"


async def test_loading_is_told_as_loading() -> None:
    async with FakeRuntime(loading=True) as fake, running(runtime := OpenAIRuntime(fake.url)) as until:
        status = await until(lambda status: status.state == "loading")
        assert "loading" in status.reason
        with pytest.raises(ApiError) as refused:
            await read_all(runtime, ask())
        assert refused.value.code == "model_loading" and refused.value.retry_after
        fake.loading = False
        await until(is_ready)


async def test_a_key_is_sent_and_its_absence_explained() -> None:
    async with FakeRuntime(key="right") as fake:
        async with running(OpenAIRuntime(fake.url)) as until:
            assert "node.runtime.key" in (await until(is_unavailable)).reason
        async with running(runtime := OpenAIRuntime(fake.url, key="right")) as until:
            await until(is_ready)
            assert said(await read_all(runtime, ask())) == text(5)


async def test_something_else_on_the_port() -> None:
    routes = {"/v1/models": {"error": "Unexpected endpoint or method. (GET /v1/models)"}}
    async with FakeRuntime(server_header=None, routes=routes) as fake, running(OpenAIRuntime(fake.url)) as until:
        assert "no OpenAI-compatible server" in (await until(is_unavailable)).reason


async def test_an_absurd_description_of_models_is_survived() -> None:
    routes = {"/api/v1/models": {"models": [{"type": "llm", "key": "x", "loaded_instances": 5}]}}
    async with FakeRuntime(server_header=None, routes=routes) as fake, running(OpenAIRuntime(fake.url)) as until:
        assert "unknown here" in (await until(is_unavailable)).reason
        fake.routes.clear()
        await until(is_ready)


# -- requests ---------------------------------------------------------------------------------------------------------


def test_the_body_holds_known_fields_only() -> None:
    message: dict[str, str] = {"role": "user", "content": "hi", "name": "evil"}
    generation = Generation([message], "m", 5, temperature=0.5, stop=["x"])
    assert request_body(generation, "llama.cpp") == {
        "model": "m",
        "messages": [{"role": "user", "content": "hi"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 5,
        "temperature": 0.5,
        "stop": ["x"],
        "return_progress": True,
    }
    assert request_body(generation, "OpenAI")["max_completion_tokens"] == 5


async def test_the_runtime_sees_our_request_id_made_unique_and_nothing_else_of_the_caller() -> None:
    async with FakeRuntime() as fake, running(runtime := OpenAIRuntime(fake.url, key="k")) as until:
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
    async with FakeRuntime(script) as fake, running(runtime := OpenAIRuntime(fake.url)) as until:
        await until(is_ready)
        raw = await read_all(runtime, ask())
        assert said(raw) == text(5) and raw.endswith(b"data: [DONE]\n\n")


async def test_events_are_read_before_the_last_is_made() -> None:
    async with FakeRuntime("stall_mid_stream") as fake, running(runtime := OpenAIRuntime(fake.url)) as until:
        await until(is_ready)
        async with runtime.chat(ask(), REQUEST) as stream:
            assert stream.content_type == "text/event-stream"
            assert await stream.read()


# -- cancel and connections -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", ["stall_before_headers", "stall_mid_stream", "progress_forever", "endless_line"])
async def test_leaving_closes_the_runtimes_side_within_100_ms(script: str) -> None:
    async with FakeRuntime(script) as fake, running(runtime := OpenAIRuntime(fake.url)) as until:
        await until(is_ready)
        task = asyncio.create_task(read_all(runtime, ask()))
        exchange = await fake.chat(0)
        await asyncio.sleep(0.05)
        left = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await exchange.peer_left() - left < 0.1
        await fake.idle()


async def test_connections_are_kept_after_a_whole_answer_and_only_then() -> None:
    async with FakeRuntime() as fake, running(runtime := OpenAIRuntime(fake.url)) as until:
        await until(is_ready)
        before = fake.accepted
        for _ in range(5):
            await read_all(runtime, ask())
        assert fake.accepted <= before + 1
        fake.script = "stall_mid_stream"
        async with runtime.chat(ask(), REQUEST) as stream:
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

    async with FakeRuntime(answer_and_hang_up) as fake, running(runtime := OpenAIRuntime(fake.url)) as until:
        await until(is_ready)
        await read_all(runtime, ask())
        assert said(await read_all(runtime, ask())) == text(5)
        assert len(fake.chats) == 3


async def test_nor_are_all_of_them() -> None:
    used: set[object] = set()

    async def answer_once_on_each_connection(exchange: Exchange) -> None:
        if exchange._connection in used:
            await exchange.reset()
        else:
            used.add(exchange._connection)
            await normal(5, 0.01)(exchange)

    async with (
        FakeRuntime(answer_once_on_each_connection) as fake,
        running(runtime := OpenAIRuntime(fake.url)) as until,
    ):
        await until(is_ready)
        await asyncio.gather(*(read_all(runtime, ask()) for _ in range(4)))
        assert said(await read_all(runtime, ask())) == text(5)
        assert len(fake.chats) >= 4 + 4, "every kept one was tried"


async def test_two_hundred_cancels_leave_no_connection() -> None:
    async with FakeRuntime("slow") as fake, running(runtime := OpenAIRuntime(fake.url)) as until:
        await until(is_ready)
        tasks = [asyncio.create_task(read_all(runtime, ask())) for _ in range(200)]
        for turn, task in enumerate(tasks):
            if turn % 20 == 0:
                await asyncio.sleep(0.01)
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await fake.idle()
        await fake.until(lambda: fake.open_connections <= 1)  # the one that polls
