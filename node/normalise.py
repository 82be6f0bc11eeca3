"""What the runtime said, turned into what the caller may see.

An ordinary event passes as it came. It is known by its likeness: the same bytes as the last one that was looked at,
around another text. Where that fails, substring tests decide: inside a JSON string every quote is escaped, so a
quoted key can only be a key. Only the first, the finishing, the usage and odd events are parsed (design §3.4).
Success is a finish_reason *and* ``[DONE]`` (runtimes §0).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

from shared.contract import sse
from shared.contract.chat import Usage
from shared.contract.errors import ApiError
from shared.contract.surface import Surface
from shared.link.call import Tally, read_usage

# Any of these in an event and it is read instead of passed on.
_ODD = (
    b'"finish_reason":"',
    b'"finish_reason": "',
    b'"usage":{',
    b'"usage": {',
    b'"error"',
    b'"reasoning"',
    b'"prompt_progress"',
    b"[DONE]",
    b"\n",  # more lines than the one of data: an event name, a comment
)
# Nor can the text of these be taken out without reading the event.
_NOT_ONLY_TEXT = (b'"reasoning_content":"', b'"tool_calls":[')
_TEXT = b'"content":"'
_OBJECT = (b"data: {", b"data:{")
# An event without any of these says nothing to the caller, or says it in an unknown way.
_SAYS = (_TEXT, b'"content": "', *_NOT_ONLY_TEXT, b'"reasoning_content": "', b'"tool_calls": [')
_STRING = json.JSONDecoder()
# What a runtime calls an answer or a model is repeated in every event made here.
_MAX_NAME = 256
# Bytes of the stream behind one whole answer, about 250 a token: its text is held in memory until the end.
_MAX_ANSWER = 64 << 20


class Likeness:
    """Recognises ordinary events of one stream: ``data:`` with nothing of interest but a text.

    ``passes(event)`` for those that may be relayed; ``text(event)`` gives the text of one whose rest says nothing, else
    None. Cost: three comparisons where the runtime repeats itself, as all known ones do.
    """

    def __init__(self) -> None:
        self._before = b""
        self._after = b""
        self._around = sys.maxsize  # nothing is like what has not been seen

    def passes(self, event: bytes) -> bool:
        return self._same(event) is not None or (
            _ordinary(event) and any(map(event.__contains__, _SAYS)) and self._learn(event)
        )

    def text(self, event: bytes) -> str | None:
        found = self._same(event)
        if found is not None:
            return found.decode("utf-8", "replace")
        if not _ordinary(event) or any(map(event.__contains__, _NOT_ONLY_TEXT)):
            return None
        at = event.find(_TEXT)
        if at < 0:
            return None
        self._learn(event)
        try:
            return _STRING.raw_decode(event.decode(), len(event[: at + len(_TEXT) - 1].decode()))[0]
        except ValueError:
            return None

    def _same(self, event: bytes) -> bytes | None:
        if not (event.startswith(self._before) and event.endswith(self._after) and len(event) >= self._around):
            return None
        text = event[len(self._before) : len(event) - len(self._after)]
        # A quote or backslash needs JSON's rules; the newline would make it two lines of SSE.
        return None if b'"' in text or b"\\" in text or b"\n" in text else text

    def _learn(self, event: bytes) -> bool:
        """Take ``event``, which is ordinary, as the pattern of the next ones; True always."""
        before, key, rest = event.partition(_TEXT)
        text, quote, after = rest.partition(b'"')
        if quote and b"\\" not in text and not any(map(event.__contains__, _NOT_ONLY_TEXT)):
            self._before, self._after = before + key, quote + after
            self._around = len(self._before) + len(self._after)
        return True


def _ordinary(event: bytes) -> bool:
    return event.startswith(_OBJECT) and event.endswith(b"}") and not any(map(event.__contains__, _ODD))


class Reading:
    """What is known of an answer so far; shared by the streamed and the whole form."""

    def __init__(
        self, tally: Tally, max_tokens: int, id: str, created: int, error_of: Callable[[object], ApiError]
    ) -> None:
        """``id`` and ``created`` (Unix seconds) stand in until the runtime has named its own."""
        self.id = id
        self.created = created
        self.model = ""
        self._named = False
        self.finish_reason: str | None = None
        self.usage: Usage | None = None
        self.done = False
        self.tally = tally
        self._max_tokens = max_tokens
        self._error_of = error_of

    def take(self, event: sse.Event) -> dict[str, Any] | None:
        """Read one event; the delta it brings for the caller, or None. Raises ApiError for an error in any dialect."""
        if event.data == "[DONE]":
            self.done = True
            return None
        if event.error is not None:
            raise self._error_of(event.error)
        try:
            chunk = json.loads(event.data)
        except (ValueError, RecursionError):
            if event.event == "error":
                raise self._error_of(event.data) from None
            raise ApiError("upstream_invalid", "The model runtime sent something that is not JSON.") from None
        if event.event == "error":
            raise self._error_of(chunk)
        if not isinstance(chunk, dict):
            raise ApiError("upstream_invalid", "The model runtime sent an event that is not an object.")
        if chunk.get("error") or chunk.get("object") == "error":
            raise self._error_of(chunk)
        if (usage := read_usage(chunk.get("usage"))) is not None:
            self.usage = usage
            self.tally.prompt_tokens, self.tally.completion_tokens = usage.prompt_tokens, usage.completion_tokens
        if not self._named:
            self._named = True
            self._name(chunk)
        return self._delta(chunk)

    def _name(self, chunk: dict[str, Any]) -> None:
        for field, kind in (("id", str), ("model", str), ("created", int)):
            if (value := chunk.get(field)) and isinstance(value, kind) and len(str(value)) <= _MAX_NAME:
                setattr(self, field, value)

    def _delta(self, chunk: dict[str, Any]) -> dict[str, Any] | None:
        choices = chunk.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            return None
        if isinstance(reason := choices[0].get("finish_reason"), str):
            self.finish_reason = reason
        delta = choices[0].get("delta")
        if not isinstance(delta, dict):
            return None
        shown: dict[str, Any] = {}
        for name, value, kind in (
            ("content", delta.get("content"), str),
            ("reasoning_content", delta.get("reasoning_content") or delta.get("reasoning"), str),
            ("tool_calls", delta.get("tool_calls"), list),
        ):
            if value and not isinstance(value, kind):
                raise ApiError("upstream_invalid", f"The model runtime sent {name} of another type.")
            if value:
                shown[name] = value
        if shown and self.usage is None:
            self.tally.completion_tokens += 1
        return shown or None

    def check_end(self) -> None:
        """At EOF or ``[DONE]``. Raises ApiError ``upstream_incomplete`` when the answer is cut."""
        if not self.done or self.finish_reason is None:
            raise ApiError("upstream_incomplete", "The model stopped in the middle of its answer. Please try again.")

    def too_long(self) -> bool:
        """The runtime has passed max_tokens (Ollama is reported to ignore it): end the answer ourselves."""
        return self.usage is None and self.finish_reason is None and self.tally.completion_tokens > self._max_tokens


class StreamNormaliser:
    """Slices of a runtime's stream in, whole events for the caller out."""

    def __init__(self, reading: Reading, surface: Surface, include_usage: bool) -> None:
        self.reading = reading
        self._surface = surface
        self._include_usage = include_usage
        self._framer = sse.Framer()
        self._likeness = Likeness()
        self._flowing = False
        self._noted_role = False
        self.heard = False  # the runtime has said something that is no error: its verdict is in
        self.failure: ApiError | None = None

    def feed(self, chunk: bytes) -> tuple[bytes, bytes]:
        """(bytes before the first token, bytes of the answer); both hold whole events. Raises ApiError; when good
        events stood before the fault in the same slice, they are returned, and the error is left in ``failure``."""
        if self._flowing and self._framer.passes(chunk) and self._likeness.passes(chunk[:-2]):
            self._count(1)  # one ordinary event, in a read of its own: nearly all are
            return b"", chunk
        events = _whole_events(self._framer, chunk)
        if self._flowing and all(map(self._likeness.passes, events)):
            self._count(len(events))
            return b"", b"\n\n".join(events) + b"\n\n" if events else b""
        return self._read(events)

    def _count(self, events: int) -> None:
        if self.reading.usage is None:
            self.reading.tally.completion_tokens += events

    def _read(self, events: list[bytes]) -> tuple[bytes, bytes]:
        notes: list[bytes] = []
        data: list[bytes] = []
        try:
            for raw in events:
                if self._flowing and self._likeness.passes(raw):
                    self._count(1)
                    data.append(raw + b"\n\n")
                elif not self._read_one(raw, notes, data):
                    break
        except ApiError as error:
            if not notes and not data:
                raise
            self.failure = error
        return b"".join(notes), b"".join(data)

    def _read_one(self, raw: bytes, notes: list[bytes], data: list[bytes]) -> bool:
        """Parse what is not ordinary; False once the runtime is done."""
        for event in sse.read_event(raw):
            delta = self.reading.take(event)
            if self.reading.done:
                return False
            self.heard = True
            if not self._noted_role:
                self._noted_role = True
                notes.append(self._chunk({"role": "assistant", "content": ""}))
            if delta is not None:
                self._flowing = True
                data.append(self._chunk(delta))
        return True

    def finish(self, reason: str | None = None) -> bytes:
        """The finishing chunk, the usage chunk where it is wanted, and the surface's terminal marker."""
        reading = self.reading
        parts = [] if self._noted_role else [self._chunk({"role": "assistant", "content": ""})]
        parts.append(self._chunk({}, reason or reading.finish_reason or "stop"))
        if self._include_usage:
            parts.append(self._encode({"choices": [], "usage": reading.tally.usage().to_wire()}))
        parts.append(self._surface.terminal)
        return b"".join(parts)

    def _chunk(self, delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
        return self._encode({"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]})

    def _encode(self, fields: dict[str, Any]) -> bytes:
        reading = self.reading
        head = {"id": reading.id, "object": "chat.completion.chunk", "created": reading.created, "model": reading.model}
        return sse.encode(_to_json({**head, **fields}))


def _to_json(fields: dict[str, Any]) -> bytes:
    try:
        return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:  # half a surrogate pair, cut in two by some runtimes: only an escape can hold it
        return json.dumps(fields, separators=(",", ":")).encode()


def _whole_events(framer: sse.Framer, chunk: bytes) -> list[bytes]:
    """The events that ``chunk`` completes, without their blank lines."""
    try:
        events = framer.feed(chunk).split(b"\n\n")
    except sse.SSEError:
        raise ApiError("upstream_invalid", "The model runtime sent an event over 1 MiB.") from None
    return [event for event in (piece.lstrip(b"\n") for piece in events) if event]


class WholeAnswer:
    """Collects a runtime's stream for a caller who wants one JSON object."""

    def __init__(self, reading: Reading) -> None:
        self.reading = reading
        self._framer = sse.Framer()
        self._likeness = Likeness()
        self._texts: list[str] = []
        self._reasoning: list[str] = []
        self._size = 0

    def feed(self, chunk: bytes) -> None:
        """Raises ApiError."""
        self._size += len(chunk)
        if self._size > _MAX_ANSWER:
            raise ApiError("upstream_invalid", "The model runtime's answer does not end.")
        for raw in _whole_events(self._framer, chunk):
            if (text := self._likeness.text(raw)) is not None:
                self._texts.append(text)
                if text and self.reading.usage is None:
                    self.reading.tally.completion_tokens += 1
                continue
            for event in sse.read_event(raw):
                delta = self.reading.take(event)
                if self.reading.done:
                    return
                if delta is not None:
                    self._texts.append(delta.get("content", ""))
                    self._reasoning.append(delta.get("reasoning_content", ""))

    def body(self, extra: dict[str, Any], reason: str | None = None) -> bytes:
        """The JSON answer of design §3.3; ``extra`` fields are added to it."""
        reading = self.reading
        message: dict[str, Any] = {"role": "assistant", "content": "".join(self._texts)}
        if any(self._reasoning):
            message["reasoning_content"] = "".join(self._reasoning)
        choice = {"index": 0, "message": message, "finish_reason": reason or reading.finish_reason or "stop"}
        answer = {
            "id": reading.id,
            "object": "chat.completion",
            "created": reading.created,
            "model": reading.model,
            "choices": [choice],
            "usage": reading.tally.usage().to_wire(),
            **extra,
        }
        return _to_json(answer)
