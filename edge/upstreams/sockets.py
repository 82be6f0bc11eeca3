"""The TCP sockets of links: they notice a path that died, and keep one warm that is silent."""

from __future__ import annotations

import socket

import aiohttp
from aiohappyeyeballs import AddrInfoType

# Seconds: probes after 15 s of silence keep a tailnet's direct path from being given up (45 s) and a router's mapping
# from lapsing (30 s); three unanswered ones, 5 s apart, end the connection.
_IDLE, _INTERVAL, _COUNT = 15, 5, 3
# Milliseconds that what was sent may stay unacknowledged: longer than a tailscaled takes to come back after a restart.
_USER_TIMEOUT = 20_000


def connector() -> aiohttp.TCPConnector:
    """For a client that dials links; the client closes it."""
    return aiohttp.TCPConnector(limit=0, socket_factory=_socket)


def _socket(address: AddrInfoType) -> socket.socket:
    family, kind, protocol, *_ = address
    made = socket.socket(family, kind, protocol)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _options():
            made.setsockopt(socket.IPPROTO_TCP, name, value)
    except OSError:
        made.close()
        raise
    return made


def _options() -> list[tuple[int, int]]:
    """Those that this platform has. macOS calls the first one otherwise, and lacks the last."""
    idle = getattr(socket, "TCP_KEEPIDLE", getattr(socket, "TCP_KEEPALIVE", None))
    wanted = (
        (idle, _IDLE),
        (socket.TCP_KEEPINTVL, _INTERVAL),
        (socket.TCP_KEEPCNT, _COUNT),
        (getattr(socket, "TCP_USER_TIMEOUT", None), _USER_TIMEOUT),
        (socket.TCP_NODELAY, 1),
    )
    return [(name, value) for name, value in wanted if name is not None]
