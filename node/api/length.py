"""Is a prompt too long for the model? Asked before it queues: from the queue a refusal could only be told in a stream
that has long begun, while one that runs at once hears it from the runtime in time."""

from __future__ import annotations

from node.runtimes.base import Generation, Runtime
from node.runtimes.upstream_errors import context_exceeded

# Tokens that a chat template may put around one message, and around them all: some bring instructions of their own.
_PER_MESSAGE = 16
_PER_PROMPT = 256


async def refuse_too_long(runtime: Runtime, generation: Generation, context: int) -> None:
    """Raises ApiError ``context_length_exceeded`` when the prompt leaves no room in ``context`` (tokens, 0 = unknown).
    The runtime is asked only where that is possible at all; where it does not tell, it will judge at its turn."""
    if not context or _most_tokens(generation) < context:
        return
    count = await runtime.count_prompt(generation)
    if count is not None and count >= context:
        raise context_exceeded(count, context)


def _most_tokens(generation: Generation) -> int:
    """No prompt has more: a token stands for a byte at least."""
    text = sum(len(message["content"].encode()) for message in generation.messages)
    return text + _PER_MESSAGE * len(generation.messages) + _PER_PROMPT
