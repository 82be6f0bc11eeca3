"""The first frame of each side: who it is, and whether both speak the same versions (design §3.8). Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shared.contract import CONTRACT_VERSION
from shared.link import PROTOCOL_VERSION
from shared.link.frames import FrameError


@dataclass(frozen=True, slots=True)
class Hello:
    """What each side says of itself first. ``id`` survives restarts, ``boot`` does not."""

    id: str
    boot: str
    version: str
    protocol: int = PROTOCOL_VERSION
    contract: int = CONTRACT_VERSION

    def to_wire(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "boot": self.boot,
            "version": self.version,
            "protocol": self.protocol,
            "contract": self.contract,
        }


def disagreement(wire: Mapping[str, Any]) -> str | None:
    """Why a link to the side that sent ``wire`` cannot be, with what to do; None when it can. Raises FrameError for
    what is no HELLO."""
    for name, ours in (("protocol", PROTOCOL_VERSION), ("contract", CONTRACT_VERSION)):
        theirs = wire.get(name)
        if not isinstance(theirs, int):
            raise FrameError(f"a HELLO without {name}")
        if theirs != ours:
            side = "this side" if theirs > ours else "the other side"
            return f"{name} {theirs} there, {ours} here: upgrade Hearthlink on {side}"
    return None
