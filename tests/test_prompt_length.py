"""A prompt that the model's context cannot hold keeps its 400, also from the queue; one that only looks long waits."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from node.api.length import refuse_too_long
from node.runtime import Inference
from node.runtimes.embedded import EmbeddedRuntime
from node.runtimes.llama_order import Habits
from node.runtimes.server import ServerRuntime
from node.runtimes.upstream_errors import context_exceeded
from shared.contract.errors import ApiError
from tests.fake_runtime import FakeRuntime
from tests.pair import question, running_pair
from tests.raw_http import RawClient
from tests.real_model import RealPair, real_pair
from tests.runtime_support import DEMO, ask, is_ready, read_all, running
from tests.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

NATIVE = "/v1/chat"
OPENAI = "/v1/chat/completions"
COUNT = "/v1/chat/completions/input_tokens"
WRITING = b'"content":" '  # every word of the random model begins with a space
CONTEXT = 4096
TOO_LONG = "x" * CONTEXT  # a token each in the random model
ONLY_LONG = "\t" * (CONTEXT + 1000)  # two of them are one token


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def real(random_model: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RealPair]:
    async with real_pair(random_model, tmp_path_factory.mktemp("state"), slots=1) as real:
        yield real


async def asking(real: RealPair, path: str, text: str, **fields: Any) -> RawClient:
    raw = await RawClient.connect(real.pair.url)
    model = {} if path == NATIVE else {"model": "default"}
    await raw.post(path, question(text, **model, **fields), real.pair.bearer())
    return raw


async def check_refused(real: RealPair, path: str, stream: bool) -> None:
    async with await asking(real, path, TOO_LONG, stream=stream) as raw:
        head = await raw.head(20)
        assert head.status == 400
        assert head.headers["content-type"] == "application/json"
        assert head.headers["x-should-retry"] == "false"
        error = (await raw.json())["error"]
    assert (error["code"], error["param"]) == ("context_length_exceeded", "messages")
    assert f"the context holds {CONTEXT}" in error["message"] and "xx" not in error["message"]


@pytest.mark.parametrize("path", [NATIVE, OPENAI])
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "json"])
async def test_the_refusal_of_one_that_runs_at_once(real: RealPair, path: str, stream: bool) -> None:
    await check_refused(real, path, stream)
    await real.pair.idle()
    assert real.pair.audit[-1]["outcome"] == "context_length_exceeded"


async def test_the_refusal_of_one_that_would_queue(real: RealPair) -> None:
    turns = real.pair.node.services.turns
    real.door.chats.clear()
    async with await asking(real, NATIVE, "hi", stream=True) as busy:
        assert (await busy.head()).status == 200
        await busy.read_until(WRITING, 20)
        for path in (NATIVE, OPENAI):
            for stream in (True, False):
                await check_refused(real, path, stream)
        async with await asking(real, NATIVE, ONLY_LONG, stream=True) as waiting:
            assert (await waiting.head()).status == 200
            await waiting.read_until(b'"position":1')
        await wait_until(lambda: turns.queued == 0)
        await busy.read_until(WRITING, 20)
        assert len(real.door.chats) == 1, "only the one that runs has reached a slot"
    await real.pair.idle()
    spent = [line.get("prompt_tokens", 0) for line in real.pair.audit if line["outcome"] == "context_length_exceeded"]
    assert not any(spent)


async def test_llama_cpp_counts_as_it_judges() -> None:
    """A prompt of one token less than the context is answered, one that fills it is not."""
    async with running(runtime := EmbeddedRuntime(DEMO, habits=Habits(context=256))) as ready:
        await ready(is_ready)
        instance = runtime.instance()
        async with running(by_url := ServerRuntime(instance.address, key=instance.order.key)) as ready:
            await ready(is_ready)
            texts = [" x" * words + mark for words in range(118, 126) for mark in ("", "!")]
            prompts = [ask("demo", text, max_tokens=1) for text in texts]
            by_size = {await runtime.count_prompt(prompt): prompt for prompt in prompts}
            assert await by_url.count_prompt(by_size[255]) == 255
            assert b'"prompt_tokens":255,' in await read_all(runtime, by_size[255])
            with pytest.raises(ApiError) as refused:
                await read_all(runtime, by_size[256])
            assert refused.value.code == "context_length_exceeded"
            assert refused.value.message == context_exceeded(256, 256).message


async def test_who_does_not_count_judges_at_the_turn(tmp_path: Path) -> None:
    """A server without the question: the one who queued hears of it in the stream, the one who waits in the status."""
    async with FakeRuntime("stall_mid_stream", slots=1) as runtime, running_pair(runtime.url, state=tmp_path) as pair:
        turns = pair.node.services.turns
        async with await RawClient.connect(pair.url) as busy, await RawClient.connect(pair.url) as waiting:
            await busy.post(NATIVE, question(stream=True), pair.bearer())
            await runtime.chat(0)
            runtime.script = "llamacpp_context"
            await waiting.post(NATIVE, question("x" * 5000), pair.bearer())
            await wait_until(lambda: turns.queued == 1)
            assert [exchange.path for exchange in runtime.exchanges].count(COUNT) == 1
            busy.close()
            assert (await waiting.head()).status == 400
            assert (await waiting.json())["error"]["code"] == "context_length_exceeded"


async def test_nobody_is_asked_without_need(tmp_path: Path) -> None:
    """Not for a short prompt, not when a slot is free, and not when the queue is full."""
    node = {"queue": 1}
    async with FakeRuntime(slots=1) as runtime, running_pair(runtime.url, state=tmp_path, node=node) as pair:
        turns = pair.node.services.turns
        async with pair.post(NATIVE, question("x" * 5000)) as response:
            assert response.status == 200
        runtime.script = "stall_mid_stream"
        async with await RawClient.connect(pair.url) as busy, await RawClient.connect(pair.url) as waiting:
            await busy.post(NATIVE, question(stream=True), pair.bearer())
            await runtime.chat(1)
            await waiting.post(NATIVE, question("x" * 3000), pair.bearer())
            await wait_until(lambda: turns.queued == 1)
            async with pair.post(NATIVE, question("x" * 5000)) as response:
                assert (response.status, (await response.json())["error"]["code"]) == (503, "overloaded")
        assert COUNT not in [exchange.path for exchange in runtime.exchanges]


class Counting:
    """A runtime that only counts prompts."""

    def __init__(self) -> None:
        self.asked = 0

    async def count_prompt(self, inference: Inference) -> int:
        self.asked += 1
        return CONTEXT


@pytest.mark.parametrize(
    ("message", "parameters", "asks"),
    [
        ({"role": "user", "content": "hi"}, {}, False),
        ({"role": "user", "content": "hi"}, {"tools": [{"description": "x" * 1200}]}, True),
        ({"role": "assistant", "content": "", "tool_calls": [{"arguments": "x" * 1200}]}, {}, True),
        ({"role": "assistant", "content": None}, {}, False),
        ({"role": "user", "content": [{"type": "text", "text": "x" * CONTEXT}]}, {}, True),
    ],
)
async def test_tools_calls_and_parts_are_part_of_a_prompt(
    message: dict[str, Any], parameters: dict[str, Any], asks: bool
) -> None:
    """The runtime is asked where the prompt could be too long with them, and believed."""
    runtime: Any = Counting()
    inference = Inference("chat", "m", {"messages": [message]}, 5, parameters)
    if not asks:
        await refuse_too_long(runtime, inference, CONTEXT)
        assert runtime.asked == 0
        return
    with pytest.raises(ApiError) as refused:
        await refuse_too_long(runtime, inference, CONTEXT)
    assert (refused.value.code, runtime.asked) == ("context_length_exceeded", 1)
