"""What the runtime said, turned into what the caller may see.

An ordinary event passes as it came. It is known by its likeness: the same bytes as the last one that was looked at,
around another text. Where that fails, substring tests decide: inside a JSON string every quote is escaped, so a
quoted key can only be a key. Only the first, the finishing, the usage and odd events are parsed (design §3.4).
Success is a finish_reason *and* ``[DONE]`` (runtimes §0).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from typing import Any

from node.formats.events import MAX_ANSWER, json_of, to_json, whole_events
from node.formats.format import ErrorOf, Format
from node.formats.likeness import Likeness
from node.formats.tool_calls import ToolCalls
from node.runtime import Inference
from shared.contract import sse
from shared.contract.errors import ApiError
from shared.contract.surface import Surface
from shared.contract.usage import Usage
from shared.link.call import Call, Tally, read_usage

# What a runtime calls an answer or a model is repeated in every event made here.
_MAX_NAME = 256


class Reading:
    """What is known of an answer so far; shared by the streamed and the whole form. ``logprobs`` are those of the event
    that was read last, None where it had none."""

    def __init__(self, tally: Tally, max_tokens: int, id: str, created: int, error_of: ErrorOf) -> None:
        """``id`` and ``created`` (Unix seconds) stand in until the runtime has named its own."""
        self.id = id
        self.created = created
        self.model = ""
        self._named = False
        self.finish_reason: str | None = None
        self.usage: Usage | None = None
        self.logprobs: dict[str, Any] | None = None
        self.done = False
        self.tally = tally
        self._max_tokens = max_tokens
        self._error_of = error_of

    def take(self, event: sse.Event) -> dict[str, Any] | None:
        """Read one event; the delta it brings for the caller, or None. Raises ApiError for an error in any dialect."""
        if event.data == "[DONE]":
            self.done = True
            return None
        chunk = json_of(event, self._error_of)
        if event.event == "error":
            raise self._error_of(chunk)
        if not isinstance(chunk, dict):
            raise ApiError("upstream_invalid", "The model runtime sent an event that is not an object.")
        if chunk.get("error") or chunk.get("object") == "error":
            raise self._error_of(chunk)
        if not self._named:
            self._named = True
            self._name(chunk)
        delta = self._delta(chunk)
        if (usage := read_usage(chunk.get("usage"))) is not None:  # of all so far, this delta included
            self.usage = usage
            self.tally.told(usage)
        return delta

    def _name(self, chunk: dict[str, Any]) -> None:
        for field, kind in (("id", str), ("model", str), ("created", int)):
            if (value := chunk.get(field)) and isinstance(value, kind) and len(str(value)) <= _MAX_NAME:
                setattr(self, field, value)

    def _delta(self, chunk: dict[str, Any]) -> dict[str, Any] | None:
        choices = chunk.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            return None
        choice = choices[0]
        if isinstance(reason := choice.get("finish_reason"), str):
            self.finish_reason = reason
        logprobs = choice.get("logprobs")
        self.logprobs = logprobs if isinstance(logprobs, dict) else None
        shown = self._shown(choice)
        if shown:
            self.count(1)
        return shown or None

    def _shown(self, choice: dict[str, Any]) -> dict[str, Any]:
        """What of ``choice`` the caller may see: fields of its delta."""
        delta = choice.get("delta")
        shown: dict[str, Any] = {}
        if not isinstance(delta, dict):
            return shown
        for name, value, kind in (
            ("content", delta.get("content"), str),
            ("reasoning_content", delta.get("reasoning_content") or delta.get("reasoning"), str),
            ("tool_calls", delta.get("tool_calls"), list),
        ):
            if value and not isinstance(value, kind):
                raise ApiError("upstream_invalid", f"The model runtime sent {name} of another type.")
            if value:
                shown[name] = value
        return shown

    def count(self, events: int) -> None:
        """So many events said something. Behind a usage they count as well, unless the answer is over: some runtimes
        tell one early."""
        if self.usage is None or self.finish_reason is None:
            self.tally.completion_tokens += events

    def check_end(self) -> None:
        """At EOF or ``[DONE]``. Raises ApiError ``upstream_incomplete`` when the answer is cut."""
        if not self.done or self.finish_reason is None:
            raise ApiError("upstream_incomplete", "The model stopped in the middle of its answer. Please try again.")

    def too_long(self) -> bool:
        """The runtime has passed max_tokens (Ollama is reported to ignore it): end the answer ourselves."""
        return self.finish_reason is None and self.tally.completion_tokens > self._max_tokens


class StreamNormaliser:
    """Slices of a runtime's stream in, whole events for the caller out."""

    object_name = "chat.completion.chunk"
    text_key = "content"

    def __init__(self, reading: Reading, surface: Surface, include_usage: bool) -> None:
        self.reading = reading
        self._surface = surface
        self._include_usage = include_usage
        self._framer = sse.Framer()
        self._likeness = Likeness(self.text_key)
        self._flowing = False
        self._opened = False
        self.heard = False  # the runtime has said something that is no error: its verdict is in
        self.failure: ApiError | None = None

    def feed(self, chunk: bytes) -> tuple[bytes, bytes]:
        """(bytes before the first token, bytes of the answer); both hold whole events. Raises ApiError; when good
        events stood before the fault in the same slice, they are returned, and the error is left in ``failure``."""
        if self._flowing and self._framer.passes(chunk) and self._likeness.passes(chunk[:-2]):
            self.reading.count(1)  # one ordinary event, in a read of its own: nearly all are
            return b"", chunk
        events = whole_events(self._framer, chunk)
        if self._flowing and all(map(self._likeness.passes, events)):
            self.reading.count(len(events))
            return b"", b"\n\n".join(events) + b"\n\n" if events else b""
        return self._read(events)

    def _read(self, events: list[bytes]) -> tuple[bytes, bytes]:
        notes: list[bytes] = []
        data: list[bytes] = []
        try:
            for raw in events:
                if self._flowing and self._likeness.passes(raw):
                    self.reading.count(1)
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
            if not self._opened:
                self._opened = True
                notes.append(self._opening())
            if delta is not None:
                self._flowing = True
                data.append(self._encode({"choices": [self._choice(delta, self.reading.logprobs)]}))
        return True

    def finish(self, reason: str | None = None) -> bytes:
        """The finishing chunk, the usage chunk where it is wanted, and the surface's terminal marker."""
        reading = self.reading
        parts = [] if self._opened else [self._opening()]
        parts.append(self._encode({"choices": [self._choice({}, None, reason or reading.finish_reason or "stop")]}))
        if self._include_usage:
            parts.append(self._encode({"choices": [], "usage": reading.tally.usage().to_wire()}))
        parts.append(self._surface.terminal)
        return b"".join(parts)

    def _opening(self) -> bytes:
        """What stands in front of the first text."""
        return self._encode({"choices": [self._choice({"role": "assistant", "content": ""})]})

    def _choice(
        self, delta: dict[str, Any], logprobs: dict[str, Any] | None = None, finish_reason: str | None = None
    ) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        if logprobs is not None:
            choice["logprobs"] = logprobs
        return choice

    def _encode(self, fields: dict[str, Any]) -> bytes:
        reading = self.reading
        head = {"id": reading.id, "object": self.object_name, "created": reading.created, "model": reading.model}
        return sse.encode(to_json({**head, **fields}))


