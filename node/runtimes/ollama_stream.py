"""Ollama's own stream, one JSON object a line, turned into the events that every other runtime sends.

What is known only here is kept: the reason of the end, the tokens, calls of tools, reasoning, log probabilities. Its
errors pass as they are: whoever reads events knows all shapes of them.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any

from node.runtime import RuntimeStream
from shared.contract.errors import ApiError

_MAX_LINE = 1 << 20  # as for an event of any other runtime
_REASONS = {"length": "length", "": None}  # every other reason is an ordinary end; none at all is a cut answer
_DONE = b"data: [DONE]\n\n"


class ChunkWriter:
    """The events of one answer, of ``/api/chat`` or (``chat`` False) of ``/api/generate``."""

    def __init__(self, model: str, chat: bool) -> None:
        self._chat = chat
        kind, prefix = ("chat.completion.chunk", "chatcmpl") if chat else ("text_completion", "cmpl")
        # Ollama's own ids repeat after 999 answers.
        self._head = {
            "id": f"{prefix}-{secrets.token_hex(12)}", "object": kind, "created": int(time.time()), "model": model
        }  # fmt: skip
        before = _compact({**self._head, "choices": [{"index": 0}]}).removesuffix(b"}]}")
        name = b',"delta":{"content":' if chat else b',"text":'
        self._before = b"data: " + before + name
        self._after = (b"}" if chat else b"") + b',"finish_reason":null}]}\n\n'
        self._calls = 0

    def events(self, line: Mapping[str, Any]) -> bytes:
        """What one object of the stream says. Raises ApiError ``upstream_invalid``."""
        if "error" in line:
            return _event({"error": line["error"]})
        message = line.get("message") if self._chat else line
        if not isinstance(message, Mapping):
            raise ApiError("upstream_invalid", "Ollama sent a line that is no part of an answer.")
        if set(message) <= {"role", "content"} and not line.get("done") and "logprobs" not in line:
            text = message.get("content")
            return self._text(text) if text else b""
        return self._whole(message, line) + (self._end(line) if line.get("done") else b"")

    def _text(self, text: Any) -> bytes:
        return self._before + _compact(text) + self._after

    def _whole(self, message: Mapping[str, Any], line: Mapping[str, Any]) -> bytes:
        if not self._chat:
            return self._chunk({"text": text}) if (text := message.get("response")) else b""
        delta: dict[str, Any] = {}
        if thinking := message.get("thinking"):
            delta["reasoning_content"] = thinking
        if text := message.get("content"):
            delta["content"] = text
        if calls := message.get("tool_calls"):
            delta["tool_calls"] = [self._call(call) for call in calls]
        choice: dict[str, Any] = {"delta": delta}
        if told := line.get("logprobs"):
            choice["logprobs"] = {"content": [_logprob(item) for item in told]}
        return self._chunk(choice) if delta or told else b""

    def _call(self, call: Any) -> dict[str, Any]:
        """One call of a tool; Ollama tells each as a whole. Its number here counts through the answer."""
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise ApiError("upstream_invalid", "Ollama sent a call of a tool without a name.")
        number, self._calls = self._calls, self._calls + 1
        given = call.get("id")
        return {
            "index": number,
            "id": given if isinstance(given, str) and given else f"call_{secrets.token_hex(12)}",
            "type": "function",
            "function": {"name": function["name"], "arguments": _compact(function.get("arguments") or {}).decode()},
        }

    def _end(self, line: Mapping[str, Any]) -> bytes:
        told = line.get("done_reason")
        reason = _REASONS.get(told if isinstance(told, str) else "", "stop")
        if reason is None:
            return b""
        if self._calls:
            reason = "tool_calls"
        prompt, answer = _count(line, "prompt_eval_count"), _count(line, "eval_count")
        usage = {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}
        last = {"delta": {}} if self._chat else {"text": ""}
        return self._chunk(last, reason) + _event({**self._head, "choices": [], "usage": usage}) + _DONE

    def _chunk(self, choice: Mapping[str, Any], reason: str | None = None) -> bytes:
        return _event({**self._head, "choices": [{"index": 0, **choice, "finish_reason": reason}]})


class OllamaStream:
    """A ``RuntimeStream`` of whole events over the native one, which stays its maker's.

    ``on_end`` hears how many tokens of prompt Ollama read, once it has told; what it raises, reading raises.
    """

    content_type = "text/event-stream"

    def __init__(self, stream: RuntimeStream, writer: ChunkWriter, on_end: Callable[[int], None]) -> None:
        self._stream = stream
        self._writer = writer
        self._on_end = on_end
        self._rest = b""

    @property
    def at_end(self) -> bool:
        return self._stream.at_end

    async def read_slowly(self, seconds: float) -> bytes:
        return self._events(await self._stream.read_slowly(seconds))

    async def read(self) -> bytes:
        while piece := await self._stream.read():
            if events := self._events(piece):
                return events
        return b""

    def _events(self, piece: bytes) -> bytes:
        *lines, self._rest = (self._rest + piece).split(b"\n")
        if len(self._rest) > _MAX_LINE:
            raise ApiError("upstream_invalid", "The model runtime sent an event over 1 MiB.")
        return b"".join([self._event(line) for line in lines if line.strip()])

    def _event(self, line: bytes) -> bytes:
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            raise ApiError("upstream_invalid", "The model runtime sent something that is not JSON.") from None
        if not isinstance(found, dict):
            raise ApiError("upstream_invalid", "The model runtime sent a line that is not an object.")
        if found.get("done") and (count := _count(found, "prompt_eval_count")):
            self._on_end(count)
        return self._writer.events(found)


def _compact(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def _event(payload: Mapping[str, Any]) -> bytes:
    return b"data: " + _compact(payload) + b"\n\n"


def _count(line: Mapping[str, Any], name: str) -> int:
    value = line.get(name)
    return value if type(value) is int and value >= 0 else 0


def _logprob(item: Any) -> dict[str, Any]:
    """As OpenAI writes it: with the bytes of the token, and a list of others, which may be empty."""
    return {**_token(item), "top_logprobs": [_token(other) for other in item.get("top_logprobs") or ()]}


def _token(item: Any) -> dict[str, Any]:
    if not isinstance(item, Mapping) or not isinstance(token := item.get("token"), str):
        raise ApiError("upstream_invalid", "Ollama sent log probabilities in a way unknown here.")
    return {"token": token, "logprob": item.get("logprob"), "bytes": list(token.encode("utf-8", "replace"))}
