"""Leaving stops the real llama.cpp: the node's side is closed within 100 ms, and the slot is idle after the batch under
way. On a model of 100 M random weights, which reads a long prompt for seconds and never ends an answer by itself."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.pair import Pair, events_of, principal_of, question
from tests.raw_http import RawClient
from tests.real_model import Passage, RealPair, real_pair
from tests.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

PROMISE = 0.1  # seconds between the caller's leaving and the end of the node's request to llama.cpp (design §4)
NATIVE = "/v1/chat"
OPENAI = "/v1/chat/completions"
LONG = "word " * 600  # 3,000 tokens: some 190 batches
READING, WRITING = b'"prompt_progress"', b'"content":" '  # every word of the model begins with a space


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def real(random_model: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RealPair]:
    """One slot, so that the second caller waits."""
    async with real_pair(random_model, tmp_path_factory.mktemp("state"), slots=1) as real:
        yield real


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def settled_once(real: RealPair) -> AsyncIterator[None]:
    """However a test's chats ended, the ledger has what their audit lines say."""
    real.pair.audit.clear()
    real.door.chats.clear()
    before = used(real)
    yield
    await real.pair.idle()
    lines = real.pair.audit
    assert used(real) - before == sum(line.get("prompt_tokens", 0) + line.get("completion_tokens", 0) for line in lines)


def used(real: RealPair) -> int:
    return real.pair.ledger().used.get(principal_of(real.pair.key), 0)


async def asking(pair: Pair, text: str, path: str = NATIVE, **fields: Any) -> RawClient:
    """A connection on which a chat has been asked; the caller closes it."""
    raw = await RawClient.connect(pair.url)
    model = {} if path == NATIVE else {"model": "default", "max_tokens": 2000}
    # A prompt that begins like the last one would be half read already.
    await raw.post(path, question(f"{time.monotonic_ns()} {text}", **model, **fields), pair.bearer())
    return raw


async def check_stopped(real: RealPair, passage: Passage, left: float, what: str, idle_within: float = 1.0) -> None:
    """The node's side is closed in time, the slot idle soon after, and nothing stays behind."""
    closed = await passage.left() - left
    idle = await real.idle_after(left)
    step = passage.longest_pause
    print(f"{what}: closed {closed * 1000:.1f} ms, slot idle {idle * 1000:.0f} ms after leaving; ", end="")
    print(f"a batch took up to {step * 1000:.0f} ms")
    assert closed < PROMISE
    # The batch under way and often one more; and room for a machine that does other things too. Left alone, these
    # prompts and answers would take a hundred of them and more.
    assert idle < max(idle_within, 4 * step)
    await real.pair.idle()


@pytest.mark.parametrize("path", [NATIVE, OPENAI])
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "json"])
async def test_leaving_in_prefill(real: RealPair, path: str, stream: bool) -> None:
    async with await asking(real.pair, LONG, path, stream=stream):
        passage = await real.door.chat(0)
        await passage.said(READING, 4)
        assert await real.runtime.busy_slots() == 1
        left = time.monotonic()
    await check_stopped(real, passage, left, "prefill")
    assert WRITING not in passage.answer, "it was left before its first word"
    assert real.pair.audit[-1]["outcome"] == "cancelled"


@pytest.mark.parametrize("path", [NATIVE, OPENAI])
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "json"])
async def test_leaving_in_the_answer(real: RealPair, path: str, stream: bool) -> None:
    async with await asking(real.pair, "hi", path, stream=stream) as raw:
        passage = await real.door.chat(0)
        if stream:
            assert (await raw.head()).status == 200
            await raw.read_until(WRITING, 20)
        await passage.said(WRITING, 5)
        assert await real.runtime.busy_slots() == 1, "the first words are here and the last are not made"
        left = time.monotonic()
    await check_stopped(real, passage, left, "answer")
    line = real.pair.audit[-1]
    assert line["outcome"] == "cancelled"
    if stream:
        assert line["completion_tokens"] >= 1


async def test_leaving_as_soon_as_it_was_asked(real: RealPair) -> None:
    """Anywhere between the edge's first look and the head of llama.cpp's answer."""
    for after in (0.0, 0.002, 0.005, 0.01):
        before = len(real.pair.audit)
        async with await asking(real.pair, LONG, stream=True):
            await asyncio.sleep(after)
            left = time.monotonic()
        await wait_until(lambda before=before: len(real.pair.audit) > before)
        assert real.pair.audit[-1]["outcome"] == "cancelled"
        if real.door.chats:
            await check_stopped(real, real.door.chats.pop(), left, f"{after * 1000:.0f} ms after asking", 3.0)
        assert await real.runtime.busy_slots() == 0


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "json"])
async def test_leaving_the_queue(real: RealPair, stream: bool) -> None:
    """The one who leaves never reaches llama.cpp; the one who runs goes on."""
    turns = real.pair.node.services.turns
    async with await asking(real.pair, "hi", stream=True) as running:
        assert (await running.head()).status == 200
        await running.read_until(WRITING, 20)
        async with await asking(real.pair, LONG, stream=stream):
            await wait_until(lambda: turns.queued == 1)
            left = time.monotonic()
        await wait_until(lambda: turns.queued == 0)
        assert time.monotonic() - left < PROMISE
        assert len(real.door.chats) == 1
        await running.read_until(WRITING, 20)
        left = time.monotonic()
    await check_stopped(real, real.door.chats[0], left, "behind the queue")


@pytest.mark.parametrize(("text", "mark"), [(LONG, READING), ("hi", WRITING)], ids=["prefill", "answer"])
async def test_delete_frees_the_slot(real: RealPair, text: str, mark: bytes) -> None:
    """The stream of the one who was there ends cleanly, with what was said."""
    async with await asking(real.pair, text, stream=True) as raw:
        chat_id = (await raw.head()).headers["hearthlink-chat-id"]
        passage = await real.door.chat(0)
        await passage.said(mark, 3)
        left = time.monotonic()
        path = f"{real.pair.url}{NATIVE}/{chat_id}"
        async with real.pair.client.delete(path, headers=real.pair.bearer()) as response:
            assert response.status == 204
        await check_stopped(real, passage, left, "DELETE")
        events = events_of(await raw.body())
    assert events[-1].data == "[DONE]"
    reasons = [json.loads(event.data)["choices"] for event in events[:-1]]
    assert [choices[0]["finish_reason"] for choices in reasons if choices][-1] == "stop"
    assert [line["outcome"] for line in real.pair.audit if line["route"] == NATIVE] == ["stopped"]


async def test_the_next_in_the_queue_gets_the_slot_of_the_one_who_left(real: RealPair) -> None:
    async with (
        await asking(real.pair, LONG, stream=True) as running,
        await asking(real.pair, "hi", stream=True, max_tokens=3) as waiting,
    ):
        await (await real.door.chat(0)).said(READING, 2)
        assert (await waiting.head()).status == 200
        await waiting.read_until(b'"position":1')
        running.close()
        body = await waiting.body(30)
    assert body.endswith(b"data: [DONE]\n\n") and body.count(WRITING) >= 3
    await real.pair.idle()