class WholeAnswer:
    """Collects a runtime's stream for a caller who wants one JSON object."""

    object_name = "chat.completion"
    text_key = "content"

    def __init__(self, reading: Reading) -> None:
        self.reading = reading
        self._framer = sse.Framer()
        self._likeness = Likeness(self.text_key)
        self._texts: list[str] = []
        self._reasoning: list[str] = []
        self._calls = ToolCalls()
        self._logprobs: dict[str, Any] = {}
        self._size = 0

    def feed(self, chunk: bytes) -> None:
        """Raises ApiError."""
        self._size += len(chunk)
        if self._size > MAX_ANSWER:
            raise ApiError("upstream_invalid", "The model runtime's answer does not end.")
        for raw in whole_events(self._framer, chunk):
            if (text := self._likeness.text(raw)) is not None:
                self._texts.append(text)
                if text:
                    self.reading.count(1)
                continue
            for event in sse.read_event(raw):
                delta = self.reading.take(event)
                if self.reading.done:
                    return
                if delta is not None:
                    self._take(delta)
                if self.reading.logprobs is not None:
                    _merge(self._logprobs, self.reading.logprobs)

    def _take(self, delta: dict[str, Any]) -> None:
        self._texts.append(delta.get(self.text_key, ""))
        self._reasoning.append(delta.get("reasoning_content", ""))
        self._calls.take(delta.get("tool_calls", ()))

    def body(self, extra: Mapping[str, Any], reason: str | None = None) -> bytes:
        """The JSON answer of design §3.3; ``extra`` fields are added to it."""
        reading = self.reading
        choice = {"index": 0, **self._said(), "finish_reason": reason or reading.finish_reason or "stop"}
        if self._logprobs:
            choice["logprobs"] = self._logprobs
        answer = {
            "id": reading.id,
            "object": self.object_name,
            "created": reading.created,
            "model": reading.model,
            "choices": [choice],
            "usage": reading.tally.usage().to_wire(),
            **extra,
        }
        return to_json(answer)

    def _said(self) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": self.text()}
        if any(self._reasoning):
            message["reasoning_content"] = "".join(self._reasoning)
        if calls := self._calls.whole():
            message["tool_calls"] = calls
            message["content"] = message["content"] or None
        return {"message": message}

    def text(self) -> str:
        return "".join(self._texts)


def _merge(whole: dict[str, Any], piece: dict[str, Any]) -> None:
    """Lists go on where they ended; of anything else the newest stands."""
    for name, value in piece.items():
        if isinstance(value, list) and isinstance(whole.get(name), list):
            whole[name].extend(value)
        else:
            whole[name] = list(value) if isinstance(value, list) else value


def _new_reading(call: Call, inference: Inference, error_of: ErrorOf) -> Reading:
    """Ids of our own stand in until the runtime has named its own."""
    return Reading(call.tally, inference.max_tokens, f"chatcmpl-{call.chat_id}", int(time.time()), error_of)


def choices_of(events: bytes) -> Iterator[dict[str, Any]]:
    """The first choice of each chunk in ``events``. One that passed as it came may be no JSON: it is passed over."""
    for block in events.split(b"\n\n"):
        for event in sse.read_event(block) if block else ():
            try:
                chunk = json.loads(event.data)
            except (ValueError, RecursionError):
                continue  # the terminal marker, for one
            choices = chunk.get("choices") if isinstance(chunk, dict) else None
            if isinstance(choices, list) and choices and isinstance(choices[0], dict):
                yield choices[0]


def _text_of(events: bytes) -> str:
    deltas = (choice.get("delta") for choice in choices_of(events))
    texts = (delta.get("content") for delta in deltas if isinstance(delta, dict))
    return "".join(text for text in texts if isinstance(text, str))


CHAT = Format(_new_reading, StreamNormaliser, WholeAnswer, _text_of)
