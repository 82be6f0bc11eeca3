"""Streams of named events, as ``/v1/responses`` and ``/v1/messages`` have them.

    the runtime's events ──> NamedReading ──> Pieces ──> NamedStream ──> events for the caller
                                                    └──> NamedAnswer ──> one JSON object

Runtimes write these APIs incompletely (llama.cpp b11549 leaves out every index and number of /v1/responses, and calls
an answer that was cut complete), and clients that check what they read trip over that. So what a runtime says is read
into pieces, and everything around them is written anew. Only an ordinary piece of text is recognised by its bytes.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from node.formats.events import MAX_ANSWER, json_of, to_json, whole_events
from node.formats.format import ErrorOf
from node.formats.pieces import NAME, Item, Piece, item_for
from node.runtime import Inference
from shared.contract import sse
from shared.contract.errors import ApiError
from shared.contract.surface import Surface
from shared.contract.usage import Usage
from shared.link.call import Call, read_usage


class NamedReading(ABC):
    """What is known of an answer so far. ``cached`` tokens of the prompt did not have to be read."""

    def __init__(self, call: Call, inference: Inference, error_of: ErrorOf) -> None:
        self.tally = call.tally
        self.chat_id = call.chat_id
        self.inference = inference
        self.created = int(time.time())
        self.model = inference.model
        self.finish_reason: str | None = None
        self.usage: Usage | None = None
        self.cached = 0
        self.done = False
        self.error_of = error_of

    def take(self, event: sse.Event) -> list[Piece]:
        """Read one event. Raises ApiError for an error in any dialect."""
        if event.data == "[DONE]":  # of servers that end every stream so; the API itself has an event for it
            return []
        fields = json_of(event, self.error_of)
        if not isinstance(fields, dict):
            raise ApiError("upstream_invalid", "The model runtime sent an event that is not an object.")
        kind = fields.get("type") or event.event
        if "error" in (event.event, kind, fields.get("object")) or fields.get("error"):
            raise self.error_of(fields)
        pieces = [piece for piece in self._read(str(kind), fields) if piece.text or piece.kind == "call"]
        self.counted(sum(1 for piece in pieces if piece.text))
        return pieces

    def counted(self, events: int) -> None:
        """So many events brought a text. The usage of an answer that is over is the last word."""
        if self.usage is None or self.finish_reason is None:
            self.tally.completion_tokens += events

    def check_end(self) -> None:
        if not self.done or self.finish_reason is None:
            raise ApiError("upstream_incomplete", "The model stopped in the middle of its answer. Please try again.")

    def too_long(self) -> bool:
        return self.finish_reason is None and self.tally.completion_tokens > self.inference.max_tokens

    @abstractmethod
    def _read(self, kind: str, fields: Mapping[str, Any]) -> list[Piece]:
        """The pieces of one event of the runtime's; ``finish_reason``, ``usage`` and ``done`` are set on the way."""
        ...

    def _spent(self, prompt: object, completion: object) -> None:
        """What the runtime says it cost, if that can be believed."""
        usage = read_usage({"prompt_tokens": prompt, "completion_tokens": completion})
        if usage is not None:
            self.usage = usage
            self.tally.told(usage)

    def _named(self, model: object) -> None:
        if isinstance(model, str) and NAME.fullmatch(model):
            self.model = model


