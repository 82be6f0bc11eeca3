"""How many parts the messages of one request have: each costs the edge time that everybody's answers wait for."""

from __future__ import annotations

from typing import Any

# Of all messages together. Reading as many takes some 20 ms.
MAX_PARTS = 4096
_PLACES = ("content", "output", "tool_calls")


def few_parts(messages: Any) -> Any:
    """``messages`` as they came, before anything in them is looked at. Raises ValueError when they are too many
    parts."""
    if sum(map(_parts, _list(messages))) > MAX_PARTS:
        raise ValueError(f"the messages of a request have at most {MAX_PARTS} parts together")
    return messages


def _parts(message: Any) -> int:
    """Also those inside of others, where a tool's result is a list."""
    if not isinstance(message, dict):
        return 0
    parts = [part for place in _PLACES for part in _list(message.get(place))]
    return len(parts) + sum(len(_list(part.get("content"))) for part in parts if isinstance(part, dict))


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
