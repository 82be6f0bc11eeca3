"""A chat type's own system prompt, and what callers may not put in its place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from node.api.way import Asking
from shared.contract.errors import ApiError


def system_prompt(
    asking: Asking, metadata: Mapping[str, Any] | None, *, own: bool, offers: bool = False, called: bool = False
) -> str | None:
    """The system prompt of the chat type that is asked for, with what it wants to know of ``metadata``; None for a raw
    model. ``own``: the caller brought a system prompt; ``offers``: or tools, which templates describe in it and which
    the owner may have stripped; ``called``: or calls of some, or what they gave. Raises ApiError ``invalid_request``
    for any of these where the chat type does not take it."""
    kind = asking.chat_type
    if kind is None:
        return None
    if own:
        text = "A chat type brings its own system prompt: send user and assistant messages only."
        raise ApiError("invalid_request", text, param="messages")
    if (called or (offers and not asking.strips("tools"))) and not kind.tools:
        text = (
            "This chat type takes no tools, as they would stand in its system prompt. Send none, or ask the node's"
            " owner to allow them (tools = true in the chat type's file)."
        )
        raise ApiError("invalid_request", text, param="tools")
    return kind.prompt(metadata or {}, asking.clean)
