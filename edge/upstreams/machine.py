"""The machine of the tailnet that a node runs on, as this edge knows it now."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import TYPE_CHECKING

from loguru import logger

from edge.upstreams.dialling import Place
from edge.upstreams.path import SteadyPath
from edge.upstreams.reach import Facts, Failure
from shared.tailscale import paths
from shared.tailscale.errors import TailscaleError
from shared.tailscale.nodes import Connection, Node, Path
from shared.tailscale.ping import Ping

if TYPE_CHECKING:  # importing them takes 0.1 s, which only an edge in a tailnet spends
    from shared.tailscale.client import LocalClient
    from shared.tailscale.tailnet import Tailnet

# Seconds for which a warmed path needs no more of it: links of one node that are dialled together share one.
_WARM_FOR = 2.0
# Seconds in which a machine that has just appeared may be unreachable: this machine has no route to it yet.
_NEW_FOR = 3.0
# Seconds for which the path is looked at after a dial, whether chats run or not.
_WATCHED_FOR = 30.0
# Seconds for the answer of a ping that only measures.
_PING_WITHIN = 1.5


class Machine:
    """``wanted`` is its name, tag or address in the settings; ``node`` is None while nothing by that name is visible.
    ``told`` is whether tailscaled has been heard at all. ``proxy`` is used where tailscaled here runs in userspace
    networking. Tailnet and client stay the caller's."""

    def __init__(
        self,
        wanted: str,
        port: int,
        tailnet: Tailnet,
        client: LocalClient,
        *,
        tls: ssl.SSLContext | None = None,
        proxy: str | None = None,
    ) -> None:
        self.wanted = wanted
        self.port = port
        self.node: Node | None = None
        self.told = False
        self.steady = SteadyPath()
        self.relay = ""
        self.round_trip: float | None = None
        self._tailnet = tailnet
        self._client = client
        self._tls = tls
        self._proxy = proxy
        self._loop = asyncio.get_running_loop()
        self._warming = asyncio.Lock()
        self._answered: bool | None = None
        self._identity: tuple[str, tuple[str, ...]] | None = None
        self._since = self._warmed_at = self._dialled_at = float("-inf")

    @property
    def address(self) -> str:
        """The one to dial; empty while there is none."""
        found = self.node.addresses if self.node is not None else ()
        return self.wanted if self.wanted in found else next(iter(found), "")

    @property
    def url(self) -> str:
        if not (address := self.address):
            return ""
        host = f"[{address}]" if ":" in address else address
        return f"{'wss' if self._tls is not None else 'ws'}://{host}:{self.port}/link"

    @property
    def online(self) -> bool | None:
        """What the control server thinks; None while nothing is known."""
        return self.node.online if self.node is not None else None

    @property
    def path(self) -> Path:
        return self.steady.path

    @property
    def relayed(self) -> bool | None:
        return None if self.path is Path.UNKNOWN else self.path is Path.RELAYED

    @property
    def new(self) -> bool:
        """Whether it has appeared just now, or changed its address."""
        return self._loop.time() - self._since < _NEW_FOR

    @property
    def watched(self) -> bool:
        """Whether it was dialled a moment ago, so that its path may still change."""
        return self._loop.time() - self._dialled_at < _WATCHED_FOR

    def take(self, node: Node | None) -> bool:
        """What the tailnet says now; whether the machine is another one than before, or elsewhere."""
        self.node = node
        if node is None or (identity := (node.key, node.addresses)) == self._identity:
            return False
        self._identity = identity
        self._since = self._loop.time()
        self._warmed_at = float("-inf")
        self.steady = SteadyPath()
        self.round_trip = None
        return True

    async def place(self) -> Place | None:
        """Where to dial, over a path that is warm if there is one; None where there is nothing to dial."""
        userspace = self._tailnet.view.tun is False
        if not self.url or (userspace and self._proxy is None):
            return None
        self._dialled_at = self._loop.time()
        async with self._warming:
            if self._loop.time() - self._warmed_at > _WARM_FOR:
                await self._warm()
        return Place(self.url, self._proxy if userspace else None, self._tls) if self.url else None

    def facts(self, setting: str, url: str, failure: Failure | None) -> Facts:
        """For ``reach.explain``, after an attempt at ``url``."""
        view = self._tailnet.view
        return Facts(
            setting=setting,
            url=url,
            failure=failure,
            wanted=self.wanted,
            port=self.port,
            problem=view.problem,
            machine=self.node,
            seen=self._identity is not None,
            answers=self._answered,
            userspace=view.tun is False,
            proxy=self._proxy,
        )

    async def measure(self) -> None:
        """One disco ping, for the round trip."""
        if address := self.address:
            with contextlib.suppress(TailscaleError):
                self._note(await self._client.ping(address, seconds=_PING_WITHIN))

    def sample(self, name: str, connection: Connection) -> None:
        """How it is reached now, for node ``name``. One line in the log when it has become relayed, one when it is no
        more."""
        before = self.steady.path
        self.relay = connection.relay
        if not self.steady.take(connection.path, self._loop.time()):
            return
        if self.steady.path is Path.RELAYED:
            logger.warning(
                "node {} is reached through the relay {}, which takes longer: no direct path was found. Let UDP port"
                " 41641 out on both machines; `tailscale netcheck` there says more",
                name,
                connection.relay,
            )
        elif before is Path.RELAYED:
            logger.info("node {} is reached {} again", name, "directly" if connection.address else "through a peer")

    async def _warm(self) -> None:
        self._answered = None
        try:
            answer = await paths.warm(self._client, self.address)
        except TailscaleError:  # the view has it too, and says so
            return
        self._answered = answer is not None and not answer.error
        if answer is not None:
            self._note(answer)
        if self._answered:
            self._warmed_at = self._loop.time()

    def _note(self, answer: Ping) -> None:
        if not answer.error and answer.seconds is not None:
            self.round_trip = answer.seconds
        if answer.path is Path.DIRECT:
            self.steady.begin(Path.DIRECT)
