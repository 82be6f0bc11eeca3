"""Answers of ``/v1/responses``, OpenAI's newer API."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from node.formats.events import MAX_ANSWER, to_json
from node.formats.format import ErrorOf, Format
from node.formats.named import NamedAnswer, NamedReading, NamedStream
from node.formats.pieces import Item, Piece, call_piece, count_of, object_of, text_of
from node.runtime import Inference
from shared.contract import sse
from shared.contract.errors import ApiError
from shared.contract.surface import Surface
from shared.link.call import Call

_ADDED = "response.output_item.added"
_TEXT = "response.output_text.delta"
_ARGUMENTS = "response.function_call_arguments.delta"
_THOUGHTS = ("response.reasoning_text.delta", "response.reasoning_summary_text.delta")
_OVER = ("response.completed", "response.incomplete", "response.failed")
# Item ids by kind, as OpenAI begins them.
_PREFIXES: Mapping[str, str] = {"text": "msg", "thought": "rs", "call": "fc"}
_PARTS: Mapping[str, str] = {"text": "output_text", "thought": "reasoning_text"}


class ResponsesReading(NamedReading):
    """An answer is over when ``response.completed`` is here, or what stands for it."""

    def __init__(self, call: Call, inference: Inference, error_of: ErrorOf) -> None:
        super().__init__(call, inference, error_of)
        self._called = False
        self.thought_tokens = 0

    def item_id(self, item: Item) -> str:
        return f"{_PREFIXES[item.kind]}_{self.chat_id}_{item.index}"

    def _read(self, kind: str, fields: Mapping[str, Any]) -> list[Piece]:
        if kind in (_TEXT, "response.refusal.delta"):
            return [Piece("text", text_of(fields.get("delta")))]
        if kind in _THOUGHTS:
            return [Piece("thought", text_of(fields.get("delta")))]
        if kind == _ARGUMENTS:
            return [Piece("arguments", text_of(fields.get("delta")))]
        if kind == _ADDED:
            item = object_of(fields.get("item"))
            if item.get("type") == "function_call":
                self._called = True
                return call_piece(item.get("call_id"), item.get("name"), item.get("arguments"))
        elif kind in _OVER:
            self._over(kind, object_of(fields.get("response")))
        return []

    def _over(self, kind: str, response: Mapping[str, Any]) -> None:
        if kind == "response.failed" or response.get("error"):
            raise self.error_of(response.get("error") or "")
        self.done = True
        self._named(response.get("model"))
        usage = object_of(response.get("usage"))
        self._spent(usage.get("input_tokens"), usage.get("output_tokens"))
        self.cached = count_of(object_of(usage.get("input_tokens_details")).get("cached_tokens"))
        self.thought_tokens = count_of(object_of(usage.get("output_tokens_details")).get("reasoning_tokens"))
        self.finish_reason = self._reason(object_of(response.get("incomplete_details")).get("reason"))

    def _reason(self, incomplete: object) -> str:
        if incomplete == "content_filter":
            return "content_filter"
        # llama.cpp b11549 calls an answer "completed" that max_output_tokens has cut.
        full = self.usage is not None and self.tally.completion_tokens >= self.inference.max_tokens
        if incomplete is not None or full:
            return "length"
        return "tool_calls" if self._called else "stop"

    def response(self, status: str, output: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        """The Response object. It repeats what was asked as far as that is the caller's: a system prompt is not."""
        parameters = self.inference.parameters
        return {
            "id": f"resp_{self.chat_id}",
            "object": "response",
            "created_at": self.created,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": None,
            "max_output_tokens": self.inference.max_tokens,
            "metadata": {},
            "model": self.model,
            "output": output,
            "parallel_tool_calls": parameters.get("parallel_tool_calls", True),
            "previous_response_id": None,
            "store": False,
            "temperature": parameters.get("temperature"),
            "tool_choice": parameters.get("tool_choice", "auto"),
            "tools": parameters.get("tools", []),
            "top_p": parameters.get("top_p"),
            "truncation": "disabled",
            "usage": None,
            **more,
        }

    def finished(self, output: list[dict[str, Any]], reason: str) -> tuple[str, dict[str, Any]]:
        """(status, Response object) of an answer that is over for ``reason``."""
        whole = reason in ("stop", "tool_calls")
        status = "completed" if whole else "incomplete"
        why = "max_output_tokens" if reason == "length" else reason
        usage = self.tally.usage()
        return status, self.response(
            status,
            output,
            incomplete_details=None if whole else {"reason": why},
            usage={
                "input_tokens": usage.prompt_tokens,
                "input_tokens_details": {"cached_tokens": self.cached},
                "output_tokens": usage.completion_tokens,
                "output_tokens_details": {"reasoning_tokens": self.thought_tokens},
                "total_tokens": usage.total_tokens,
            },
        )


