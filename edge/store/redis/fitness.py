"""Whether a server can hold the counts, by what it says of itself."""

from __future__ import annotations

import re
from typing import Any

# The oldest that is tested.
_OLDEST = (7, 0)


def unfit(info: dict[str, Any]) -> str | None:
    """Why a server that says ``info`` of itself cannot hold the counts, as the end of a sentence; None when it can."""
    version = str(info.get("redis_version", "7.0"))
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < _OLDEST:
        return f"is Redis {version}: install version 7 or later, or Valkey."
    if info.get("role") == "slave":
        return "is a replica, which cannot be written to: name the primary in edge.store."
    return evicts(info)


def evicts(info: dict[str, Any]) -> str | None:
    """As ``unfit``, for a server that throws keys away when its memory is full: a quota would begin anew, unseen."""
    policy = info.get("maxmemory_policy", "noeviction")
    if int(info.get("maxmemory", 0)) == 0 or policy == "noeviction":
        return None
    return (
        f"may throw away what it counts when its memory is full (maxmemory-policy {policy}): "
        "set maxmemory-policy noeviction there."
    )
