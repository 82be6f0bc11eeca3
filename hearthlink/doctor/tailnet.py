"""The group tailnet: is this machine in its tailnet, for how long yet, and by which paths does it reach its nodes?"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from hearthlink.doctor.machine import Machine
from hearthlink.doctor.probes import Probe
from hearthlink.doctor.report import Group, Line, split_command
from shared.addresses import OnTailnet

if TYPE_CHECKING:
    from shared.tailscale.errors import TailscaleError
    from shared.tailscale.nodes import Node
    from shared.tailscale.ping import Ping
    from shared.tailscale.status import Status

TAILNET = Group("tailnet")
_SECONDS = 7.0
_PATH_SECONDS = 9.0
# Is anybody there? Then, since the first answers come by a relay while a direct path is still looked for, as many more
# as there is time for.
_KNOCKS, _KNOCK_PAUSE = 2, 0.4
_PINGS, _PING_PAUSE = 7, 0.6
_SOON = timedelta(days=7)
_DROPS_SECONDS = 6.0  # an edge dials again every 5 s, so its knocking is seen
_HEALTH_SHOWN = 3
_LOGIN = "sudo tailscale up"
_START, _RESTART = "sudo systemctl start tailscaled", "sudo systemctl restart tailscaled"
_OPERATOR = "sudo tailscale set --operator=$USER"
_FRESH_KEY = "sudo tailscale up --force-reauth"


def probes(machine: Machine) -> list[Probe]:
    return [
        Probe(TAILNET, "state", lambda: state(machine), _SECONDS),
        Probe(TAILNET, "key", lambda: keys(machine), _SECONDS),
        Probe(TAILNET, "rights", lambda: shields(machine), _SECONDS),
        Probe(TAILNET, "path", lambda: paths(machine), _PATH_SECONDS),
        Probe(TAILNET, "dropped", lambda: dropped(machine), _PATH_SECONDS),
    ]


async def state(machine: Machine) -> Sequence[Line]:
    """Whether tailscaled answers and this machine is in the tailnet, with what it says of its own health."""
    if (problem := await machine.away()) is not None:
        text, mend = explained(problem)
        if machine.needs_tailnet:
            return [TAILNET.broken("state", text, mend)]
        return [TAILNET.absent("state", f"This machine is in no tailnet, and no setting needs one. {text}", mend)]
    status = await machine.tailscale()
    return [_own(status), *await _userspace(status, machine), *_complaints(status)]


def explained(problem: TailscaleError) -> tuple[str, str]:
    """What is wrong with this machine's Tailscale, and the command that mends it, which many of the errors name."""
    from shared.tailscale.errors import NotAllowed, NotRunning, Unreachable

    text, named = split_command(str(problem))
    for kind, command in ((NotRunning, _LOGIN), (NotAllowed, _OPERATOR), (Unreachable, _START)):
        if isinstance(problem, kind):
            return text, named or command
    return text, named or _RESTART


def _own(status: Status) -> Line:
    name = status.node.name if status.node is not None else "This machine"
    tags = f", {', '.join(status.node.tags)}" if status.node is not None and status.node.tags else ""
    version = status.version.partition("-")[0]
    text = f"{name} is in the tailnet at {', '.join(status.addresses)}{tags} (Tailscale {version})."
    return TAILNET.ok("state", text)


async def _userspace(status: Status, machine: Machine) -> list[Line]:
    if status.tun is not False:
        return []
    if machine.has_edge and not await _tells_peers_apart(machine):
        return [_open_to_peers(machine)]
    if machine.has_edge and machine.settings.tailscale.proxy is None and machine.needs_tailnet:
        text = (
            "Tailscale runs in userspace networking, so programs here reach the tailnet through its proxy only, and"
            " tailscale.proxy is not set."
        )
        return [TAILNET.broken("userspace", text, machine.edit)]
    text = (
        "Tailscale runs in userspace networking: whatever listens on this machine's loopback can be reached from the"
        " tailnet, as far as the policy allows it. The policy should name ports, never *."
    )
    return [TAILNET.ok("userspace", text)]


