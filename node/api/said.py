"""What was said in messages, made plain text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from node.api.way import Asking

# Where text stands in a message and its parts, or more parts do.
_PLACES = ("text", "thinking", "content")


def clean_said(messages: Iterable[dict[str, Any]], asking: Asking) -> None:
    """Clean the text of ``messages``, in their place. Chat templates and runtimes put the parts of a message together
    with nothing between them, and some of them messages of one role: so what a role said is cleaned as one text, and so
    is what the model thought, and what tools gave."""
    voices: dict[str, list[tuple[dict[str, Any], str]]] = {}
    for message in messages:
        for voice, holder, place in _texts(message, message.get("role", "")):
            voices.setdefault(voice, []).append((holder, place))
    for found in voices.values():
        cleaned = asking.clean_joined([holder[place] for holder, place in found])
        for (holder, place), text in zip(found, cleaned, strict=True):
            holder[place] = text


def _texts(holder: dict[str, Any], voice: str) -> Iterator[tuple[str, dict[str, Any], str]]:
    """(who says it, what holds it, under which key)."""
    if holder.get("type") == "tool_result":
        voice = "tool"
    for place in _PLACES:
        value = holder.get(place)
        if isinstance(value, str):
            yield "thinking" if place == "thinking" else voice, holder, place
        elif isinstance(value, list):
            for part in value:
                yield from _texts(part, voice)
