"""Calls of tools, put together from the pieces that a stream brings."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from shared.contract.errors import ApiError


class ToolCalls:
    """``take`` the pieces as they come; ``whole`` gives the calls in the order in which they began."""

    def __init__(self) -> None:
        self._calls: dict[int, dict[str, Any]] = {}

    def take(self, pieces: Iterable[Any]) -> None:
        """``pieces`` are of one event. Raises ApiError ``upstream_invalid``."""
        for piece in pieces:
            function = piece.get("function") if isinstance(piece, dict) else None
            index = piece.get("index", len(self._calls)) if isinstance(piece, dict) else None
            if not isinstance(function, dict) or type(index) is not int:
                raise ApiError("upstream_invalid", "The model runtime sent a call of a tool in an unknown form.")
            call = self._calls.setdefault(index, {"id": "", "name": "", "arguments": []})
            call["id"] = call["id"] or piece.get("id") or ""
            call["name"] = call["name"] or function.get("name") or ""
            if (arguments := function.get("arguments")) is not None:
                call["arguments"].append(arguments if isinstance(arguments, str) else json.dumps(arguments))

    def whole(self) -> list[dict[str, Any]]:
        return [
            {
                "id": call["id"],
                "type": "function",
                "function": {"name": call["name"], "arguments": "".join(call["arguments"]) or "{}"},
            }
            for call in self._calls.values()
        ]
