"""Lenient reading of what Go wrote as JSON: a nil list is null, a missing field is unknown, a zero time is none.

Each function takes whatever stands in a field, or None where there is no such field, and never raises.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any

Json = Mapping[str, Any]


def text(value: object) -> str:
    return value if isinstance(value, str) else ""


def name(value: object) -> str:
    """A DNS name without the trailing dot that tailscaled writes."""
    return text(value).removesuffix(".")


def texts(value: object) -> tuple[str, ...]:
    return tuple(item for item in value if isinstance(item, str)) if isinstance(value, list) else ()


def flag(value: object) -> bool | None:
    """None is unknown."""
    return value if isinstance(value, bool) else None


def number(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def seconds(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def moment(value: object) -> datetime | None:
    """A time with its zone. Go writes "no time" as the year 1."""
    try:
        read = datetime.fromisoformat(text(value))
    except ValueError:
        return None
    return read if read.year > 1 and read.tzinfo is not None else None


def mapping(value: object) -> Json:
    return value if isinstance(value, dict) else {}


def mappings(value: object) -> tuple[Json, ...]:
    return tuple(item for item in value if isinstance(item, dict)) if isinstance(value, list) else ()


def host(value: str) -> str:
    """The address of a prefix: "100.64.0.1" of "100.64.0.1/32"."""
    return value.partition("/")[0]


def capabilities(value: object) -> Mapping[str, tuple[Any, ...]]:
    """Name to values, which may be none and are any JSON."""
    return {
        name: tuple(values) if isinstance(values, list) else ()
        for name, values in mapping(value).items()
        if isinstance(name, str)
    }
