"""Answers as each runtime writes them on the wire (runtimes §0 to §5), for tests of what reads them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

DONE = b"data: [DONE]\n\n"
_HEAD = {"id": "chatcmpl-7", "object": "chat.completion.chunk", "created": 5, "model": "small"}


def compact(payload: Any) -> bytes:
    return json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode()


def spaced(payload: Any) -> bytes:
    """As Python's json writes by default: a space after each colon and comma, everything but ASCII escaped."""
    return json.dumps(payload).encode()


def data(payload: bytes) -> bytes:
    return b"data: " + payload + b"\n\n"


def usage(completion: int) -> dict[str, int]:
    return {"prompt_tokens": 7, "completion_tokens": completion, "total_tokens": 7 + completion}


def llama_cpp(texts: Iterable[str]) -> list[bytes]:
    def chunk(delta: Mapping[str, Any], reason: str | None = None, **extra: Any) -> bytes:
        choices = [{"finish_reason": reason, "index": 0, "delta": dict(delta)}]
        return data(compact({"choices": choices, "created": 5, "id": "chatcmpl-7", "model": "small", **extra}))

    role = {"role": "assistant", "content": None}
    progress = {"total": 9, "cache": 0, "processed": 9, "time_ms": 1}
    words = [chunk({"content": text}) for text in texts]
    last = data(compact({"choices": [], **_HEAD, "usage": usage(len(words)), "timings": {"predicted_n": len(words)}}))
    return [chunk(role, prompt_progress=progress), chunk(role), *words, chunk({}, "stop"), last, DONE]


def _openai(
    texts: Iterable[str],
    write: Callable[[Any], bytes] = compact,
    *,
    role: bool = True,
    role_everywhere: bool = False,
    per_chunk: Mapping[str, Any] | None = None,
    per_choice: Mapping[str, Any] | None = None,
    last_usage: bool = True,
    usage_everywhere: bool = False,
    last_with_text: bool = False,
) -> list[bytes]:
    texts = list(texts)

    def chunk(delta: Mapping[str, Any], reason: str | None, counted: int) -> bytes:
        choice = {"index": 0, "delta": dict(delta), **(per_choice or {}), "finish_reason": reason}
        extra = {"usage": usage(counted)} if usage_everywhere else dict(per_chunk or {})
        return data(write({**_HEAD, "choices": [choice], **extra}))

    events = [chunk({"role": "assistant", "content": ""}, None, 0)] if role else []
    for number, text in enumerate(texts, 1):
        delta = {"role": "assistant", "content": text} if role_everywhere else {"content": text}
        final = last_with_text and number == len(texts)
        events.append(chunk(delta, "stop" if final else None, number))
    if not (last_with_text and texts):
        events.append(chunk({}, "stop", len(texts)))
    if last_usage:
        events.append(data(write({**_HEAD, "choices": [], "usage": usage(len(texts))})))
    return [*events, DONE]


def _framed(events: Iterable[bytes], change: Callable[[bytes], bytes]) -> list[bytes]:
    return [change(event) for event in events]


@dataclass(frozen=True, slots=True)
class Dialect:
    """``write(texts)`` gives the events of a good answer; ``counts`` when the runtime tells its usage."""

    name: str
    write: Callable[[Iterable[str]], list[bytes]]
    counts: bool = True

    def stream(self, texts: Iterable[str]) -> bytes:
        return b"".join(self.write(texts))


DIALECTS = (
    Dialect("llama.cpp", llama_cpp),
    Dialect("vLLM", lambda texts: _openai(texts, per_choice={"logprobs": None}, per_chunk={"usage": None})),
    Dialect("vLLM, usage in each event", lambda texts: _openai(texts, usage_everywhere=True)),
    Dialect(
        "Ollama",
        lambda texts: _openai(
            texts, role=False, role_everywhere=True, per_chunk={"system_fingerprint": "fp_ollama"}, last_with_text=True
        ),
    ),
    Dialect("LM Studio", lambda texts: _openai(texts, role_everywhere=True, per_choice={"logprobs": None})),
    Dialect("LM Studio, no usage", lambda texts: _openai(texts, last_usage=False), counts=False),
    Dialect("SGLang", lambda texts: _openai(texts, per_choice={"logprobs": None, "matched_stop": None})),
    Dialect("mlx_lm", lambda texts: _openai(texts, spaced)),
    Dialect("CRLF", lambda texts: _framed(llama_cpp(texts), lambda event: event.replace(b"\n", b"\r\n"))),
    Dialect("CR", lambda texts: _framed(_openai(texts), lambda event: event.replace(b"\n", b"\r"))),
    Dialect("BOM", lambda texts: [b"\xef\xbb\xbf", *_openai(texts)]),
    Dialect("no space", lambda texts: _framed(_openai(texts), lambda event: event.replace(b"data: ", b"data:", 1))),
    Dialect("comments", lambda texts: _framed(_openai(texts), lambda event: b": ping\n\n" + event + b":\n\n")),
    Dialect("ids and names", lambda texts: _framed(_openai(texts), lambda event: b"event: x\nid: 4\n" + event)),
    Dialect(
        "retry behind data", lambda texts: _framed(_openai(texts), lambda event: event[:-1] + b"retry: 9\nid: 1\n\n")
    ),
    Dialect("blank lines", lambda texts: _framed(_openai(texts), lambda event: event + b"\n\n\n")),
)
