"""Which machines the settings mean, as the tailnet is now: an upstream for each, that comes and goes with it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from loguru import logger

from edge.upstreams.address import Address
from edge.upstreams.machine import Machine
from edge.upstreams.pool import Upstreams
from edge.upstreams.upstream import Upstream
from shared.link.hello import Hello
from shared.tailscale.errors import TailscaleError
from shared.tailscale.nodes import Node
from shared.tailscale.view import View

if TYPE_CHECKING:
    from shared.tailscale.client import LocalClient
    from shared.tailscale.tailnet import Tailnet

# Seconds between two looks at the paths while chats run, and where the last two did not agree.
_LOOK_EVERY = 12.0
_LOOK_AGAIN = 3.5
_EXPIRY_WARNED = timedelta(days=7)


class Directory:
    """Keeps ``upstreams`` in step with the tailnet, and knows by which path each machine is reached. ``busy`` says
    whether chats run; paths are looked at then, and after a dial. Tailnet and client stay the caller's."""

    def __init__(
        self,
        tailnet: Tailnet,
        client: LocalClient,
        upstreams: Upstreams,
        hello: Hello,
        wanted: Iterable[Address],
        *,
        proxy: str | None = None,
        busy: Callable[[], bool] = lambda: False,
    ) -> None:
        self._tailnet = tailnet
        self._client = client
        self._upstreams = upstreams
        self._hello = hello
        self._proxy = proxy
        self._busy = busy
        # By the name in the settings, then by the upstream's own.
        self._found: dict[str, dict[str, Upstream]] = {}
        self._warned: set[str] = set()
        self._told = False
        self._own: tuple[str, ...] = ()
        self._looked_at = float("-inf")
        # A machine that is named goes before the same one among many of a tag.
        self._wanted = sorted(wanted, key=lambda one: one.node.startswith("tag:"))
        for one in self._wanted:
            self._settle(one, {one.name: None})

    async def run(self) -> None:
        """Until cancelled."""
        self._tailnet.listen(self._heard)
        try:
            while True:
                await asyncio.sleep(_LOOK_AGAIN)
                if self._due(asyncio.get_running_loop().time()):
                    await self._look()
        finally:
            self._tailnet.unlisten(self._heard)

    def _machines(self) -> Iterator[tuple[Upstream, Machine]]:
        for upstreams in self._found.values():
            for upstream in upstreams.values():
                if upstream.machine is not None:
                    yield upstream, upstream.machine

    # What the tailnet says.

    def _heard(self, before: View, view: View) -> None:
        """Trouble of this machine's own leaves everything as it was: the data path may still work."""
        self._told = True
        for _, machine in self._machines():
            machine.told = True
        elsewhere = False
        if view.problem is None:
            elsewhere, self._own = bool(self._own) and self._own != view.addresses, view.addresses
            taken: set[str] = set()
            for one in self._wanted:
                self._settle(one, _named(one, view, taken))
        if elsewhere or repr(before.problem) != repr(view.problem):
            # Links that lived through it would only find out how it stands when TCP sends again, seconds later.
            for upstream, _ in list(self._machines()):
                if view.problem is None or not upstream.connected:
                    upstream.redial(lost=elsewhere)

    def _settle(self, wanted: Address, named: Mapping[str, Node | None]) -> None:
        """Have one upstream for each of ``named``, no more."""
        found = self._found.setdefault(wanted.name, {})
        for name in found.keys() - named.keys():
            gone = found.pop(name)
            if gone.machine is not None and gone.machine.node is not None:
                logger.info("node {} is not among the machines with {} any more", name, wanted.node)
            self._upstreams.remove(gone)
        for name, node in named.items():
            upstream = found.get(name)
            if upstream is None:
                upstream = found[name] = self._make(wanted, name)
                assert upstream.machine is not None
                upstream.machine.take(node)
                self._upstreams.add(upstream)
            elif (machine := upstream.machine) is not None:
                was = machine.node
                moved = machine.take(node)
                if moved or (was != node and not upstream.connected):
                    upstream.redial(lost=moved)
            if node is not None:
                self._warn_of_expiry(name, node)

    def _make(self, wanted: Address, name: str) -> Upstream:
        machine = Machine(wanted.node, wanted.port, self._tailnet, self._client, tls=wanted.tls, proxy=self._proxy)
        machine.told = self._told
        return Upstream(replace(wanted, name=name), self._hello, machine)

    def _warn_of_expiry(self, name: str, node: Node) -> None:
        """Once for each machine. Those with tags have keys that do not expire."""
        if node.tags or node.key_expiry is None or node.key in self._warned:
            return
        if node.key_expiry - datetime.now(UTC) < _EXPIRY_WARNED:
            self._warned.add(node.key)
            logger.warning(
                "the key of {} (node {}) in the tailnet expires on {:%Y-%m-%d %H:%M} UTC, and then nothing reaches it."
                " Log in again there: sudo tailscale up --force-reauth; or give it a tag, whose key does not expire",
                node.name,
                name,
                node.key_expiry,
            )

    # What the paths are.

    def _due(self, now: float) -> bool:
        if not (self._busy() or any(machine.watched for _, machine in self._machines())):
            return False
        undecided = any(upstream.connected and machine.steady.undecided for upstream, machine in self._machines())
        if not undecided and now - self._looked_at < _LOOK_EVERY:
            return False
        self._looked_at = now
        return True

    async def _look(self) -> None:
        """One sample of every machine's path. A tailscaled that does not answer is told of elsewhere."""
        machines = list(self._machines())
        with contextlib.suppress(TailscaleError):
            await asyncio.gather(*(machine.measure() for _, machine in machines))
            status = await self._client.status()
            peers = {peer.node.id: peer.connection for peer in status.peers}
            for upstream, machine in machines:
                if machine.node is None:
                    continue
                self._warn_of_expiry(upstream.name, machine.node)
                # Without a link to it, a machine has no path, only attempts at one.
                if upstream.connected and (connection := peers.get(machine.node.id)) is not None:
                    machine.sample(upstream.name, connection)


def _named(wanted: Address, view: View, taken: set[str]) -> dict[str, Node | None]:
    """The machines that ``wanted`` means, by the names of their upstreams; ``taken`` are those that another one has
    already, so that no machine is dialled as two."""
    found = view.find(wanted.node)
    name = wanted.name
    if not wanted.node.startswith("tag:"):
        node = next(iter(found), None)
        if node is not None:
            taken.add(node.id)
        return {name: node}
    found = tuple(node for node in found if _ours(node, view))
    free = sorted((node for node in found if node.id not in taken), key=lambda node: node.name)
    taken.update(node.id for node in free)
    return {f"{name}/{node.name.partition('.')[0]}": node for node in free} if found else {name: None}


def _ours(node: Node, view: View) -> bool:
    """Whether it is of this tailnet: one that was shared into it has its tags from its own owner, and must not be shown
    our token for them."""
    return not view.suffix or node.name.lower().endswith(f".{view.suffix.lower()}")
