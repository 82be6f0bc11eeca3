"""Whose turn it is, with the real model: a flood costs another one generation, and equal principals get equal shares.

Order is judged, not time: what happened between two events of the node says who had to wait for whom.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.pair import question
from tests.real_model import RealPair, real_pair
from tests.runtime_support import DEMO
from tests.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

FLOOD = 50
SLOTS = 2
ASKED = "What could we do with the kids today, now that it rains?"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def real(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RealPair]:
    async with real_pair(DEMO, tmp_path_factory.mktemp("state"), slots=SLOTS) as real:
        yield real


async def _ask(real: RealPair, key: str, **fields: Any) -> int:
    """Tokens of one whole answer."""
    body = question(ASKED, max_tokens=24, temperature=1.0, chat_type="whereToGo", **fields)
    async with real.pair.post("/v1/chat", body, key=key) as response:
        assert response.status == 200, await response.text()
        return (await response.json())["usage"]["total_tokens"]


class Heard:
    """The node's events while the block runs."""

    def __init__(self, real: RealPair) -> None:
        self._watching = real.pair.node.services.events.watching()
        self.events: list[dict[str, Any]] = []

    async def __aenter__(self) -> list[dict[str, Any]]:
        watcher = self._watching.__enter__()

        async def follow() -> None:
            while True:
                self.events.append(await anext(watcher))

        self._task = asyncio.create_task(follow())
        return self.events

    async def __aexit__(self, *raised: object) -> None:
        self._task.cancel()
        await asyncio.wait({self._task})
        self._watching.__exit__(None, None, None)


async def test_a_flood_of_50_is_passed_by_whoever_comes(real: RealPair) -> None:
    """Every request of another principal has the next slot that falls free: it waits for the rest of one generation."""
    flooding, guest = await real.pair.new_key("owner"), await real.pair.new_key("owner")
    turns = real.pair.node.services.turns

    async def always() -> None:
        while True:
            await _ask(real, flooding)

    async with Heard(real) as events:
        flood = [asyncio.create_task(always()) for _ in range(FLOOD)]
        await wait_until(lambda: turns.queued > FLOOD // 2, 20)
        for _ in range(5):
            await _ask(real, guest)
        for task in flood:
            task.cancel()
        await asyncio.gather(*flood, return_exceptions=True)
        await real.pair.idle()
    asked_by = {event["chat_id"]: event["principal"] for event in events if event["kind"] == "request"}
    (_, floods), (guests, times) = Counter(asked_by.values()).most_common()
    assert floods > FLOOD // 2 and times == 5
    kinds = ("queued", "started")
    story = [(event["kind"], event["chat_id"]) for event in events if event["kind"] in kinds]
    for chat_id in (chat_id for chat_id, principal in asked_by.items() if principal == guests):
        first, last = story.index(("queued", chat_id)), story.index(("started", chat_id))
        before = sum(kind == "started" for kind, _ in story[first:last])
        assert before <= SLOTS, "somebody went first besides those whose turn had begun in that instant"


async def test_equal_principals_get_equal_shares(real: RealPair) -> None:
    """Four who always want more, one of whom wants twice as much at a time: Jain's index of the tokens they got while
    all of them wanted is 0.95 and more."""
    keys = [await real.pair.new_key("owner") for _ in range(4)]
    got = Counter(dict.fromkeys(keys, 0))
    total = 48

    async def want(key: str) -> None:
        while sum(1 for _ in done) < total:
            got[key] += await _ask(real, key)
            done.append(key)

    done: list[str] = []
    eager = [keys[0], *keys]
    await asyncio.gather(*(want(key) for key in itertools.chain(eager, eager)))
    shares = list(got.values())
    assert sum(shares) ** 2 / (len(shares) * sum(share**2 for share in shares)) >= 0.95, got


async def test_a_principal_keeps_its_slot_and_what_llama_cpp_has_read_of_its_prompt(real: RealPair) -> None:
    """Two who alternate have a slot each, where llama.cpp finds what it read of their prompts before."""
    keys = [await real.pair.new_key("owner") for _ in range(2)]
    asked = len(real.door.chats)
    for _ in range(3):
        for number, key in enumerate(keys):
            text = f"I am caller {number}. " + "It rains and the kids are bored. " * 4
            async with real.pair.post("/v1/chat", question(text, max_tokens=2), key=key) as response:
                assert response.status == 200
                await response.read()
    slots: list[set[int]] = []
    for number in range(2):
        own = [passage for passage in real.door.chats[asked:] if f"I am caller {number}." in str(passage.messages)]
        slots.append({json.loads(bytes(passage.request).partition(b"\r\n\r\n")[2])["id_slot"] for passage in own})
        cached = re.findall(rb'"cached_tokens":(\d+)', own[-1].answer)
        assert int(cached[-1]) > 40, "it was read again"
    assert sorted(map(len, slots)) == [1, 1] and slots[0] != slots[1], slots
