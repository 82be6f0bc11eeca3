"""The unmodified ``openai`` package: it streams, gets typed errors with the request id, retries what is worth it, and
leaving its streams stops the model."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import openai
import pytest
import pytest_asyncio
from openai.types.chat import ChatCompletionMessageParam

from tests.fake_runtime import FakeRuntime
from tests.fake_scripts import normal, refuse, stall_mid_stream, text
from tests.pair import ORIGIN, Pair, create_key, running_pair
from tests.waiting import Stopwatch

pytestmark = pytest.mark.asyncio(loop_scope="module")

PROMISE = 0.1  # seconds between leaving and the runtime's seeing it
HOME = "chat:home"
ASKED: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Where to?"}]
USAGE = (7, 5, 12)


def async_client(pair: Pair, key: str | None = None, **options: Any) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=pair.url + "/v1", api_key=key or pair.key, **{"max_retries": 0, **options})


@pytest_asyncio.fixture(loop_scope="module")
async def client(shared_pair: Pair) -> AsyncIterator[openai.AsyncOpenAI]:
    async with async_client(shared_pair) as client:
        yield client


async def test_a_whole_answer(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model=HOME, messages=ASKED)
    assert answer.choices[0].message.content == text(5)
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == USAGE
    assert answer._request_id is not None and len(answer._request_id) == 22


async def test_a_stream(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model=HOME, messages=ASKED, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == text(5)
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[0].choices[0].delta.role == "assistant"
    usage = chunks[-1].usage
    assert usage is not None and (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == USAGE


async def test_the_streaming_helper(client: openai.AsyncOpenAI) -> None:
    async with client.chat.completions.stream(model=HOME, messages=ASKED) as stream:
        said = [event.delta async for event in stream if event.type == "content.delta"]
        final = await stream.get_final_completion()
    assert "".join(said) == text(5) == final.choices[0].message.content


async def test_parameters_of_the_sdk_that_mean_nothing_here(
    client: openai.AsyncOpenAI, shared_runtime: FakeRuntime
) -> None:
    raw = await client.chat.completions.with_raw_response.create(
        model=HOME,
        messages=ASKED,
        frequency_penalty=0.5,
        store=False,
        reasoning_effort="low",
        user="ann",
        metadata={"a": "b"},
        max_completion_tokens=9,
        seed=3,
    )
    assert raw.parse().choices[0].message.content == text(5)
    dropped = raw.headers["hearthlink-dropped-params"].split(", ")
    assert sorted(dropped) == ["store"]
    assert shared_runtime.chats[0].json["max_tokens"] == 9
    assert raw.headers["hearthlink-chat-id"]


async def test_models(client: openai.AsyncOpenAI) -> None:
    models = [model.id async for model in client.models.list()]
    assert models == ["chat:home", "chat:somethingFun", "chat:whatToOrder", "chat:whereToGo", "fake-model"]
    assert (await client.models.retrieve("fake-model")).owned_by == "hearthlink"
    with pytest.raises(openai.NotFoundError) as failed:
        await client.models.retrieve("nope")
    assert failed.value.code == "model_not_found"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("script", "fields", "error", "code"),
    [
        ("normal", {"model": "nope"}, openai.NotFoundError, "model_not_found"),
        ("normal", {"model": "chat:nope"}, openai.NotFoundError, "chat_type_not_found"),
        ("normal", {"temperature": 9}, openai.BadRequestError, "invalid_request"),
        ("llamacpp_context", {}, openai.BadRequestError, "context_length_exceeded"),
        ("vllm_busy", {}, openai.InternalServerError, "overloaded"),
        ("loading", {}, openai.InternalServerError, "model_loading"),
        ("html", {}, openai.InternalServerError, "upstream_invalid"),
    ],
)
async def test_errors_are_typed_and_carry_the_request_id(
    client: openai.AsyncOpenAI,
    shared_runtime: FakeRuntime,
    script: str,
    fields: dict[str, Any],
    error: type[openai.APIStatusError],
    code: str,
    stream: bool,
) -> None:
    shared_runtime.script = script
    with pytest.raises(error) as failed:
        await client.chat.completions.create(**{"model": HOME, "messages": ASKED, "stream": stream, **fields})
    assert failed.value.code == code
    assert failed.value.request_id == failed.value.response.headers["x-request-id"]
    assert failed.value.request_id == failed.value.response.json()["request_id"]
    assert failed.value.message


async def test_errors_of_identity(shared_pair: Pair, shared_runtime: FakeRuntime) -> None:
    async with async_client(shared_pair, "hlk_wrong") as wrong:
        with pytest.raises(openai.AuthenticationError) as failed:
            await wrong.chat.completions.create(model=HOME, messages=ASKED)
        assert (failed.value.code, failed.value.request_id is not None) == ("invalid_token", True)
    page = {"Origin": ORIGIN}
    async with async_client(shared_pair, await shared_pair.token(), default_headers=page) as anonymous:
        assert (await anonymous.chat.completions.create(model=HOME, messages=ASKED)).choices
        with pytest.raises(openai.PermissionDeniedError) as refused:
            await anonymous.chat.completions.create(model="fake-model", messages=ASKED)
        assert refused.value.code == "model_not_allowed"
    assert len(shared_runtime.chats) == 1


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("reset_mid_stream", "runtime_error"),
        ("eof_without_done", "upstream_incomplete"),
        ("error_data_then_done", "runtime_error"),
    ],
)
async def test_an_error_in_mid_stream_is_raised(
    client: openai.AsyncOpenAI, shared_runtime: FakeRuntime, script: str, code: str
) -> None:
    shared_runtime.script = script
    said = ""
    with pytest.raises(openai.APIError) as failed:
        async for chunk in await client.chat.completions.create(model=HOME, messages=ASKED, stream=True):
            said += chunk.choices[0].delta.content or ""
    assert said == text(2)
    assert failed.value.code == code
    assert failed.value.message


async def test_a_503_is_retried_after_the_time_it_asks_for(shared_pair: Pair, shared_runtime: FakeRuntime) -> None:
    shared_runtime.script = [refuse(503, {"error": {"message": "busy"}}, [("Retry-After", "1")]), "normal"]
    began = time.monotonic()
    async with async_client(shared_pair, max_retries=1) as client:
        answer = await client.chat.completions.create(model=HOME, messages=ASKED)
    assert answer.choices[0].message.content == text(5)
    assert len(shared_runtime.chats) == 2
    assert time.monotonic() - began >= 1


async def test_a_quota_that_is_used_up_is_not_retried(tmp_path: Path) -> None:
    key = create_key(tmp_path, "tiny")
    async with (
        FakeRuntime() as runtime,
        running_pair(runtime.url, state=tmp_path, plans={"tiny": {"tokens_per_day": 100}}) as pair,
        async_client(pair, key, max_retries=5) as client,
    ):
        with pytest.raises(openai.RateLimitError) as failed:
            await client.chat.completions.create(model=HOME, messages=ASKED)
        assert failed.value.code == "quota_exceeded"
        assert failed.value.response.headers["x-should-retry"] == "false"
        assert len(pair.audit) == 1


@pytest.mark.parametrize("how", ["break", "close", "cancel"])
async def test_leaving_a_stream_stops_the_model(
    shared_pair: Pair, client: openai.AsyncOpenAI, shared_runtime: FakeRuntime, how: str
) -> None:
    shared_runtime.script = normal(50, 0.02)
    heard = asyncio.Event()

    async def listen() -> None:
        stream = await client.chat.completions.create(model=HOME, messages=ASKED, stream=True)
        async with stream:
            async for chunk in stream:
                if chunk.choices[0].delta.content:
                    heard.set()
                    if how == "break":
                        break
                    if how == "close":
                        await stream.close()
                        break

    listening = asyncio.create_task(listen())
    await heard.wait()
    left = Stopwatch()
    if how == "cancel":
        listening.cancel()
    await (await shared_runtime.chat(0)).peer_left()
    assert left.seconds < PROMISE
    await asyncio.gather(listening, return_exceptions=True)
    await shared_pair.idle()


async def test_the_synchronous_client(shared_pair: Pair, shared_runtime: FakeRuntime) -> None:
    def session() -> Stopwatch:
        """Reads a stream, lists models, meets an error, and leaves a stream; runs from the moment it left."""
        options = {"base_url": shared_pair.url + "/v1", "api_key": shared_pair.key, "max_retries": 0}
        with openai.OpenAI(**cast(Any, options)) as client:
            stream = client.chat.completions.create(model=HOME, messages=ASKED, stream=True)
            assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == text(5)
            assert "fake-model" in [model.id for model in client.models.list()]
            with pytest.raises(openai.NotFoundError) as failed:
                client.chat.completions.create(model="nope", messages=ASKED)
            assert failed.value.request_id
            shared_runtime.script = stall_mid_stream(3)
            with client.chat.completions.create(model=HOME, messages=ASKED, stream=True) as endless:
                for chunk in endless:
                    if chunk.choices[0].delta.content:
                        break
                left = Stopwatch()
            return left

    left = await asyncio.to_thread(session)
    await (await shared_runtime.chat(1)).peer_left()
    assert left.seconds < PROMISE
    await shared_pair.idle()


async def test_heartbeats_are_nothing_to_the_sdk(tmp_path: Path) -> None:
    async with (
        FakeRuntime(normal(2, 1.1)) as runtime,
        running_pair(runtime.url, state=tmp_path, edge={"heartbeat": 0.5}) as pair,
        async_client(pair) as client,
    ):
        chunks = [
            chunk async for chunk in await client.chat.completions.create(model=HOME, messages=ASKED, stream=True)
        ]
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text(2)
