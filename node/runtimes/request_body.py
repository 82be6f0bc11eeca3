"""The body a runtime is sent: built from known fields, so that nothing a caller wrote reaches it by another name."""

from __future__ import annotations

from typing import Any

from node.runtimes.base import Generation

# Servers that refuse a request whose prompt and max_tokens together pass the context, instead of ending it there.
_COUNT_BOTH = frozenset({"vLLM", "SGLang"})
_BYTES_PER_TOKEN = 3  # low for English (4 to 5), about right for scripts of three bytes a letter
_TOKENS_PER_MESSAGE = 8  # role and separators of a chat template, rounded up


def request_body(generation: Generation, server: str, context: int = 0) -> dict[str, Any]:
    """Body of POST /v1/chat/completions for ``server`` (a name of ``servers``); ``context`` in tokens, 0 = unknown.

    Always a stream with usage: closing the socket is the only cancel that every runtime understands.
    """
    messages = [{"role": message["role"], "content": message["content"]} for message in generation.messages]
    body: dict[str, Any] = {
        "model": generation.model,
        "messages": messages,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    limit = generation.max_tokens
    if server in _COUNT_BOTH and context:
        limit = max(1, min(limit, context - _prompt_tokens(messages)))
    # OpenAI's own newer models refuse max_tokens; everyone else knows that name, and Ollama only that one.
    body["max_completion_tokens" if server == "OpenAI" else "max_tokens"] = limit
    for name in ("temperature", "top_p", "stop", "seed"):
        if (value := getattr(generation, name)) is not None:
            body[name] = value
    if server == "llama.cpp":
        # Without progress events llama.cpp looks at the socket only after the whole prompt was read.
        body["return_progress"] = True
    return body


def _prompt_tokens(messages: list[dict[str, str]]) -> int:
    size = sum(len(message["content"].encode()) for message in messages)
    return size // _BYTES_PER_TOKEN + _TOKENS_PER_MESSAGE * len(messages)
