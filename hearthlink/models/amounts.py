"""Sizes and durations as a person reads them. Decimal units, as hubs and disks are labelled."""

from __future__ import annotations

_UNITS = ((10**9, "GB", 2), (10**6, "MB", 1), (10**3, "kB", 1))


def size(count: float) -> str:
    """``386_404_992`` as "386 MB", ``1_117_320_736`` as "1.12 GB"."""
    for unit, name, digits in _UNITS:
        if count >= unit:
            value = count / unit
            return f"{value:.{0 if value >= 100 else digits}f} {name}"
    return f"{count:.0f} byte{'' if round(count) == 1 else 's'}"


def duration(seconds: float) -> str:
    """ "40 s", "12 min" or "3 h 5 min"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
