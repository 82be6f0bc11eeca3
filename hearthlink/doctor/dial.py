"""Each node of the settings dialled once from here, as an edge would, where no edge runs that could be asked."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge.upstreams.address import Address, addresses_from
from edge.upstreams.dialling import Place, Unreached, dial
from edge.upstreams.reach import Facts, Failure, explain
from edge.upstreams.sockets import connector
from hearthlink.doctor.machine import Machine, bracketed
from hearthlink.doctor.mends import Trouble

if TYPE_CHECKING:
    import aiohttp

    from shared.tailscale.nodes import Node
    from shared.tailscale.status import Status

_CLOSED_NORMALLY = 1000
_ANSWERS_WITHIN = 2.5  # seconds for the path; the dial has five of its own, and the whole has nine


async def dial_all(machine: Machine) -> Sequence[Trouble]:
    """What is wrong with each; without a cause where a link opened, which is closed again."""
    import aiohttp

    from shared.tls import TlsError

    try:
        addresses = list(addresses_from(machine.settings.edge.upstreams, lambda: _own_token(machine)))
    except TlsError as error:
        return [Trouble("any", "other", str(error))]
    async with aiohttp.ClientSession(trust_env=False, connector=connector()) as client:
        return await asyncio.gather(*(_Dialled(machine, address).look(client) for address in addresses))


def _own_token(machine: Machine) -> str:
    """That of the state, which is not made for this; nothing where there is none, which no node takes."""
    try:
        return (machine.state / "node-token").read_text().strip()
    except (OSError, ValueError):
        return ""


@dataclass(slots=True)
class _Dialled:
    machine: Machine
    address: Address

    async def look(self, client: aiohttp.ClientSession) -> Trouble:
        if not self.address.node:
            failure = await self._open(client, Place(self.address.url, tls=self.address.tls))
            return self._told(Facts(self.address.key, self.address.url, failure), failure)
        return await self._in_tailnet(client)

    async def _in_tailnet(self, client: aiohttp.ClientSession) -> Trouble:
        from shared.tailscale.errors import TailscaleError
        from shared.tailscale.view import View

        proxy = self.machine.settings.tailscale.proxy
        problem: TailscaleError | None = None
        status: Status | None = None
        node: Node | None = None
        try:
            status = await self.machine.tailscale()
        except TailscaleError as error:
            problem = error
        if status is not None:
            problem = status.problem
            node = next(iter(View.of(status).find(self.address.node)), None)
        userspace = status is not None and status.tun is False
        url, answers, failure = "", None, None
        if problem is None and node is not None and node.addresses and (proxy or not userspace):
            scheme = "wss" if self.address.tls is not None else "ws"
            url = f"{scheme}://{bracketed(node.addresses[0])}:{self.address.port}/link"
            answers = await self._answers(node)
            failure = await self._open(client, Place(url, proxy if userspace else None, self.address.tls))
        facts = Facts(
            self.address.key,
            url,
            failure,
            wanted=self.address.node,
            port=self.address.port,
            problem=problem,
            machine=node,
            answers=answers,
            userspace=userspace,
            proxy=proxy,
        )
        return self._told(facts, failure)

    async def _answers(self, node: Node) -> bool:
        from shared.tailscale.errors import TailscaleError
        from shared.tailscale.paths import warm

        try:
            async with asyncio.timeout(_ANSWERS_WITHIN):
                ping = await warm(await self.machine.local(), node.addresses[0])
        except (TailscaleError, TimeoutError):
            return False
        return ping is not None and not ping.error

    async def _open(self, client: aiohttp.ClientSession, place: Place) -> Failure | None:
        try:
            transport = await dial(client, place, self.address.token)
        except Unreached as error:
            return error.failure
        await transport.close(_CLOSED_NORMALLY, "the doctor has seen enough")
        return None

    def _told(self, facts: Facts, failure: Failure | None) -> Trouble:
        name = facts.machine.name if facts.machine is not None else ""
        if failure is None and facts.url:
            return Trouble(self.address.name, "", "", name, facts.url)
        reach = explain(facts)
        return Trouble(self.address.name, reach.cause, reach.sentence, name, facts.url)
