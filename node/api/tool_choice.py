"""Which of a caller's tools are offered to the model, and in which words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from node.api.way import Asking
from shared.contract.errors import ApiError

Tool = TypeVar("Tool")


def offered(tools: Sequence[Tool] | None, chosen: str | None, name_of: Callable[[Tool], str]) -> Sequence[Tool]:
    """``tools``, of which the one that is ``chosen`` by its name is the only one: no runtime but OpenAI's reads that
    name, all of them know that a tool is required. Raises ApiError ``invalid_request`` when it is not there."""
    tools = tools or []
    if chosen is None:
        return tools
    found = [tool for tool in tools if name_of(tool) == chosen]
    if not found:
        raise ApiError("invalid_request", "tool_choice: there is no tool of that name in tools.", param="tool_choice")
    return found


def in_openais_words(tools: list[dict[str, Any]], choice: Any, parallel: bool | None, asking: Asking) -> dict[str, Any]:
    """The parameters of OpenAI's two APIs for ``tools``, which are those offered; {} without any. ``choice`` and
    ``parallel`` are left out where they are None."""
    if not tools:
        return {}
    found: dict[str, Any] = {"tools": [asking.clean_all(tool) for tool in tools]}
    if choice is not None:
        found["tool_choice"] = choice
    if parallel is not None:
        found["parallel_tool_calls"] = parallel
    return found
