"""How long a prompt is, asked of llama.cpp: it counts with its own template and its own reading of special tokens."""

from __future__ import annotations

from collections.abc import Mapping

from node.runtimes.base import Generation
from node.runtimes.transport import Transport

# A megabyte takes a quarter of a second; nobody waits longer for a refusal that the runtime will give as well.
COUNT_SECONDS = 1.5


async def count_prompt(
    transport: Transport, base: str, headers: Mapping[str, str], generation: Generation
) -> int | None:
    """Tokens of the prompt that the server behind ``base`` (the URL that ends in its version) would read; None when it
    does not tell: too old for the question, busy, or gone."""
    messages = [{"role": message["role"], "content": message["content"]} for message in generation.messages]
    body = {"model": generation.model, "messages": messages}
    try:
        reply = await transport.ask(f"{base}/chat/completions/input_tokens", headers, COUNT_SECONDS, body)
    except OSError:
        return None
    count = reply.payload.get("input_tokens") if reply.status == 200 and isinstance(reply.payload, dict) else None
    return count if type(count) is int else None
