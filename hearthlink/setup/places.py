"""Where Tailscale Serve was told to lead to this edge, kept in the state folder: settings change, and what was put
there under the old ones has to be found again."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from shared.state import StateDir

_FILE = "served.json"
_LARGEST = 64 * 1024  # bytes; far above what is written here


class Place(NamedTuple):
    """``name`` and ``port`` are what people write, ``target`` is what they are led to."""

    name: str
    port: int
    target: str


def remember(state: Path, place: Place) -> None:
    """In place of what was remembered. Root writes it for the edge's user, who must be able to read and to replace it.
    Raises StateError and OSError."""
    path = StateDir(state).path / _FILE
    draft = path.with_name(f".{_FILE}.{os.getpid()}")
    try:
        draft.write_text(json.dumps(place._asdict()) + "\n", encoding="utf-8")
        draft.chmod(0o644)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def recall(state: Path) -> Place | None:
    """The last place; None where there is none, or nothing that can be read."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        with (state / _FILE).open(encoding="utf-8") as file:
            found: Mapping[str, object] = json.loads(file.read(_LARGEST))
        return Place(str(found["name"]), int(str(found["port"])), str(found["target"]))
    return None


def forget(state: Path) -> None:
    """What is left behind where it cannot be removed does no harm: it is looked for, and not found."""
    with contextlib.suppress(OSError):
        (state / _FILE).unlink(missing_ok=True)
