"""Who calls on a loopback port. In userspace networking tailscaled itself calls there on behalf of its peers, whatever
the node listens on: who comes so is judged as on the tailnet, and everybody else is this machine.

Where no tailscaled runs, nothing is asked and nothing is loaded.
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, get_args

from loguru import logger

from node.admission.callers import KEPT, Caller, Callers, Role, cannot_tell
from shared.tailscale.errors import TailscaleError
from shared.tailscale.socket import running

if TYPE_CHECKING:  # loading it takes 0.1 s
    from shared.tailscale.client import LocalClient

ALL_ROLES = frozenset[Role](get_args(Role))
# Seconds between two questions whether tailscaled runs in userspace networking. It changes with a restart only.
_LOOKED_EVERY = 5.0


class LoopbackCallers(Callers):
    """``socket`` is where tailscaled listens, "" for the usual places. Whoever makes it closes it."""

    def __init__(self, socket: str, capability: str, *, kept: float = KEPT) -> None:
        super().__init__(capability, kept)
        self._socket = socket
        self._client: LocalClient | None = None
        self._looking = asyncio.Lock()
        self._looked_at = -math.inf
        self._userspace = False
        self._said = ""

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()

    async def _find(self, host: str, port: int) -> Caller:
        path = running(self._socket)
        if not path:  # a connection that is here already cannot come from a tailscaled that starts later
            return Caller("", ALL_ROLES, math.inf)
        client = self._asking(path)
        if not await self._in_userspace(client):
            return self._caller(None, ALL_ROLES)
        try:
            found = await client.whois(host, port, protocol="tcp")
        except TailscaleError as error:
            raise cannot_tell() from error
        return self._caller(found, ALL_ROLES)

    def _asking(self, path: str) -> LocalClient:
        if self._client is None:
            from shared.tailscale.client import LocalClient

            self._client = LocalClient(path)
        return self._client

    async def _in_userspace(self, client: LocalClient) -> bool:
        """As it was last told. A tailscaled that was never heard hands nobody over: while it starts, it accepts
        questions and does not answer them."""
        async with self._looking:
            clock = asyncio.get_running_loop().time
            if clock() - self._looked_at >= _LOOKED_EVERY:
                try:
                    self._userspace = (await client.status(peers=False)).tun is False
                except TailscaleError as error:
                    self._say(str(error))
                self._looked_at = clock()
            return self._userspace

    def _say(self, why: str) -> None:
        if why != self._said:
            self._said = why
            logger.warning("cannot tell whether Tailscale brings callers of the tailnet to this loopback port: {}", why)
