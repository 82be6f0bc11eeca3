"""Where Tailscale Serve leads to this edge: read from its configuration, and kept in the state folder, as settings
change and what was put there under the old ones has to be found again. Imported when it is used."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from edge.serve_listener import SOCKET
from shared.settings import Settings
from shared.state import StateDir
from shared.tailscale.reading import mapping, text
from shared.tailscale.serve import Config

_FILE = "served.json"
_LARGEST = 64 * 1024  # bytes; far above what is written here


class Place(NamedTuple):
    """``name`` and ``port`` are what people write, ``target`` is what they are led to."""

    name: str
    port: int
    target: str

    @property
    def host(self) -> str:
        return f"{self.name}:{self.port}"


def target_of(settings: Settings) -> str:
    """What the setting ``edge.serve`` stands for, as Serve's configuration has it."""
    setting = settings.edge.serve
    return unix_target(settings) if setting in ("auto", "off", "unix") else f"http://{setting}"


def unix_target(settings: Settings) -> str:
    return f"unix:{settings.state / SOCKET}"


def led_here(config: Config, settings: Settings) -> list[Place]:
    """Everything in Serve's ``config`` that leads to this edge: to what the setting stands for, or to its socket, which
    is nobody else's; and what was put there last, which may have been another port of loopback, under whatever name."""
    targets, last = {target_of(settings), unix_target(settings)}, recall(settings.state)
    found: list[Place] = []
    for host, web in mapping(config.get("Web")).items():
        name, _, port = host.rpartition(":")
        target = text(mapping(mapping(mapping(web).get("Handlers")).get("/")).get("Proxy"))
        if not port.isdigit():
            continue
        if target in targets or (last is not None and (last.port, last.target) == (int(port), target)):
            found.append(Place(name, int(port), target))
    return found


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