async def _tells_peers_apart(machine: Machine) -> bool:
    """Whether the edge asks tailscaled about callers from loopback, as each does that uses the tailnet for anything."""
    if await machine.edge_runs():
        return (await machine.edge()).json.get("tailnet") is not None
    edge = machine.settings.edge
    return edge.serve != "off" or any(upstream.node for upstream in edge.upstreams.values())


def _open_to_peers(machine: Machine) -> Line:
    edge = machine.settings.edge
    why = (
        "Tailscale runs in userspace networking, which brings callers from the tailnet to this machine's loopback, and"
        " the edge does not ask it who they are"
    )
    how = 'Set edge.serve = "unix" and restart the edge.'
    if not edge.require_authentication:
        text = f"{why}: whom the policy lets to {edge.listen} is its owner there, with no credential. {how}"
        return TAILNET.broken("userspace", text, machine.edit)
    if edge.user_ids:
        text = f"{why}: whom the policy lets to {edge.listen} is there whoever they say in X-User-Id. {how}"
        return TAILNET.broken("userspace", text, machine.edit)
    text = f"{why}: whom the policy lets to {edge.ops_listen} reads its metrics and full health. {how}"
    return TAILNET.warning("userspace", text, machine.edit)


def _complaints(status: Status) -> list[Line]:
    return [
        TAILNET.warning("health", f"Tailscale says: {text}", "tailscale status")
        for text in status.health[:_HEALTH_SHOWN]
    ]


async def keys(machine: Machine) -> Sequence[Line]:
    """When this machine and its nodes have to log in again."""
    status = await running(machine)
    if status is None or status.node is None:
        return []
    named = _nodes(status, machine)
    lines = [
        line for node, own in [(status.node, True), *((node, False) for node in named)] for line in _key(node, own)
    ]
    until = [node.key_expiry for node in (status.node, *named) if node.key_expiry is not None]
    if lines:
        return lines
    when = f"no login ends before {min(until):%Y-%m-%d}" if until else "no login ends by itself"
    return [TAILNET.ok("key", f"Of this machine and the nodes it calls, {when}.")]


def _key(node: Node, own: bool) -> list[Line]:
    where = "" if own else f"on {_short(node)}"
    whose = "this machine" if own else _short(node)
    if node.expired:
        return [TAILNET.broken("key", f"The login of {whose} in the tailnet has ended.", _FRESH_KEY, where)]
    if node.key_expiry is None or (left := node.key_expiry - datetime.now(UTC)) > _SOON:
        return []
    text = f"The login of {whose} in the tailnet ends on {node.key_expiry:%Y-%m-%d at %H:%M} UTC, in {_span(left)}."
    return [TAILNET.warning("key", text, _FRESH_KEY, where)]