class NamedStream(ABC):
    """Slices of the runtime's stream in, whole events for the caller out. A subclass writes its API's events."""

    # Bytes that stand around the text of an ordinary event of the runtime's; before the first is known, none is.
    after: ClassVar[bytes]

    def __init__(self, reading: Any, surface: Surface, include_usage: bool) -> None:
        self.reading: NamedReading = reading
        self._surface = surface
        self._framer = sse.Framer()
        self._started = False
        self._items = 0
        self._current: Item | None = None
        self._before = b""
        self.heard = False
        self.failure: ApiError | None = None

    def feed(self, chunk: bytes) -> tuple[bytes, bytes]:
        """(bytes before the first token, bytes of the answer); both hold whole events. Raises ApiError; when good
        events stood before the fault in the same slice, they are returned, and the error is left in ``failure``."""
        if self._before and self._framer.passes(chunk) and (text := self._text_in(chunk[:-2])) is not None:
            self.reading.counted(1)
            return b"", self._plain(chunk[:-2], text)
        notes: list[bytes] = []
        data: list[bytes] = []
        try:
            for raw in whole_events(self._framer, chunk):
                if (text := self._text_in(raw)) is not None:
                    self.reading.counted(1)
                    data.append(self._plain(raw, text))
                    continue
                self._read(raw, notes, data)
                if self.reading.done:
                    break
        except ApiError as error:
            if not notes and not data:
                raise
            self.failure = error
        return b"".join(notes), b"".join(data)

    def finish(self, reason: str | None = None) -> bytes:
        """What ends the stream. ``reason`` replaces the runtime's own for why the answer is over."""
        parts = [] if self._started else [self._opening()]
        parts += self._close()
        parts.append(self._ending(reason or self.reading.finish_reason or "stop"))
        parts.append(self._surface.terminal)
        return b"".join(parts)

    def _text_in(self, raw: bytes) -> bytes | None:
        """The text of an event that is like the last one which was read, around another text; else None."""
        before = self._before
        if not before or not raw.startswith(before) or not raw.endswith(self.after):
            return None
        text = raw[len(before) : -len(self.after)]
        # A quote or backslash needs JSON's rules; a newline would begin another field of the event.
        return None if b'"' in text or b"\\" in text or b"\n" in text else text

    def _read(self, raw: bytes, notes: list[bytes], data: list[bytes]) -> None:
        for event in sse.read_event(raw):
            pieces = self.reading.take(event)
            self.heard = True
            if not self._started:
                self._started = True
                notes.append(self._opening())
            for piece in pieces:
                self._say(piece, data)
            if len(pieces) == 1 and pieces[0].kind == "text" and self._current is not None:
                self._before = self._around(raw, self._current)

    def _say(self, piece: Piece, data: list[bytes]) -> None:
        item = item_for(piece, self._current, self._items, self.reading.chat_id)
        if item is not self._current:
            data += self._close()
            self._current = item
            self._items += 1
            data.append(self._begin(item))
        if piece.text:
            data.append(self._more(item, piece.text))

    def _close(self) -> list[bytes]:
        current, self._current, self._before = self._current, None, b""
        return [] if current is None else [self._end(current)]

    @abstractmethod
    def _opening(self) -> bytes:
        """What a stream begins with."""
        ...

    @abstractmethod
    def _begin(self, item: Item) -> bytes: ...

    @abstractmethod
    def _more(self, item: Item, text: str) -> bytes: ...

    @abstractmethod
    def _around(self, raw: bytes, item: Item) -> bytes:
        """The bytes of ``raw`` in front of its text, where all that follows it is ``after``; else b""."""
        ...

    @abstractmethod
    def _plain(self, raw: bytes, text: bytes) -> bytes:
        """The event for ``text``, which needs no escape; ``raw`` is the runtime's."""
        ...

    @abstractmethod
    def _end(self, item: Item) -> bytes: ...

    @abstractmethod
    def _ending(self, reason: str) -> bytes:
        """What a stream ends with, behind the last item."""
        ...


class NamedAnswer(ABC):
    """Collects a runtime's stream for a caller who wants one JSON object."""

    def __init__(self, reading: Any) -> None:
        self.reading: NamedReading = reading
        self._framer = sse.Framer()
        self._items: list[Item] = []
        self._size = 0

    def feed(self, chunk: bytes) -> None:
        """Raises ApiError."""
        self._size += len(chunk)
        if self._size > MAX_ANSWER:
            raise ApiError("upstream_invalid", "The model runtime's answer does not end.")
        for raw in whole_events(self._framer, chunk):
            for event in sse.read_event(raw):
                for piece in self.reading.take(event):
                    self._add(piece)
                if self.reading.done:
                    return

    def text(self) -> str:
        return "".join(item.text for item in self._items if item.kind == "text")

    def body(self, extra: Mapping[str, Any], reason: str | None = None) -> bytes:
        """The JSON answer; ``extra`` fields are added to it."""
        return to_json({**self._object(self._items, reason or self.reading.finish_reason or "stop"), **extra})

    def _add(self, piece: Piece) -> None:
        current = self._items[-1] if self._items else None
        item = item_for(piece, current, len(self._items), self.reading.chat_id)
        if item is not current:
            self._items.append(item)
        item.texts.append(piece.text)

    @abstractmethod
    def _object(self, items: list[Item], reason: str) -> dict[str, Any]: ...
