"""llama.cpp killed under running answers: typed errors, one settlement, and the next chat works by itself."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from loguru import logger

from shared.contract.sse import Event
from tests.pair import events_of, principal_of, question
from tests.raw_http import RawClient
from tests.real_model import RealPair, real_pair, until
from tests.waiting import wait_until

NATIVE = "/v1/chat"
OPENAI = "/v1/chat/completions"
WRITING = b'"content":" '  # every word of the model begins with a space
CUT = {"upstream_incomplete", "runtime_error"}
DOWN = {"node_unavailable", "model_loading"}


def body_for(path: str, **fields: Any) -> dict[str, Any]:
    return question("hi", **({} if path == NATIVE else {"model": "default"}), **fields)


@pytest.fixture
def told() -> Iterator[list[str]]:
    """What the node logs, as "LEVEL text"."""
    lines: list[str] = []
    sink = logger.add(lambda message: lines.append(message), format="{level} {message}", filter="node")
    yield lines
    logger.remove(sink)


def check_down(status: int, error: dict[str, Any], headers: Any) -> None:
    """The caller is told to come back, and when."""
    assert (status, error["code"] in DOWN) == (503, True), error
    assert int(headers["retry-after"]) >= 1


async def answers_again(real: RealPair, key: str) -> None:
    """Without anybody's doing, within seconds."""
    began, refusals = time.monotonic(), 0

    async def answered() -> bool:
        nonlocal refusals
        async with real.pair.post(OPENAI, body_for(OPENAI, max_tokens=2), key=key) as response:
            answer = await response.json()
            if response.status == 200:
                assert answer["usage"]["completion_tokens"] == 2
                return True
            check_down(response.status, answer["error"], response.headers)
        refusals += 1
        await asyncio.sleep(0.02)
        return False

    await until(answered, 15)
    print(f"the next chat was answered {time.monotonic() - began:.1f} s later, after {refusals} refusals")


async def settled(real: RealPair, key: str) -> list[dict[str, Any]]:
    """The audit lines of the chats with ``key``, once the ledger has what they say."""
    await real.pair.idle()
    lines = [line for line in real.pair.audit if line.get("principal") == principal_of(key)]
    spent = sum(line.get("prompt_tokens", 0) + line.get("completion_tokens", 0) for line in lines)
    assert real.pair.ledger().used[principal_of(key)] == spent
    return lines


def check_cut(events: list[Event], path: str) -> None:
    """Words, then one error in the surface's own frame, and no end that looks good."""
    *said, last = events
    assert any(WRITING in event.data.encode() for event in said)
    assert all(event.data != "[DONE]" and not event.event for event in said)
    assert last.event == ("error" if path == NATIVE else "")
    assert json.loads(last.data)["error"]["code"] in CUT


async def test_killed_under_every_kind_of_answer(random_model: Path, tmp_path: Path, told: list[str]) -> None:
    """Two streams, a whole answer, and one that waits for its turn."""
    async with real_pair(random_model, tmp_path, slots=3) as real, AsyncExitStack() as stack:
        real.without_door()

        async def asking(path: str, max_tokens: int = 2000, **fields: Any) -> RawClient:
            raw = await stack.enter_async_context(await RawClient.connect(real.pair.url))
            await raw.post(path, body_for(path, max_tokens=max_tokens, **fields), real.pair.bearer(key))
            return raw

        async def all_at_work() -> bool:
            return await real.runtime.busy_slots() == 3

        key = await real.pair.new_key()
        streams = {path: await asking(path, stream=True) for path in (NATIVE, OPENAI)}
        whole = await asking(NATIVE)
        said = {}
        for path, raw in streams.items():
            assert (await raw.head(20)).status == 200
            said[path] = await raw.read_until(WRITING, 20)
        await until(all_at_work, 20)
        waiting = await asking(NATIVE, max_tokens=2)
        await wait_until(lambda: real.pair.node.services.turns.queued == 1)

        killed = real.runtime.pid
        assert killed is not None
        os.kill(killed, signal.SIGKILL)
        for path, raw in streams.items():
            check_cut(events_of(said[path] + await raw.body()), path)
        head = await whole.head()
        assert (head.status, (await whole.json())["error"]["code"]) == (502, "runtime_error")
        head = await waiting.head(20)
        if head.status != 200:  # its turn came while the process was dying, or while there was none
            error = (await waiting.json())["error"]
            if error["code"] != "runtime_error":
                check_down(head.status, error, head.headers)

        await answers_again(real, key)
        assert real.runtime.pid != killed
        assert any(line.startswith("WARNING") and "The system killed llama.cpp" in line for line in told)
        states = [line for line in told if "the runtime (embedded) is" in line]
        assert states[-1].startswith("INFO the runtime (embedded) is ready.")
        lines = await settled(real, key)
        cut = [line for line in lines if line["outcome"] in CUT]
        assert {line["outcome"] for line in lines} <= CUT | DOWN | {"length"}
        assert sum(line["completion_tokens"] > 0 for line in cut) == 2, "nobody pays for words that were not shown"
        assert lines[-1]["outcome"] == "length"
