"""Where Tailscale Serve hands over requests: a unix socket in the state folder, or a port of loopback.

A unix socket is the better of the two, since only root and the edge's own user can open it. A port of loopback is open
to every user of this machine, who could write Serve's headers.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from loguru import logger

from shared.addresses import split_listen
from shared.asgi.listener import CannotListen, Listener
from shared.asgi.listening import Listening
from shared.tailscale.socket import find

if TYPE_CHECKING:
    from shared.tailscale.client import LocalClient
    from shared.tailscale.tailnet import Tailnet

SOCKET = "serve.sock"
# The capability version of tailscale 1.94, the first whose Serve passes requests on to a unix socket.
UNIX_SINCE = 131
# Seconds for a connection to a unix socket of this machine.
_CONNECT_WITHIN = 1.0
# Seconds until a socket that could not be made is tried again.
_TRY_AGAIN = 5.0


class ServeListener:
    """``setting`` is ``edge.serve``, ``state`` the folder that the unix socket is in."""

    def __init__(self, setting: str, state: Path) -> None:
        self._setting = setting
        self._on_unix = setting in ("auto", "off", "unix")
        host, port = ("", 0) if self._on_unix else split_listen(setting)
        self._listener = Listener("serve", host, port, path=str(state / SOCKET) if self._on_unix else "")

    def wanted(self, tailscaled: str) -> bool:
        """Whether to be a member of the tailnet on its account. On ``auto`` only where somebody listens at the socket
        ``tailscaled``, or at the usual one; on Linux, since Apple's sandbox keeps Serve from other programs' sockets.
        """
        if self._setting != "auto":
            return self._setting != "off"
        return sys.platform == "linux" and _listens(find(tailscaled).path)

    @asynccontextmanager
    async def opened(
        self,
        listening: Listening,
        client: LocalClient | None,
        tailnet: Tailnet | None,
        tell: Callable[[str], None],
    ) -> AsyncIterator[None]:
        """While the block runs, listen: at once where the setting asks for it by name, on ``auto`` as soon as
        tailscaled has told that it can serve unix sockets. ``tell`` is told where, "unix" or "HOST:PORT". Raises
        CannotListen; on ``auto`` a log line says it, and it is tried again."""
        if self._setting not in ("auto", "off"):
            tell(self._where(await listening.open(self._listener)))
        if self._setting != "auto" or sys.platform != "linux" or client is None or tailnet is None:
            yield
            return
        opening = asyncio.create_task(self._open_when_answered(listening, client, tailnet, tell))
        try:
            yield
        finally:
            opening.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await opening

    async def _open_when_answered(
        self, listening: Listening, client: LocalClient, tailnet: Tailnet, tell: Callable[[str], None]
    ) -> None:
        await tailnet.until(lambda view: view.failure is None)
        if client.capability_version < UNIX_SINCE:
            logger.info('this tailscaled serves no unix sockets: update it, or set edge.serve = "127.0.0.1:8702"')
            return
        said = ""
        while True:
            try:
                tell(self._where(await listening.open(self._listener)))
                return
            except (CannotListen, OSError) as error:
                if str(error) != said:
                    said = str(error)
                    logger.warning("Tailscale Serve cannot reach this edge: {}", said)
            await asyncio.sleep(_TRY_AGAIN)

    def _where(self, listener: Listener) -> str:
        where = "unix" if listener.path else f"{listener.host}:{listener.port}"
        logger.info("Tailscale Serve may call at {}", listener.url)
        return where


def _listens(path: str) -> bool:
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
            caller.settimeout(_CONNECT_WITHIN)
            caller.connect(path)
    except OSError:
        return False
    return True
