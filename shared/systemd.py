"""Telling systemd how a service is: up, stopping, alive (sd_notify(3)). A datagram to ``$NOTIFY_SOCKET``, which systemd
sets for units of ``Type=notify``; without it nothing is sent."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

from loguru import logger

READY = "READY=1"
STOPPING = "STOPPING=1"
ALIVE = "WATCHDOG=1"
# Seconds that systemd may take to hear what is said once. What is said again and again waits for nothing.
_ONCE_WITHIN = 1.0


class Notifier:
    """``tell`` never raises: a service that systemd does not hear of still serves, and systemd then says so itself."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._path = environ.get("NOTIFY_SOCKET", "")
        # Meant for another process of the unit when it has another process's id.
        pid = environ.get("WATCHDOG_PID", "")
        ours = not pid or pid == str(os.getpid())
        usec = environ.get("WATCHDOG_USEC", "")
        self.watchdog = int(usec) / 1_000_000 if ours and usec.isdecimal() and int(usec) else None
        """Seconds within which systemd must hear ``ALIVE``, or it ends the service; None when it does not ask."""

    def tell(self, state: str) -> None:
        if not self._path:
            return
        address = "\0" + self._path[1:] if self._path.startswith("@") else self._path
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.settimeout(0.0 if state == ALIVE else _ONCE_WITHIN)
                sock.sendto(state.encode(), address)
        except OSError as error:
            logger.warning("systemd could not be told {}: {}", state, error.strerror or error)
