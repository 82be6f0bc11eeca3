"""The unmodified ``openai`` package on ``/v1/responses``: its helper follows the stream, calls functions and parses."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
import pytest_asyncio
from openai.types.responses import FunctionToolParam

from tests import fake_apis as fake
from tests.fake_runtime import FakeRuntime
from tests.javascript import PACKAGES, install, require_node, run
from tests.pair import Pair, running_pair

pytestmark = pytest.mark.asyncio(loop_scope="module")

WEATHER: FunctionToolParam = {
    "type": "function",
    "name": "get_weather",
    "description": "Weather of a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "strict": True,
}
CALL = [*fake.responses_begin(), *fake.responses_call(), *fake.responses_end()]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Pair, FakeRuntime]]:
    state = tmp_path_factory.mktemp("state")
    async with FakeRuntime(routes=fake.good_routes()) as runtime, running_pair(runtime.url, state=state) as pair:
        yield pair, runtime


@pytest.fixture
def runtime(served: tuple[Pair, FakeRuntime]) -> FakeRuntime:
    served[1].exchanges.clear()
    served[1].routes |= fake.good_routes()
    return served[1]


@pytest_asyncio.fixture(loop_scope="module")
async def client(served: tuple[Pair, FakeRuntime]) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=served[0].url + "/v1", api_key=served[0].key, max_retries=0) as client:
        yield client


async def test_a_whole_response(client: openai.AsyncOpenAI, runtime: FakeRuntime) -> None:
    response = await client.responses.create(model="chat:home", input="Where to?", max_output_tokens=9)
    assert response.output_text == fake.TEXT
    assert (response.status, response.model) == ("completed", "fake-model")
    assert response.usage is not None
    assert (response.usage.input_tokens, response.usage.output_tokens, response.usage.total_tokens) == (7, 5, 12)
    assert response.usage.input_tokens_details.cached_tokens == 2
    assert (response.tools, response.tool_choice, response.parallel_tool_calls) == ([], "auto", True)


async def test_the_streaming_helper_follows(client: openai.AsyncOpenAI, runtime: FakeRuntime) -> None:
    async with client.responses.stream(model="default", input="Where to?") as stream:
        events = [event async for event in stream]
        final = await stream.get_final_response()
    assert [event.delta for event in events if event.type == "response.output_text.delta"] == list(fake.WORDS)
    assert final.output_text == fake.TEXT
    assert (events[0].type, events[-1].type) == ("response.created", "response.completed")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_function_is_called_and_its_output_answered(
    client: openai.AsyncOpenAI, runtime: FakeRuntime, stream: bool
) -> None:
    runtime.routes[fake.RESPONSES] = fake.as_llama_cpp(CALL)
    if stream:
        async with client.responses.stream(model="default", input="Weather?", tools=[WEATHER]) as streamed:
            response: Any = await streamed.get_final_response()
    else:
        response = await client.responses.create(model="default", input="Weather?", tools=[WEATHER])
    (call,) = response.output
    assert (call.type, call.name, json.loads(call.arguments)) == ("function_call", "get_weather", {"city": "Paris"})
    assert response.tools[0].name == "get_weather"
    runtime.routes |= fake.good_routes()
    turns: list[Any] = [{"role": "user", "content": "Weather?"}, *(item.to_dict() for item in response.output)]
    turns.append({"type": "function_call_output", "call_id": call.call_id, "output": "sunny"})
    final = await client.responses.create(model="default", input=turns, tools=[WEATHER])
    assert final.output_text == fake.TEXT
    sent = runtime.exchanges[-1].json["input"]
    assert [item["type"] for item in sent] == ["message", "function_call", "function_call_output"]
    assert sent[1]["call_id"] == sent[2]["call_id"] == call.call_id


async def test_an_answer_can_be_sent_back_as_it_came(client: openai.AsyncOpenAI, runtime: FakeRuntime) -> None:
    """Thoughts too, which is how conversations are led without a memory at the server."""
    thinking = [*fake.responses_begin(), *fake.responses_thought(), *fake.responses_text(), *fake.responses_end()]
    runtime.routes[fake.RESPONSES] = fake.as_llama_cpp(thinking)
    first = await client.responses.create(model="default", input="hi")
    assert [item.type for item in first.output] == ["reasoning", "message"]
    turns: list[Any] = [*(item.to_dict() for item in first.output), {"role": "user", "content": "And?"}]
    await client.responses.create(model="default", input=turns)
    assert [item["role"] for item in runtime.exchanges[-1].json["input"]] == ["assistant", "user"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fields", "error", "code"),
    [
        ({"model": "nope"}, openai.NotFoundError, "model_not_found"),
        ({"model": "chat:nope"}, openai.NotFoundError, "chat_type_not_found"),
        ({"temperature": 9}, openai.BadRequestError, "invalid_request"),
        ({"previous_response_id": "resp_1"}, openai.BadRequestError, "invalid_request"),
        ({"background": True}, openai.BadRequestError, "invalid_request"),
    ],
)
async def test_errors_are_typed(
    client: openai.AsyncOpenAI,
    runtime: FakeRuntime,
    fields: dict[str, Any],
    error: type[openai.APIStatusError],
    code: str,
    stream: bool,
) -> None:
    asked: dict[str, Any] = {"model": "default", "input": "hi", "stream": stream, **fields}
    with pytest.raises(error) as failed:
        await client.responses.create(**asked)
    assert failed.value.code == code


async def test_a_stream_that_is_cut_raises(client: openai.AsyncOpenAI, runtime: FakeRuntime) -> None:
    pieces = [*fake.responses_begin(), *fake.responses_text()]
    runtime.routes[fake.RESPONSES] = fake.as_llama_cpp(pieces)
    stream = await client.responses.create(model="default", input="hi", stream=True)
    with pytest.raises(openai.APIError) as failed:
        async for _ in stream:
            pass
    assert failed.value.code == "upstream_incomplete"


async def test_what_an_answer_must_look_like_is_parsed(client: openai.AsyncOpenAI, runtime: FakeRuntime) -> None:
    words = ('{"a":', '"b"}')
    pieces = [*fake.responses_begin(), *fake.responses_text(words), *fake.responses_end()]
    runtime.routes[fake.RESPONSES] = fake.as_llama_cpp(pieces)
    shape: Any = {"type": "json_schema", "name": "x", "schema": {"type": "object"}, "strict": True}
    response = await client.responses.create(model="default", input="hi", text={"format": shape})
    assert json.loads(response.output_text) == {"a": "b"}
    assert runtime.exchanges[-1].json["text"]["format"] == shape


async def test_the_same_in_node(served: tuple[Pair, FakeRuntime], runtime: FakeRuntime) -> None:
    require_node()
    await install(PACKAGES)
    pair = served[0]
    told = json.loads(await run("node", "responses.js", cwd=PACKAGES, seconds=60, EDGE=pair.url, KEY=pair.key))
    assert told["whole"] == told["final"] == "".join(told["deltas"]) == fake.TEXT
    assert told["usage"] == sum(fake.USAGE)
    assert told["refused"] == ["BadRequestError", 400, "previous_response_id"]
