"""How an answer is spoken: event by event as it is made, or whole at its end."""

from __future__ import annotations

import json
from collections import deque
from typing import Protocol

from node.api.compose import Composed
from node.api.way import Reply
from node.formats.format import Format, Reading
from shared.contract import sse
from shared.contract.body import AnyBody
from shared.contract.surface import Surface
from shared.link.call import Call, Outlet
from shared.link.streams import cut

SSE_TYPE = "text/event-stream; charset=utf-8"
JSON_TYPE = "application/json"
# Events of one answer that are kept before their text is read, about a thousand of them.
_MAX_KEPT = 256 << 10


class Herald(Protocol):
    """Tells a caller how their request stands before it is answered. ``commit`` says that no status can follow any
    more; one that speaks whole answers never does so early. ``begun``: the head has left. ``live``: what is fed leaves
    at once."""

    live: bool

    @property
    def begun(self) -> bool: ...

    def queued(self, place: int, eta: float | None) -> None: ...
    def loading(self, model: str, progress: float | None) -> None: ...
    def commit(self) -> None: ...


class Voice(Herald, Protocol):
    """``said`` is the model's text so far, where it was to be kept."""

    @property
    def said(self) -> str: ...
    async def feed(self, chunk: bytes) -> None: ...
    async def finish(self, reason: str | None = None) -> None:
        """Ends the answer. It may be called again after it was interrupted; then ``reason`` stands as it was."""
        ...


class Streamed:
    """Events as they come. ``remember`` them, so that their text can be told at the end."""

    live = True

    def __init__(
        self,
        call: Call,
        body: AnyBody,
        composed: Composed,
        format: Format,
        reading: Reading,
        out: Outlet,
        remember: bool,
    ) -> None:
        surface = call.surface
        assert isinstance(surface, Surface), "an operation is no answer"
        self._out = out
        self._named_events = surface.named_events
        self._events = format.streaming(reading, surface, body.include_usage)
        self._headers = {"content-type": SSE_TYPE, **_dropped(composed)}
        self._prompt = composed.prompt
        self._text_of = format.text if remember else None
        self._kept: list[bytes] = []  # whole events whose text was not read yet, _MAX_KEPT bytes of them
        self._kept_size = 0
        self._texts: list[str] = []
        self._left: deque[bytes] | None = None  # what of the end has still to leave
        self.begun = False
        self._first_due = bool(composed.prompt.first)  # with the answer: until that comes, it may change

    @property
    def said(self) -> str:
        self._read_kept()
        return "".join(self._texts)

    def queued(self, place: int, eta: float | None) -> None:
        self._tell("queued", {"position": place, "eta_seconds": eta})

    def loading(self, model: str, progress: float | None) -> None:
        self._tell("loading", {"model": model, "progress": progress})

    def _tell(self, event: str, fields: dict[str, object]) -> None:
        if self._named_events:
            self.commit()
            self._out.note(sse.encode(json.dumps(fields, separators=(",", ":")), event=event))

    def commit(self) -> None:
        if not self.begun:
            self.begun = True
            self._out.head(self._headers)

    def _begin(self) -> None:
        self.commit()
        if self._first_due:
            self._first_due = False
            self._out.note(self._prompt.first)

    async def feed(self, chunk: bytes) -> None:
        notes, data = self._events.feed(chunk)
        if self._events.heard:
            self._begin()
        if notes:
            self._out.note(notes)
        if data:
            if self._text_of is not None:
                self._kept.append(data)
                self._kept_size += len(data)
                if self._kept_size > _MAX_KEPT:
                    self._read_kept()
            await self._out.data(data)
        if self._events.failure is not None:
            raise self._events.failure

    def _read_kept(self) -> None:
        if self._text_of is not None:
            self._texts.append(self._text_of(b"".join(self._kept)))
        self._kept.clear()
        self._kept_size = 0

    async def finish(self, reason: str | None = None) -> None:
        if self._left is None:
            self._begin()
            self._left = deque(cut(self._events.finish(reason)))
        await _send_all(self._left, self._out)


class Whole:
    """One JSON object at the end."""

    live = False
    begun = False  # it leaves in one piece

    def __init__(
        self, call: Call, body: AnyBody, composed: Composed, format: Format, reading: Reading, out: Outlet
    ) -> None:
        surface = call.surface
        assert isinstance(surface, Surface), "an operation is no answer"
        self._out = out
        self._answer = format.collecting(reading)
        self._headers = {"content-type": JSON_TYPE, **_dropped(composed)}
        self._extra = composed.prompt.fields
        self._extra["request_id"] = call.request_id
        self._left: deque[bytes] | None = None
        if surface.named_events and body.chat_type is not None:
            self._extra["chat_type"] = body.chat_type

    @property
    def said(self) -> str:
        return self._answer.text()

    def queued(self, place: int, eta: float | None) -> None:
        pass

    def loading(self, model: str, progress: float | None) -> None:
        pass

    def commit(self) -> None:
        pass

    async def feed(self, chunk: bytes) -> None:
        self._answer.feed(chunk)

    async def finish(self, reason: str | None = None) -> None:
        if self._left is None:
            self._left = deque(cut(self._answer.body(self._extra, reason)))
            self._out.head(self._headers)
        await _send_all(self._left, self._out)


class Silent:
    """Nothing until the runtime's one object is there: for routes that have no streams."""

    live = False
    begun = False  # it leaves in one piece

    def __init__(self, composed: Composed, out: Outlet) -> None:
        self._out = out
        self._headers = {"content-type": JSON_TYPE, **_dropped(composed)}

    def queued(self, place: int, eta: float | None) -> None:
        pass

    def loading(self, model: str, progress: float | None) -> None:
        pass

    def commit(self) -> None:
        pass

    async def give(self, reply: Reply) -> None:
        self._out.head(self._headers)
        await self._out.data(reply.body)


async def _send_all(pieces: deque[bytes], out: Outlet) -> None:
    """Each leaves once, also when a wait for a slow reader is interrupted and this is called again."""
    while pieces:
        await out.data(pieces[0])
        pieces.popleft()


def _dropped(composed: Composed) -> dict[str, str]:
    return {"Hearthlink-Dropped-Params": ", ".join(composed.dropped)} if composed.dropped else {}
