"""OpenAI's older API: a text that is gone on with, ``choices[0].text``."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from node.formats.format import ErrorOf, Format
from node.formats.likeness import Likeness
from node.formats.openai import Reading, StreamNormaliser, WholeAnswer, choices_of
from node.runtime import Inference
from shared.contract.errors import ApiError
from shared.contract.surface import Surface
from shared.link.call import Call

_LOGPROBS = (b'"logprobs":{', b'"logprobs": {')


class CompletionReading(Reading):
    """``logprobs`` are in this API's own shape, whichever the runtime's was; a text's offset counts characters of the
    answer."""

    _offset = 0

    def _delta(self, chunk: dict[str, Any]) -> dict[str, Any] | None:
        delta = super()._delta(chunk)
        if self.logprobs is not None and isinstance(listed := self.logprobs.get("content"), list):
            self.logprobs = self._older(listed)
        return delta

    def _older(self, listed: list[Any]) -> dict[str, Any]:
        """From what a chat's have, one object for each token (llama.cpp, runtimes §2.2)."""
        found: dict[str, Any] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for one in listed:
            token, logprob = _told(one)
            others = one.get("top_logprobs") if isinstance(one, dict) else None
            found["tokens"].append(token)
            found["token_logprobs"].append(logprob)
            found["top_logprobs"].append(dict(map(_told, others)) if isinstance(others, list) else None)
            found["text_offset"].append(self._offset)
            self._offset += len(token)
        return found

    def _shown(self, choice: dict[str, Any]) -> dict[str, Any]:
        text = choice.get("text")
        if text and not isinstance(text, str):
            raise ApiError("upstream_invalid", "The model runtime sent text of another type.")
        return {"text": text} if text else {}


class _TextOnly(Likeness):
    """Events with log probabilities are read: their shape may be another API's."""

    def passes(self, event: bytes) -> bool:
        return self._same(event) is not None or (not any(map(event.__contains__, _LOGPROBS)) and super().passes(event))


class CompletionStream(StreamNormaliser):
    object_name = "text_completion"
    text_key = "text"

    def __init__(self, reading: Reading, surface: Surface, include_usage: bool) -> None:
        super().__init__(reading, surface, include_usage)
        self._likeness = _TextOnly(self.text_key)

    def _opening(self) -> bytes:
        return b""

    def _choice(
        self, delta: dict[str, Any], logprobs: dict[str, Any] | None = None, finish_reason: str | None = None
    ) -> dict[str, Any]:
        return {"index": 0, "text": delta.get("text", ""), "logprobs": logprobs, "finish_reason": finish_reason}


class WholeCompletion(WholeAnswer):
    object_name = "text_completion"
    text_key = "text"

    def body(self, extra: Mapping[str, Any], reason: str | None = None) -> bytes:
        # llama.cpp calls a completion as it calls a chat. In a stream that stands in events that pass as they came.
        self.reading.id = f"cmpl-{self.reading.id.removeprefix('chatcmpl-').removeprefix('cmpl-')}"
        return super().body(extra, reason)

    def _said(self) -> dict[str, Any]:
        return {"text": self.text(), "logprobs": None}


def _told(one: Any) -> tuple[str, float | None]:
    """A token and its log probability. Raises ApiError."""
    token = one.get("token") if isinstance(one, dict) else None
    if not isinstance(token, str):
        raise ApiError("upstream_invalid", "The model runtime sent log probabilities of another shape.")
    logprob = one.get("logprob")
    return token, logprob if isinstance(logprob, (int, float)) else None


def _new_reading(call: Call, inference: Inference, error_of: ErrorOf) -> CompletionReading:
    return CompletionReading(call.tally, inference.max_tokens, f"cmpl-{call.chat_id}", int(time.time()), error_of)


def _text_of(events: bytes) -> str:
    texts = (choice.get("text") for choice in choices_of(events))
    return "".join(text for text in texts if isinstance(text, str))


COMPLETIONS = Format(_new_reading, CompletionStream, WholeCompletion, _text_of)
