"""Reading what a server says of itself: a field that is missing or of another type is the empty value of its own."""

from __future__ import annotations

from typing import Any


def text(item: Any, name: str) -> str:
    value = item.get(name) if isinstance(item, dict) else None
    return value if isinstance(value, str) else ""


def number(item: Any, name: str) -> int:
    """A whole number above 0, else 0."""
    value = item.get(name) if isinstance(item, dict) else None
    return value if type(value) is int and value > 0 else 0


def table(item: Any, name: str) -> dict[str, Any]:
    value = item.get(name) if isinstance(item, dict) else None
    return value if isinstance(value, dict) else {}


def rows(item: Any, name: str) -> list[dict[str, Any]]:
    """The objects of a list."""
    value = item.get(name) if isinstance(item, dict) else None
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []
