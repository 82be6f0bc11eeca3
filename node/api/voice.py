"""How an answer is spoken: event by event as it is made, or whole at its end."""

from __future__ import annotations

import json
import time
from typing import Protocol

from node.normalise import Reading, StreamNormaliser, WholeAnswer
from node.runtimes import upstream_errors
from shared.contract import sse
from shared.contract.chat import AnyChatBody
from shared.link.call import Call, Outlet

SSE_TYPE = "text/event-stream; charset=utf-8"
JSON_TYPE = "application/json"


class Voice(Protocol):
    """``commit`` says that no status can follow any more; a voice that speaks whole answers never does so early.
    ``live``: what is fed leaves at once."""

    live: bool

    def queued(self, place: int, eta: float | None) -> None: ...
    def commit(self) -> None: ...
    async def feed(self, chunk: bytes) -> None: ...
    async def finish(self, reason: str | None = None) -> None: ...


def voice_for(call: Call, body: AnyChatBody, reading: Reading, out: Outlet) -> Voice:
    dropped = {"Hearthlink-Dropped-Params": ", ".join(body.dropped)} if body.dropped else {}
    if call.stream:
        return Streamed(call, body, reading, out, dropped)
    return Whole(call, body, reading, out, dropped)


class Streamed:
    live = True

    def __init__(self, call: Call, body: AnyChatBody, reading: Reading, out: Outlet, headers: dict[str, str]) -> None:
        self._out = out
        self._named_events = call.surface.named_events
        self._normaliser = StreamNormaliser(reading, call.surface, body.include_usage)
        self._headers = {"content-type": SSE_TYPE, **headers}
        self._committed = False

    def queued(self, place: int, eta: float | None) -> None:
        if self._named_events:
            self.commit()
            fields = {"position": place, "eta_seconds": eta}
            self._out.note(sse.encode(json.dumps(fields, separators=(",", ":")), event="queued"))

    def commit(self) -> None:
        if not self._committed:
            self._committed = True
            self._out.head(self._headers)

    async def feed(self, chunk: bytes) -> None:
        notes, data = self._normaliser.feed(chunk)
        if self._normaliser.heard:
            self.commit()
        if notes:
            self._out.note(notes)
        if data:
            await self._out.data(data)
        if self._normaliser.failure is not None:
            raise self._normaliser.failure

    async def finish(self, reason: str | None = None) -> None:
        self.commit()
        await self._out.data(self._normaliser.finish(reason))


class Whole:
    live = False

    def __init__(self, call: Call, body: AnyChatBody, reading: Reading, out: Outlet, headers: dict[str, str]) -> None:
        self._out = out
        self._answer = WholeAnswer(reading)
        self._headers = {"content-type": JSON_TYPE, **headers}
        self._extra = {"request_id": call.request_id}
        if call.surface.named_events and body.chat_type is not None:
            self._extra["chat_type"] = body.chat_type

    def queued(self, place: int, eta: float | None) -> None:
        pass

    def commit(self) -> None:
        pass

    async def feed(self, chunk: bytes) -> None:
        self._answer.feed(chunk)

    async def finish(self, reason: str | None = None) -> None:
        body = self._answer.body(self._extra, reason)
        self._out.head(self._headers)
        await self._out.data(body)


def new_reading(call: Call, max_tokens: int) -> Reading:
    """Ids of our own stand in until the runtime has named its own."""
    return Reading(call.tally, max_tokens, f"chatcmpl-{call.chat_id}", int(time.time()), upstream_errors.from_event)
