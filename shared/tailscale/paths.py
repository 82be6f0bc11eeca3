"""Keeping a path to a peer warm, and telling whether it is direct."""

from __future__ import annotations

import asyncio
from typing import Protocol

from shared.tailscale.errors import NotAnswering
from shared.tailscale.nodes import Path
from shared.tailscale.ping import Kind, Ping

# Seconds for one answer, far more than any path takes: what is lost is sent again sooner than tailscaled would.
_ANSWERS_WITHIN = 1.5
_WARM_TRIES = 4
_WARM_PAUSE = 0.25


class Pinger(Protocol):
    """What is needed of a client."""

    async def ping(self, address: str, kind: Kind = "disco", *, seconds: float = ...) -> Ping: ...


async def warm(client: Pinger, address: str) -> Ping | None:
    """Find the path to a peer and make the WireGuard handshake with it, before somebody waits for it; the disco ping's
    answer, None when the peer gave none. To a peer that was never spoken to the first packet is often lost, and
    WireGuard would send it again only after 5 s; disco pings go around WireGuard. Raises TailscaleError."""
    answer = None
    for left in reversed(range(_WARM_TRIES)):
        answer = await _ping(client, address, "disco")
        if answer is not None and answer.path is not Path.UNKNOWN:
            await _ping(client, address, "TSMP")
            return answer
        if left:
            await asyncio.sleep(_WARM_PAUSE)  # a peer that has just come is not known everywhere yet
    return answer


async def best_path(client: Pinger, address: str, *, tries: int = 10, pause: float = 1.0) -> Ping | None:
    """The last ping's answer, after at most ``tries`` a ``pause`` apart, fewer when one went directly; None when the
    peer answered none. The first answers come through a relay while a direct path is still looked for, so one ping
    proves nothing. Raises TailscaleError."""
    last = None
    for left in reversed(range(tries)):
        answer = await _ping(client, address, "disco")
        if answer is not None and (answer.path is Path.DIRECT or answer.error):
            return last if answer.error and last else answer
        last = answer or last
        if left:
            await asyncio.sleep(pause)
    return last


async def _ping(client: Pinger, address: str, kind: Kind) -> Ping | None:
    try:
        return await client.ping(address, kind, seconds=_ANSWERS_WITHIN)
    except NotAnswering:
        return None
