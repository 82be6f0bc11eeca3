"""Edge and node in front of a real Ollama: its answers, loads and disconnects as a caller meets them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any, cast

import openai
import pytest
import pytest_asyncio

from tests.ollama.conftest import WEATHER, WEATHER_CALL
from tests.ollama.server import OllamaServer
from tests.pair import Pair, principal_of, running_pair

pytestmark = pytest.mark.asyncio(loop_scope="module")

DEMO, TOOLS, ENDLESS = "demo:latest", "tools:latest", "endless:latest"
_SECONDS = 60.0  # for an answer, however busy the machine is
_HELLO: Any = [{"role": "user", "content": "Hello"}]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ollama_pair(ollama_server: OllamaServer) -> AsyncIterator[Pair]:
    ollama_server.unload_all()
    runtime = {"kind": "ollama", "url": ollama_server.url, "default_model": "demo"}
    async with running_pair(node={"runtime": runtime, "max_tokens": 1_000_000}) as pair:
        yield pair


@pytest_asyncio.fixture(loop_scope="module")
async def client(ollama_pair: Pair) -> AsyncIterator[openai.AsyncOpenAI]:
    options: Any = {"max_retries": 0, "timeout": _SECONDS}
    async with openai.AsyncOpenAI(base_url=ollama_pair.url + "/v1", api_key=ollama_pair.key, **options) as client:
        yield client


def used(pair: Pair) -> int:
    return pair.ledger().used.get(principal_of(pair.key), 0)


async def test_usage_is_the_same_whole_and_streamed_and_counts_against_the_quota(
    ollama_pair: Pair, client: openai.AsyncOpenAI
) -> None:
    await ollama_pair.idle()
    before = used(ollama_pair)
    whole = await client.chat.completions.create(model="default", messages=_HELLO, temperature=0, max_tokens=12)
    stream = await client.chat.completions.create(
        model=DEMO, messages=_HELLO, temperature=0, max_tokens=12, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content and text
    assert whole.usage is not None and chunks[-1].usage is not None
    assert whole.usage.total_tokens == chunks[-1].usage.total_tokens > whole.usage.prompt_tokens > 0
    await ollama_pair.idle()
    assert used(ollama_pair) - before == 2 * whole.usage.total_tokens


async def test_tools(client: openai.AsyncOpenAI) -> None:
    """A schema of the very call that Ollama looks for makes the demo model, which knows no tools, write one."""
    asked: Any = {
        "model": TOOLS,
        "messages": [{"role": "user", "content": "Weather?"}],
        "tools": [WEATHER],
        "response_format": WEATHER_CALL,
        "temperature": 0,
        "max_tokens": 64,
    }
    whole = await client.chat.completions.create(**asked)
    message = whole.choices[0].message
    assert whole.choices[0].finish_reason == "tool_calls" and message.tool_calls is not None
    (call,) = cast(Any, message.tool_calls)
    assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Oslo"})
    stream = await client.chat.completions.create(**asked, stream=True)
    chunks = [chunk async for chunk in stream]
    calls = [call for chunk in chunks for call in (chunk.choices[0].delta.tool_calls or ()) if chunk.choices]
    assert [cast(Any, call.function).name for call in calls] == ["get_weather"]
    told = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    turn: Any = [*asked["messages"], message.model_dump(exclude_none=True), told]
    answer = await client.chat.completions.create(model=TOOLS, messages=turn, tools=cast(Any, [WEATHER]), max_tokens=4)
    assert answer.choices[0].message.content


async def test_completions_and_embeddings(client: openai.AsyncOpenAI) -> None:
    completion = await client.completions.create(model=DEMO, prompt="The sun", max_tokens=6, temperature=0)
    assert completion.choices[0].text.strip() and completion.usage is not None
    assert 1 <= completion.usage.completion_tokens <= 6
    vectors = await client.embeddings.create(model=DEMO, input=["Hello", "you"])
    assert [len(item.embedding) for item in vectors.data] == [192, 192]
    assert vectors.usage.prompt_tokens > 0


async def test_what_ollama_has_no_way_for_is_named(ollama_pair: Pair) -> None:
    body = {"model": DEMO, "messages": _HELLO, "max_tokens": 2, "logit_bias": {"1": 1.0}, "top_k": 5}
    async with ollama_pair.post("/v1/chat/completions", body) as response:
        assert response.status == 200
        assert response.headers["Hearthlink-Dropped-Params"] == "logit_bias"


async def test_leaving_frees_the_runner(ollama_pair: Pair, client: openai.AsyncOpenAI) -> None:
    """It answers one at a time: the second request would wait for a million tokens of noise."""
    async with asyncio.timeout(_SECONDS):
        stream = await client.chat.completions.create(model=ENDLESS, messages=_HELLO, max_tokens=1_000_000, stream=True)
        await anext(aiter(stream))
        await stream.close()
        answer = await client.chat.completions.create(model=ENDLESS, messages=_HELLO, max_tokens=2)
    assert answer.usage is not None and answer.usage.completion_tokens == 2
    await ollama_pair.idle()


async def test_requests_for_two_models_that_take_turns_in_memory_are_all_answered(
    ollama_server: OllamaServer, client: openai.AsyncOpenAI
) -> None:
    """There is room for one of them at a time."""

    async def ask(model: str) -> str | None:
        answer = await client.chat.completions.create(model=model, messages=_HELLO, max_tokens=3)
        return answer.choices[0].finish_reason

    async with asyncio.timeout(_SECONDS):
        reasons = await asyncio.gather(*(ask(model) for model in (DEMO, ENDLESS) * 4))
    assert reasons == ["length"] * 8
    assert len(ollama_server.loaded()) == 1


async def test_a_load_through_the_edge_gets_its_context(ollama_server: OllamaServer, ollama_pair: Pair) -> None:
    key = await ollama_pair.new_key(scopes=("chat", "admin"))
    order = {"modelKey": DEMO, "loadConfig": {"contextLength": 320, "ropeFrequencyBase": 1000.0}}
    async with ollama_pair.post("/admin/models/load", order, key=key) as response:
        answer = await response.json()
        assert response.status == 200, answer
    assert answer["status"] == "loaded"
    assert (answer["applied"], answer["ignored"]) == (["contextLength"], ["ropeFrequencyBase"])
    assert "ollama create" in " ".join(answer["workflow"].values())
    assert ollama_server.loaded() == {DEMO: 320}
    async with ollama_pair.post("/admin/models/unload", {"modelKey": DEMO}, key=key) as response:
        assert response.status == 200
    assert ollama_server.loaded() == {}
