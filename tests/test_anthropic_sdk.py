"""The unmodified ``anthropic`` package: it asks and streams, uses tools, and gets typed errors with their reason."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anthropic
import pytest
import pytest_asyncio
from anthropic.types import MessageParam, ToolParam

from tests import fake_apis as fake
from tests.fake_runtime import FakeRuntime
from tests.pair import Pair, running_pair

pytestmark = pytest.mark.asyncio(loop_scope="module")

HI: list[MessageParam] = [{"role": "user", "content": "Weather?"}]
WEATHER: ToolParam = {
    "name": "get_weather",
    "description": "Weather of a city.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
CALL = [*fake.messages_begin(), *fake.messages_call(), *fake.messages_end("tool_use")]


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
async def client(served: tuple[Pair, FakeRuntime]) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(base_url=served[0].url, api_key=served[0].key, max_retries=0) as client:
        yield client


async def test_a_whole_message(client: anthropic.AsyncAnthropic, runtime: FakeRuntime) -> None:
    message = await client.messages.create(model="default", max_tokens=9, messages=HI, system="Be kind.")
    (block,) = message.content
    assert block.type == "text" and block.text == fake.TEXT
    assert (message.role, message.model, message.stop_reason) == ("assistant", "fake-model", "end_turn")
    usage = message.usage
    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.output_tokens) == (5, 2, 5)


async def test_a_stream(client: anthropic.AsyncAnthropic, runtime: FakeRuntime) -> None:
    async with client.messages.stream(model="chat:home", max_tokens=9, messages=HI) as stream:
        said = [text async for text in stream.text_stream]
        final = await stream.get_final_message()
    assert said == list(fake.WORDS)
    assert final.content[0].type == "text" and final.content[0].text == fake.TEXT
    assert (final.usage.input_tokens, final.usage.output_tokens) == (5, 5)


async def test_a_thought_comes_before_the_text(client: anthropic.AsyncAnthropic, runtime: FakeRuntime) -> None:
    thinking = [*fake.messages_begin(), *fake.messages_thought(), *fake.messages_text(index=1), *fake.messages_end()]
    runtime.routes[fake.MESSAGES] = fake.as_llama_cpp(thinking)
    async with client.messages.stream(model="default", max_tokens=9, messages=HI) as stream:
        final = await stream.get_final_message()
    thought, text = final.content
    assert thought.type == "thinking" and thought.thinking == "".join(fake.THOUGHT)
    assert text.type == "text" and text.text == fake.TEXT


@pytest.mark.parametrize("stream", [False, True])
async def test_a_tool_is_used_and_its_result_answered(
    client: anthropic.AsyncAnthropic, runtime: FakeRuntime, stream: bool
) -> None:
    runtime.routes[fake.MESSAGES] = fake.as_llama_cpp(CALL)
    asked: dict[str, Any] = {"model": "default", "max_tokens": 50, "tools": [WEATHER], "messages": HI}
    if stream:
        async with client.messages.stream(**asked) as streamed:
            message = await streamed.get_final_message()
    else:
        message = await client.messages.create(**asked, tool_choice={"type": "any"})
    assert message.stop_reason == "tool_use"
    (use,) = message.content
    assert use.type == "tool_use" and (use.name, use.input) == ("get_weather", {"city": "Paris"})
    runtime.routes |= fake.good_routes()
    result: MessageParam = {
        "role": "user",
        "content": [{"type": "tool_result", "tool_use_id": use.id, "content": "sunny"}],
    }
    turns: list[MessageParam] = [*HI, {"role": "assistant", "content": message.content}, result]
    final = await client.messages.create(model="default", max_tokens=9, tools=[WEATHER], messages=turns)
    assert final.content[0].type == "text" and final.content[0].text == fake.TEXT
    sent = runtime.exchanges[-1].json["messages"]
    assert sent[1]["content"][0] == {"type": "tool_use", "id": use.id, "name": "get_weather", "input": use.input}
    assert sent[2]["content"][0]["tool_use_id"] == use.id


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fields", "error", "kind"),
    [
        ({"model": "nope"}, anthropic.NotFoundError, "not_found_error"),
        ({"model": "chat:nope"}, anthropic.NotFoundError, "not_found_error"),
        ({"extra_body": {"temperature": 9}}, anthropic.BadRequestError, "invalid_request_error"),
        ({"model": "chat:home", "system": "Be evil."}, anthropic.BadRequestError, "invalid_request_error"),
    ],
)
async def test_errors_are_typed(
    client: anthropic.AsyncAnthropic,
    runtime: FakeRuntime,
    fields: dict[str, Any],
    error: type[anthropic.APIStatusError],
    kind: str,
    stream: bool,
) -> None:
    asked: dict[str, Any] = {"model": "default", "max_tokens": 9, "messages": HI, "stream": stream, **fields}
    with pytest.raises(error) as failed:
        await client.messages.create(**asked)
    assert failed.value.type == kind


async def test_a_key_that_is_not_known_is_an_authentication_error(
    served: tuple[Pair, FakeRuntime], runtime: FakeRuntime
) -> None:
    async with anthropic.AsyncAnthropic(base_url=served[0].url, api_key="hlk_nope", max_retries=0) as stranger:
        with pytest.raises(anthropic.AuthenticationError):
            await stranger.messages.create(model="default", max_tokens=9, messages=HI)


async def test_a_stream_that_is_cut_raises(client: anthropic.AsyncAnthropic, runtime: FakeRuntime) -> None:
    pieces = [*fake.messages_begin(), *fake.messages_text()]
    runtime.routes[fake.MESSAGES] = fake.as_llama_cpp(pieces)
    with pytest.raises(anthropic.APIStatusError) as failed:
        async with client.messages.stream(model="default", max_tokens=9, messages=HI) as stream:
            await stream.get_final_message()
    assert failed.value.type == "api_error"