class ResponsesStream(NamedStream):
    """Every event has its number, so none passes as it came; an ordinary one needs only to be put together."""

    reading: ResponsesReading  # pyright: ignore[reportIncompatibleVariableOverride]
    after = b'"}'

    def __init__(self, reading: ResponsesReading, surface: Surface, include_usage: bool) -> None:
        super().__init__(reading, surface, include_usage)
        self._sequence = 0
        self._output: list[dict[str, Any]] = []
        self._head = b""  # of an event that brings a piece of the current text
        self._size = 0

    def feed(self, chunk: bytes) -> tuple[bytes, bytes]:
        """As ``NamedStream``. The text is kept, because the API repeats it at the end."""
        self._size += len(chunk)
        if self._size > MAX_ANSWER:
            raise ApiError("upstream_invalid", "The model runtime's answer does not end.")
        return super().feed(chunk)

    def _opening(self) -> bytes:
        response = self.reading.response("in_progress", [])
        fields = {"response": response}
        return self._event("response.created", fields) + self._event("response.in_progress", fields)

    def _begin(self, item: Item) -> bytes:
        began = self._event(_ADDED, {"output_index": item.index, "item": self._item(item, "in_progress")})
        if item.kind == "call":
            return began
        if item.kind == "text":
            head = {"type": _TEXT, **self._place(item), "logprobs": []}
            self._head = b"event: %s\ndata: %s" % (_TEXT.encode(), to_json(head)[:-1])
        part = _part(item, "")
        return began + self._event("response.content_part.added", {**self._place(item), "part": part})

    def _more(self, item: Item, text: str) -> bytes:
        item.texts.append(text)
        if item.kind == "call":
            place = self._place(item)
            return self._event(_ARGUMENTS, {**place, "delta": text})
        if item.kind == "thought":
            return self._event(_THOUGHTS[0], {**self._place(item), "delta": text})
        return self._event(_TEXT, {**self._place(item), "logprobs": [], "delta": text})

    def _around(self, raw: bytes, item: Item) -> bytes:
        key = b'"delta":"'
        before, found, _ = raw.partition(key)
        ordinary = found and raw.endswith(self.after) and b'"error"' not in before
        return before + key if ordinary else b""

    def _plain(self, raw: bytes, text: bytes) -> bytes:
        assert self._current is not None, "a plain text continues an item"
        self._current.texts.append(text.decode("utf-8", "replace"))
        self._sequence += 1
        return b'%s,"delta":"%s","sequence_number":%d}\n\n' % (self._head, text, self._sequence - 1)

    def _end(self, item: Item) -> bytes:
        place = self._place(item)
        if item.kind == "call":
            done = self._event(
                "response.function_call_arguments.done", {**place, "name": item.name, "arguments": item.text}
            )
        else:
            kind = "response.output_text.done" if item.kind == "text" else "response.reasoning_text.done"
            more = {"logprobs": []} if item.kind == "text" else {}
            done = self._event(kind, {**place, "text": item.text, **more})
            done += self._event("response.content_part.done", {**place, "part": _part(item, item.text)})
        whole = self._item(item, "completed")
        self._output.append(whole)
        return done + self._event("response.output_item.done", {"output_index": item.index, "item": whole})

    def _ending(self, reason: str) -> bytes:
        status, response = self.reading.finished(self._output, reason)
        return self._event(f"response.{status}", {"response": response})

    def _place(self, item: Item) -> dict[str, Any]:
        place: dict[str, Any] = {"item_id": self.reading.item_id(item), "output_index": item.index}
        return place if item.kind == "call" else {**place, "content_index": 0}

    def _item(self, item: Item, status: str) -> dict[str, Any]:
        return _item(self.reading.item_id(item), item, status)

    def _event(self, kind: str, fields: Mapping[str, Any]) -> bytes:
        self._sequence += 1
        return sse.encode(to_json({"type": kind, **fields, "sequence_number": self._sequence - 1}), event=kind)


class ResponsesAnswer(NamedAnswer):
    reading: ResponsesReading  # pyright: ignore[reportIncompatibleVariableOverride]

    def _object(self, items: list[Item], reason: str) -> dict[str, Any]:
        reading = self.reading
        return reading.finished([_item(reading.item_id(item), item, "completed") for item in items], reason)[1]


def _item(item_id: str, item: Item, status: str) -> dict[str, Any]:
    """An output item, with nothing in it while it is in progress."""
    if item.kind == "call":
        call = {"call_id": item.id, "name": item.name, "arguments": item.text}
        return {"id": item_id, "type": "function_call", "status": status, **call}
    content = [] if status == "in_progress" else [_part(item, item.text)]
    if item.kind == "thought":
        return {"id": item_id, "type": "reasoning", "status": status, "summary": [], "content": content}
    return {"id": item_id, "type": "message", "status": status, "role": "assistant", "content": content}


def _part(item: Item, text: str) -> dict[str, Any]:
    more: dict[str, Any] = {"annotations": [], "logprobs": []} if item.kind == "text" else {}
    return {"type": _PARTS[item.kind], "text": text, **more}


def _text_of(events: bytes) -> str:
    """What the model says in ``events``."""
    texts: list[str] = []
    for block in events.split(b"\n\n"):
        for event in sse.read_event(block) if block else ():
            if event.event == _TEXT:
                texts.append(json.loads(event.data)["delta"])
    return "".join(texts)


RESPONSES = Format(ResponsesReading, ResponsesStream, ResponsesAnswer, _text_of)
