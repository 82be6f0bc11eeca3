"""How an answer leaves: its end leaves once, however often a slow reader lets it be interrupted."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping

import pytest

from node.api.compose import Composed
from node.api.parameters import Settled
from node.api.voice import Streamed, Voice, Whole
from node.api.way import Prompt
from node.api.ways import WAYS
from node.runtime import Inference
from node.runtimes.upstream_errors import from_event
from shared.contract.body import parse_body
from shared.contract.snapshot import ModelInfo
from shared.contract.surface import SURFACES
from shared.link.call import Call
from shared.link.frames import MAX_DATA_BYTES

BODIES = {
    "chat": {"messages": [{"role": "user", "content": "hi"}]},
    "openai.responses": {"input": "hi"},
    "anthropic.messages": {"messages": [{"role": "user", "content": "hi"}]},
}
TEXT = "x" * (3 * MAX_DATA_BYTES)
SAID = {
    "chat": {"choices": [{"delta": {"content": TEXT}, "finish_reason": None}]},
    "openai.responses": {"type": "response.output_text.delta", "delta": TEXT},
    "anthropic.messages": {
        "type": "content_block_delta",
        "index": 0,
        "delta": {"type": "text_delta", "text": TEXT},
    },
}
LAST = {"chat": "[DONE]", "openai.responses": "response.completed", "anthropic.messages": "message_stop"}


class SlowReader:
    """An ``Outlet`` that takes as many pieces of the answer as there is ``room``."""

    def __init__(self) -> None:
        self.room = asyncio.Semaphore(1000)
        self.heads = 0
        self.pieces: list[bytes] = []

    def head(self, headers: Mapping[str, str]) -> None:
        self.heads += 1

    def note(self, payload: bytes) -> None:
        self.pieces.append(payload)

    async def data(self, payload: bytes) -> None:
        await self.room.acquire()
        self.pieces.append(payload)

    def fill(self, room: int) -> None:
        self.room = asyncio.Semaphore(room)


async def speaking(surface: str, stream: bool) -> tuple[Voice, SlowReader]:
    """An answer that has said TEXT, and who reads it."""
    row, way = SURFACES[surface], WAYS[surface]
    assert way.format is not None
    raw = json.dumps(BODIES[surface]).encode()
    body = parse_body(row.body, raw)
    call = Call(row, raw, "abc", "r1", "p", stream, 0.0)
    inference = Inference(way.api, "m", {"messages": []}, 100)
    composed = Composed(inference, ModelInfo("m"), Prompt({}), None, Settled({}, None), [])
    reading = way.format.reading(call, inference, from_event)
    reading.created = 0
    out = SlowReader()
    kinds = (call, body, composed, way.format, reading, out)
    voice: Voice = Streamed(*kinds, remember=False) if stream else Whole(*kinds)
    said = SAID[surface]
    name = f"event: {said['type']}\n" if "type" in said else ""
    await voice.feed(f"{name}data: {json.dumps(said)}\n\n".encode())
    return voice, out


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("surface", BODIES)
async def test_an_end_that_is_interrupted_is_gone_on_with_where_it_was(surface: str, stream: bool) -> None:
    voice, out = await speaking(surface, stream)
    await voice.finish("stop")
    expected = b"".join(out.pieces)
    assert out.heads == 1
    if stream:
        assert expected.count(LAST[surface].encode()) >= 1
    for room in range(4):
        voice, out = await speaking(surface, stream)
        out.fill(room)
        ending = asyncio.create_task(voice.finish("stop"))
        await asyncio.sleep(0)  # as far as the room goes
        ending.cancel()
        await asyncio.gather(ending, return_exceptions=True)
        out.fill(1000)
        await voice.finish("stop")
        assert b"".join(out.pieces) == expected
        assert out.heads == 1