def _span(left: timedelta) -> str:
    hours = max(0, int(left.total_seconds() // 3600))
    return f"{hours // 24} days" if hours >= 48 else f"{hours} hours"


async def shields(machine: Machine) -> Sequence[Line]:
    """Whether the rest of the tailnet may call this machine at all."""
    from shared.tailscale.errors import TailscaleError

    if await running(machine) is None:
        return []
    try:
        prefs = await (await machine.local()).prefs()
    except TailscaleError as error:
        return [TAILNET.warning("shields", *explained(error))]
    if not prefs.shields_up:
        return []
    text = "This machine lets nobody of the tailnet in (shields up)."
    called = machine.has_node and isinstance(machine.node_listen, OnTailnet)
    if called:
        return [TAILNET.broken("shields", f"{text} No edge reaches its node.", "sudo tailscale set --shields-up=false")]
    return [TAILNET.ok("shields", f"{text} Nothing here is called from it.")]


async def paths(machine: Machine) -> Sequence[Line]:
    """To each node in the tailnet that the settings name."""
    status = await running(machine)
    if status is None:
        return []
    return await asyncio.gather(*(_path(machine, node) for node in _nodes(status, machine)))


async def _path(machine: Machine, node: Node) -> Line:
    from shared.tailscale.errors import TailscaleError
    from shared.tailscale.nodes import Path
    from shared.tailscale.paths import best_path

    name = _short(node)
    if not node.addresses:
        return TAILNET.warning("path", f"{name} has no address in the tailnet.", "tailscale status")
    try:
        client, address = await machine.local(), node.addresses[0]
        ping = await best_path(client, address, tries=_KNOCKS, pause=_KNOCK_PAUSE)
        if ping is not None and not ping.error and ping.path is not Path.DIRECT:
            ping = await best_path(client, address, tries=_PINGS, pause=_PING_PAUSE) or ping
    except TailscaleError as error:
        return TAILNET.warning("path", f"The path to {name} cannot be told: {error}", f"tailscale ping {name}")
    if ping is None or ping.error:
        why = f" ({ping.error})" if ping is not None else ""
        seen = "offline" if node.online is False else "online"
        text = f"{name} does not answer Tailscale's own pings{why}; the control server holds it for {seen}."
        return TAILNET.warning("path", text, _LOGIN, f"on {name}")
    return _by(ping, name)


def _by(ping: Ping, name: str) -> Line:
    from shared.tailscale.nodes import Path

    took = f", {ping.seconds * 1000:.1f} ms there and back" if ping.seconds is not None else ""
    if ping.path is Path.DIRECT:
        return TAILNET.ok("path", f"The path to {name} is direct ({ping.endpoint}){took}.")
    if ping.path is Path.PEER_RELAYED:
        return TAILNET.ok(
            "path", f"The path to {name} is relayed by a machine of the tailnet ({ping.peer_relay}){took}."
        )
    text = (
        f"The path to {name} is relayed (DERP region {ping.region}){took}: UDP does not get through between the two, so"
        " every word takes a detour. Let UDP out on both machines, and in at port 41641 on one."
    )
    return TAILNET.warning("path", text, "sudo ufw allow 41641/udp", f"on {name}, or on this machine")


async def dropped(machine: Machine) -> Sequence[Line]:
    """Whether the policy keeps somebody out who knocks right now."""
    from shared.tailscale.errors import TailscaleError

    if await running(machine) is None:
        return []
    client = await machine.local()
    try:
        before = (await client.metrics()).dropped_by_policy
        if not before:
            return [TAILNET.ok("dropped", "The policy has kept nobody out since Tailscale started here.")]
        await asyncio.sleep(_DROPS_SECONDS)
        after = (await client.metrics()).dropped_by_policy
    except TailscaleError as error:
        return [TAILNET.absent("dropped", f"What the policy keeps out is not told: {error}")]
    if after == before:
        text = f"The policy kept {before:.0f} packets out since Tailscale started here, none of them now."
        return [TAILNET.ok("dropped", text)]
    text = (
        f"Somebody of the tailnet calls this machine right now and the policy keeps them out ({after - before:.0f}"
        f" packets within {_DROPS_SECONDS:g} s). If that is your edge, the policy lacks a grant for it."
    )
    return [TAILNET.warning("dropped", text, "tailscale debug netmap | grep -A9 PacketFilter")]


async def running(machine: Machine) -> Status | None:
    """The status of a machine that is in its tailnet."""
    status = await machine.tailscale_or_none()
    return status if status is not None and status.problem is None else None


def _nodes(status: Status, machine: Machine) -> list[Node]:
    """The members that the settings name as nodes of the edge here, each once."""
    from shared.tailscale.view import View

    if not machine.has_edge:
        return []
    view = View.of(status)
    wanted = [upstream.node for upstream in machine.settings.edge.upstreams.values() if upstream.node]
    return list({node.id: node for name in wanted for node in view.find(name)}.values())


def _short(node: Node) -> str:
    return node.name.partition(".")[0] or node.host_name
