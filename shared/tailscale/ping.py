"""Pings through tailscaled: is a peer there, and by which path.

A TSMP ping goes through WireGuard, so it makes the handshake; a disco ping looks for the best path and tells it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from shared.tailscale.nodes import Path
from shared.tailscale.reading import Json, name, number, seconds, text

Kind = Literal["disco", "TSMP", "ICMP", "peerapi"]


@dataclass(frozen=True, slots=True)
class Ping:
    """``error`` is empty when the peer answered. The path is told by disco pings only: ``endpoint`` "ip:port" when it
    is direct, ``peer_relay``, or ``region`` of the relay. ``seconds`` is the round trip."""

    address: str
    node: str
    error: str
    seconds: float | None
    endpoint: str
    peer_relay: str
    region: str

    @property
    def path(self) -> Path:
        if self.error:
            return Path.UNKNOWN
        if self.endpoint:
            return Path.DIRECT
        if self.peer_relay:
            return Path.PEER_RELAYED
        return Path.RELAYED if self.region else Path.UNKNOWN

    @classmethod
    def read(cls, answer: Json) -> Ping:
        relay = number(answer.get("DERPRegionID"))
        return cls(
            address=text(answer.get("IP")),
            node=name(answer.get("NodeName")),
            error=text(answer.get("Err")),
            seconds=seconds(answer.get("LatencySeconds")),
            endpoint=text(answer.get("Endpoint")),
            peer_relay=text(answer.get("PeerRelay")),
            region=(text(answer.get("DERPRegionCode")) or str(relay)) if relay else "",
        )
