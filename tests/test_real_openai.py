"""OpenAI's API with the real llama.cpp behind it, through an unmodified OpenAI SDK: tools, formats, log probabilities,
completions."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
import pytest_asyncio

from tests.javascript import PACKAGES, install, require_node, run
from tests.pair import Pair, principal_of, running_pair
from tests.runtime_support import DEMO
from tests.tool_model import brace, write_tool_model
from tests.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

ASKED: Any = [{"role": "user", "content": "hello"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Rome", "Oslo"]}},
            "required": ["city"],
        },
    },
}
SCHEMA: Any = {
    "type": "object",
    "properties": {"open": {"type": "boolean"}, "day": {"enum": ["Monday", "Friday"]}},
    "required": ["open", "day"],
    "additionalProperties": False,
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def real(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pair]:
    folder = tmp_path_factory.mktemp("real")
    # One thread: several wait for each other spinning, and stand still when other tests want the cores too.
    models = folder / "models"
    models.mkdir()
    shutil.copy(DEMO, models / "vectors.gguf")
    runtime = {
        "kind": "embedded",
        "model": str(write_tool_model(models / "tools.gguf")),
        "models": str(models),
        "threads": 1,
    }
    settings = {"vectors": {"pooling": "mean", "together": ["tools"], "threads": 1}}
    async with running_pair(state=folder, node={"runtime": runtime, "models": settings}, wait=False) as pair:
        upstreams = pair.edge.services.upstreams
        await wait_until(lambda: upstreams.ready, 30, what=lambda: pair.node.services.runtime.status())
        yield pair


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(real: Pair) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=real.url + "/v1", api_key=real.key, max_retries=0) as client:
        yield client


def forced() -> Any:
    """Has the toy call a tool: the first token of a call is the likeliest wherever llama.cpp's grammar allows it."""
    return {"tools": [WEATHER], "tool_choice": "required", "logit_bias": {brace(): 100}, "max_tokens": 80}


async def test_a_call_of_a_tool_and_its_result(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model="default", messages=ASKED, **forced())
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls"
    (call,) = choice.message.tool_calls or []
    assert call.type == "function" and call.function.name == "get_weather"
    assert json.loads(call.function.arguments)["city"] in ("Rome", "Oslo")
    told = [*ASKED, choice.message, {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
    after = await client.chat.completions.create(model="default", messages=told, tools=[WEATHER], max_tokens=4)
    assert after.choices[0].message.content
    assert answer.usage is not None and after.usage is not None
    assert after.usage.prompt_tokens > answer.usage.prompt_tokens


async def test_a_function_that_is_chosen_by_its_name_is_called(client: openai.AsyncOpenAI) -> None:
    other: Any = {"type": "function", "function": {**WEATHER["function"], "name": "get_time"}}
    chosen: Any = {"type": "function", "function": {"name": "get_time"}}
    answer = await client.chat.completions.create(
        model="default", messages=ASKED, **forced() | {"tools": [WEATHER, other], "tool_choice": chosen}
    )
    calls = answer.choices[0].message.tool_calls
    assert calls
    assert [call.function.name for call in calls if call.type == "function"] == ["get_time"]


async def test_a_streamed_call(client: openai.AsyncOpenAI) -> None:
    """With the SDK's own helper, which puts the pieces together."""
    async with client.chat.completions.stream(model="default", messages=ASKED, **forced()) as stream:
        final = await stream.get_final_completion()
    (choice,) = final.choices
    assert choice.finish_reason == "tool_calls"
    (call,) = choice.message.tool_calls or []
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments)["city"] in ("Rome", "Oslo")


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_has_the_shape_of_a_schema(client: openai.AsyncOpenAI, stream: bool) -> None:
    shape: Any = {"type": "json_schema", "json_schema": {"name": "hours", "strict": True, "schema": SCHEMA}}
    if stream:
        chunks = await client.chat.completions.create(
            model="default", messages=ASKED, response_format=shape, max_tokens=80, stream=True
        )
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])
    else:
        answer = await client.chat.completions.create(
            model="default", messages=ASKED, response_format=shape, max_tokens=80
        )
        text = answer.choices[0].message.content or ""
    found = json.loads(text)
    assert set(found) == {"open", "day"}
    assert found["open"] in (True, False) and found["day"] in ("Monday", "Friday")


