"""What a node answers in the tests of a link's session, and how the other side reads it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from shared.contract.usage import Usage
from shared.link.call import Call, End, Outlet
from shared.link.session import LinkClosed
from shared.link.streams import Reply
from tests.waiting import HANGS

HEADERS = {"content-type": "text/event-stream"}
EVENT = b'data: {"choices":[]}\n\n'


async def answer(call: Call, out: Outlet) -> End:
    """A good answer: a note, two events that repeat the body, END with two tokens."""
    out.head(HEADERS)
    out.note(b": note\n\n")
    await out.data(b"data: %s\n\n" % call.body)
    await asyncio.sleep(0)
    await out.data(b"data: [DONE]\n\n")
    return End("stop", Usage(3, 2), "small")


class Slow:
    """Answers without end: an event now, then silence until it is cancelled."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.cancelled = 0

    async def __call__(self, call: Call, out: Outlet) -> End:
        try:
            out.head(HEADERS)
            await out.data(EVENT)
            call.tally.prompt_tokens, call.tally.completion_tokens = 5, 1
            self.begun.set()
            await asyncio.Event().wait()
        finally:
            self.cancelled += 1
        raise AssertionError("not reached")


async def read_all(reply: Reply) -> bytes:
    received = b""
    while piece := await reply.read():
        received += piece
        reply.passed_on(len(piece))
    return received


async def closing(run: asyncio.Task[LinkClosed]) -> LinkClosed:
    return await asyncio.wait_for(run, HANGS)


def content(frame: tuple[int, int, bytes]) -> dict[str, Any]:
    return json.loads(frame[2])
