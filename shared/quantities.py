"""Durations and sizes as people write them: ``"30s"``, ``"1h30m"``, ``"256KiB"``. Pure."""

from __future__ import annotations

import math
import re

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES = {
    "": 1,
    "b": 1,
    "kb": 1000,
    "mb": 1000**2,
    "gb": 1000**3,
    "kib": 1024,
    "mib": 1024**2,
    "gib": 1024**3,
}
# At most nine digits before the point: enough for 31 years in seconds, and float() cannot be made to work hard.
_NUMBER = r"\d{1,9}(?:\.\d{1,9})?"
_DURATION_PART = re.compile(rf"({_NUMBER})\s*(ms|s|m|h|d)\s*")
_DURATION = re.compile(rf"\s*(?:{_DURATION_PART.pattern})+", re.ASCII)
_PLAIN = re.compile(rf"\s*({_NUMBER})\s*", re.ASCII)
_SIZE = re.compile(r"\s*(\d{1,12})\s*([kmg]?i?b?)\s*", re.ASCII | re.IGNORECASE)


def duration(value: object) -> float:
    """Seconds in ``value``: a number of seconds, or text such as ``"500ms"``, ``"30s"``, ``"1h30m"``, ``"24h"``.

    Raises ValueError with a sentence that does not repeat the value.
    """
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0:
        return float(value)
    if isinstance(value, str):
        if plain := _PLAIN.fullmatch(value):
            return float(plain[1])
        if _DURATION.fullmatch(value):
            return sum(float(number) * _SECONDS[unit] for number, unit in _DURATION_PART.findall(value))
    raise ValueError('is not a duration: write a number of seconds, or text such as "500ms", "30s", "10m" or "24h"')


def size_text(count: int) -> str:
    """``count`` bytes as people write them, in the largest unit that leaves no rest: ``"64KiB"``."""
    units = (("GiB", 1024**3), ("MiB", 1024**2), ("KiB", 1024))
    return next((f"{count // each}{unit}" for unit, each in units if count and count % each == 0), str(count))


def size(value: object) -> int:
    """Bytes in ``value``: a whole number, or text such as ``"256KiB"`` (1024) or ``"1MB"`` (1000).

    Raises ValueError with a sentence that does not repeat the value.
    """
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if isinstance(value, str) and (match := _SIZE.fullmatch(value)) and match[2].lower() in _BYTES:
        return int(match[1]) * _BYTES[match[2].lower()]
    raise ValueError('is not a size: write a whole number of bytes, or text such as "256KiB" or "1MiB"')