@pytest.mark.parametrize(("asked", "shown"), [(None, 1), (3, 3)])
async def test_log_probabilities(client: openai.AsyncOpenAI, asked: int | None, shown: int) -> None:
    """llama.cpp gives twenty with each token when nobody says how many, and none at all for 0."""
    more: Any = {} if asked is None else {"top_logprobs": asked}
    answer = await client.chat.completions.create(
        model="default", messages=ASKED, max_tokens=3, logprobs=True, temperature=0, **more
    )
    assert answer.choices[0].logprobs is not None
    found = answer.choices[0].logprobs.content or []
    assert "".join(one.token for one in found) == answer.choices[0].message.content
    assert all(one.logprob <= 0 and len(one.top_logprobs) == shown for one in found)


async def test_a_completion_as_one_object_and_as_a_stream(client: openai.AsyncOpenAI, real: Pair) -> None:
    asked: Any = {"model": "default", "prompt": "The rain", "max_tokens": 6, "temperature": 0}
    whole = await client.completions.create(**asked, logprobs=1)
    (choice,) = whole.choices
    assert (whole.object, choice.finish_reason) == ("text_completion", "length")
    assert choice.text and choice.logprobs is not None
    assert "".join(choice.logprobs.tokens or ()) == choice.text and len(choice.logprobs.text_offset or ()) == 6
    assert whole.usage is not None and whole.usage.completion_tokens == 6
    chunks = [chunk async for chunk in await client.completions.create(**asked, stream=True)]
    assert "".join(chunk.choices[0].text for chunk in chunks) == choice.text
    assert chunks[-1].choices[0].finish_reason == "length"
    assert all(chunk.object == "text_completion" for chunk in chunks)
    told = [
        chunk
        async for chunk in await client.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    ]
    assert told[-1].usage is not None and told[-1].usage.total_tokens == whole.usage.total_tokens


async def test_a_completion_counts_against_the_quota(real: Pair) -> None:
    key = await real.new_key()
    async with real.post("/v1/completions", {"prompt": "The rain", "max_tokens": 5}, key=key) as response:
        usage = (await response.json())["usage"]
    await real.idle()
    assert real.ledger().used[principal_of(key)] == usage["total_tokens"] >= 6


async def test_a_prompt_opens_no_role(real: Pair) -> None:
    """Control tokens in the prompt of a completion are text: more tokens than the one that they would be."""

    async def tokens(prompt: str) -> int:
        async with real.post("/v1/completions", {"prompt": prompt, "max_tokens": 1}) as response:
            return (await response.json())["usage"]["prompt_tokens"]

    assert await tokens("hi<|im_end|>") > await tokens("hi") + 1


async def test_embeddings_of_a_model_that_is_loaded_for_them(client: openai.AsyncOpenAI, real: Pair) -> None:
    """Nobody names it: it is the one that makes embeddings. The model that chats stays in memory beside it."""
    found = await client.embeddings.create(model="default", input=["hello", "the rain", "hello"])
    one, other, again = (item.embedding for item in found.data)
    assert len(one) == len(other) > 8
    assert one == pytest.approx(again, abs=1e-3) and one != pytest.approx(other, abs=1e-3)
    assert found.model == "vectors" and found.usage.prompt_tokens >= 4
    named = await client.embeddings.create(model="vectors", input="hello", encoding_format="float")
    assert named.data[0].embedding == pytest.approx(one, abs=1e-3)
    state = {model.id: model.state for model in real.node.services.models.status().models}
    assert state == {"tools": "loaded", "vectors": "loaded"}
    with pytest.raises(openai.NotFoundError) as refused:
        await client.chat.completions.create(model="vectors", messages=ASKED)
    assert refused.value.code == "not_supported"


async def test_the_same_in_node_with_openai_and_the_ai_sdk(real: Pair) -> None:
    require_node()
    await install(PACKAGES)
    said = await run("node", "surfaces.js", cwd=PACKAGES, seconds=120, EDGE=real.url, KEY=real.key, BRACE=brace())
    told = json.loads(said)
    for case in ("tools", "streamedTools"):
        assert told[case]["reason"] == "tool_calls"
        (call,) = told[case]["calls"]
        assert call["function"]["name"] == "get_weather"
        assert json.loads(call["function"]["arguments"])["city"] in ("Rome", "Oslo")
    for case in ("sdkTools", "sdkStreamedTools"):
        assert told[case]["reason"] == "tool-calls"
        (call,) = told[case]["calls"]
        assert (call["toolName"], call["input"]["city"] in ("Rome", "Oslo")) == ("get_weather", True)
    assert "tool-input-delta" in told["sdkStreamedTools"]["kinds"]
    assert told["completion"]["streamed"] == told["completion"]["whole"] != ""
