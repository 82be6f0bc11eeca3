"""Is a prompt too long for the model? Asked before it queues: from the queue a refusal could only be told in a stream
that has long begun, while one that runs at once hears it from the runtime in time."""

from __future__ import annotations

import json

from node.runtime import Api, Inference, Runtime
from node.runtimes.upstream_errors import context_exceeded

# Tokens that a chat template may put around one message, and around them all: some bring instructions of their own.
_PER_MESSAGE = 16
_PER_PROMPT = 256
_INDENTED = 4
_COUNTED: frozenset[Api] = frozenset({"chat", "responses", "messages"})


async def refuse_too_long(runtime: Runtime, inference: Inference, context: int) -> None:
    """Raises ApiError ``context_length_exceeded`` when the prompt leaves no room in ``context`` (tokens, 0 = unknown).
    The runtime is asked only where that is possible at all; where it does not tell, it will judge at its turn."""
    if not context or inference.api not in _COUNTED or _most_tokens(inference) < context:
        return
    count = await runtime.count_prompt(inference)
    if count is not None and count >= context:
        raise context_exceeded(count, context)


def _most_tokens(inference: Inference) -> int:
    """No prompt has more: a token stands for a byte at least. Tools and calls are written as JSON, and some templates
    indent it. The newer APIs have both in all places."""
    if inference.api != "chat":
        parts = inference.content.get("input", inference.messages)
        content = len(json.dumps([dict(inference.content), inference.parameters.get("tools")]))
        return _INDENTED * content + _PER_MESSAGE * len(parts) + _PER_PROMPT
    text = calls = 0
    for message in inference.messages:
        content = message.get("content")
        text += len(content.encode() if isinstance(content, str) else json.dumps(content))
        calls += len(json.dumps(message.get("tool_calls", "")))
    tools = inference.parameters.get("tools")
    calls += len(json.dumps(tools)) if tools else 0
    return text + _INDENTED * calls + _PER_MESSAGE * len(inference.messages) + _PER_PROMPT
