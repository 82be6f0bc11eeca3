"""Answers of ``/v1/messages``, Anthropic's API."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from node.formats.events import to_json
from node.formats.format import Format
from node.formats.named import NamedAnswer, NamedReading, NamedStream
from node.formats.pieces import Item, Piece, call_piece, count_of, object_of, text_of
from shared.contract import sse

# Why an answer is over, in Anthropic's words and in ours; "stop_sequence" is told from "stop" by the sequence.
_REASONS: Mapping[str, str] = MappingProxyType(
    {
        "end_turn": "stop",
        "stop_sequence": "stop",
        "max_tokens": "length",
        "model_context_window_exceeded": "length",
        "tool_use": "tool_calls",
        "refusal": "content_filter",
    }
)
_STOP_REASONS: Mapping[str, str] = MappingProxyType(
    {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}
)
_DELTA = b"event: content_block_delta\n"
_TEXT = b'"delta":{"type":"text_delta","text":"'


class MessagesReading(NamedReading):
    """``stop_sequence`` is the one that ended the answer. An answer is over when ``message_stop`` is here."""

    stop_sequence: str | None = None

    def _read(self, kind: str, fields: Mapping[str, Any]) -> list[Piece]:
        if kind == "content_block_delta":
            return self._delta(object_of(fields.get("delta")))
        if kind == "content_block_start":
            return self._block(object_of(fields.get("content_block")))
        if kind == "message_start":
            self._start(object_of(fields.get("message")))
        elif kind == "message_delta":
            self._over(object_of(fields.get("delta")), object_of(fields.get("usage")))
        elif kind == "message_stop":
            self.done = True
        return []

    def _delta(self, delta: Mapping[str, Any]) -> list[Piece]:
        kind = delta.get("type")
        if kind == "text_delta":
            return [Piece("text", text_of(delta.get("text")))]
        if kind == "thinking_delta":
            return [Piece("thought", text_of(delta.get("thinking")))]
        if kind == "input_json_delta":
            return [Piece("arguments", text_of(delta.get("partial_json")))]
        return []

    def _block(self, block: Mapping[str, Any]) -> list[Piece]:
        kind = block.get("type")
        if kind == "text":
            return [Piece("text", text_of(block.get("text")))]
        if kind == "thinking":
            return [Piece("thought", text_of(block.get("thinking")))]
        if kind == "tool_use":
            return call_piece(block.get("id"), block.get("name"))
        return []

    def _start(self, message: Mapping[str, Any]) -> None:
        self._named(message.get("model"))
        usage = object_of(message.get("usage"))
        self.cached = count_of(usage.get("cache_read_input_tokens"))
        made = count_of(usage.get("cache_creation_input_tokens"))
        self.tally.prompt_tokens = count_of(usage.get("input_tokens")) + self.cached + made

    def _over(self, delta: Mapping[str, Any], usage: Mapping[str, Any]) -> None:
        if isinstance(reason := delta.get("stop_reason"), str):
            self.finish_reason = _REASONS.get(reason, "stop")
        # Only what the caller sent can have ended the answer, and may be said to.
        sequence = delta.get("stop_sequence")
        self.stop_sequence = sequence if sequence in (self.inference.parameters.get("stop") or ()) else None
        self._spent(self.tally.prompt_tokens, usage.get("output_tokens"))

    def usage_fields(self, completion_tokens: int) -> dict[str, int]:
        """Anthropic counts what was cached apart."""
        return {
            "input_tokens": max(0, self.tally.prompt_tokens - self.cached),
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": self.cached,
            "output_tokens": completion_tokens,
        }

    def stop_reason(self, reason: str) -> str:
        return "stop_sequence" if self.stop_sequence is not None else _STOP_REASONS.get(reason, "end_turn")

    def message(self, content: list[dict[str, Any]], completion_tokens: int, reason: str | None) -> dict[str, Any]:
        return {
            "id": f"msg_{self.chat_id}",
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": content,
            "stop_reason": reason,
            "stop_sequence": self.stop_sequence,
            "usage": self.usage_fields(completion_tokens),
        }


class MessagesStream(NamedStream):
    """Ordinary events pass as they came; their block has the number that the runtime gave it."""

    reading: MessagesReading  # pyright: ignore[reportIncompatibleVariableOverride]
    after = b'"}}'

    def _opening(self) -> bytes:
        return _event("message_start", {"message": self.reading.message([], 0, None)})

    def _begin(self, item: Item) -> bytes:
        return _event("content_block_start", {"index": item.index, "content_block": _block(item, "")})

    def _more(self, item: Item, text: str) -> bytes:
        return _delta(item, {"text": "text_delta", "thought": "thinking_delta", "call": "input_json_delta"}, text)

    def _around(self, raw: bytes, item: Item) -> bytes:
        before = b'data: {"type":"content_block_delta","index":%d,' % item.index
        pattern = _DELTA + before + _TEXT
        return pattern if raw.startswith(pattern) and raw.endswith(self.after) else b""

    def _plain(self, raw: bytes, text: bytes) -> bytes:
        return raw + b"\n\n"

    def _end(self, item: Item) -> bytes:
        last = b""
        if item.kind == "thought":  # clients send it back unread; nobody here signs a thought
            delta = {"type": "signature_delta", "signature": ""}
            last = _event("content_block_delta", {"index": item.index, "delta": delta})
        return last + _event("content_block_stop", {"index": item.index})

    def _ending(self, reason: str) -> bytes:
        reading = self.reading
        delta = {"stop_reason": reading.stop_reason(reason), "stop_sequence": reading.stop_sequence}
        usage = reading.usage_fields(reading.tally.completion_tokens)
        return _event("message_delta", {"delta": delta, "usage": usage})


class MessagesAnswer(NamedAnswer):
    reading: MessagesReading  # pyright: ignore[reportIncompatibleVariableOverride]

    def _object(self, items: list[Item], reason: str) -> dict[str, Any]:
        reading = self.reading
        content = [_block(item, item.text) for item in items]
        return reading.message(content, reading.tally.completion_tokens, reading.stop_reason(reason))


def _block(item: Item, text: str) -> dict[str, Any]:
    """A content block with ``text`` in it."""
    if item.kind == "text":
        return {"type": "text", "text": text}
    if item.kind == "thought":
        return {"type": "thinking", "thinking": text, "signature": ""}
    return {"type": "tool_use", "id": item.id, "name": item.name, "input": _arguments(text)}


def _arguments(text: str) -> dict[str, Any]:
    if not text:
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):  # cut by max_tokens, most likely: stop_reason says so
        return {}
    return value


def _delta(item: Item, kinds: Mapping[str, str], text: str) -> bytes:
    field = {"text": "text", "thought": "thinking", "call": "partial_json"}[item.kind]
    return _event("content_block_delta", {"index": item.index, "delta": {"type": kinds[item.kind], field: text}})


def _event(kind: str, fields: Mapping[str, Any]) -> bytes:
    return sse.encode(to_json({"type": kind, **fields}), event=kind)


def _text_of(events: bytes) -> str:
    """What the model says in ``events``."""
    texts: list[str] = []
    for block in events.split(b"\n\n"):
        for event in sse.read_event(block) if block else ():
            if event.event == "content_block_delta":
                texts.append(json.loads(event.data)["delta"].get("text", ""))
    return "".join(texts)


MESSAGES = Format(MessagesReading, MessagesStream, MessagesAnswer, _text_of)
