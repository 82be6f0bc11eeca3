"""The group node: can each node be called, from where it must not be too, and do its clock and ours agree?"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from hearthlink.doctor.exposure import answering
from hearthlink.doctor.machine import Machine, bracketed
from hearthlink.doctor.mends import LISTEN, Trouble, mend_of, start_node
from hearthlink.doctor.probes import Probe
from hearthlink.doctor.report import Group, Line, split_command
from hearthlink.doctor.tailnet import explained
from shared.addresses import OnAddress, OnInterface, OnTailnet, is_loopback, is_tailnet
from shared.interfaces import addresses_of

NODE = Group("node")
_SECONDS = 8.0
_DIAL_SECONDS = 9.0
# Seconds. Tokens carry times with a leeway of a minute, and logs of two machines are read side by side.
_DOUBTFUL, _WRONG = 30.0, 60.0


def probes(machine: Machine) -> list[Probe]:
    return [
        Probe(NODE, "link", lambda: links(machine), _DIAL_SECONDS),
        Probe(NODE, "process", lambda: process(machine), _SECONDS),
        Probe(NODE, "exposed", lambda: exposed(machine), _SECONDS),
        Probe(NODE, "clock", lambda: clocks(machine), _SECONDS),
    ]


async def links(machine: Machine) -> Sequence[Line]:
    """Each node as the edge here says; where no edge runs, by a dial of our own."""
    if await machine.edge_runs():
        rows = await machine.nodes()
        ready = any(row.get("connected") and row.get("runtime_state") == "ready" for row in rows)
        told = await _told_already(machine)
        lines = [await _linked(row, machine, others=ready) for row in rows if not told(Trouble.of_row(row))]
        return lines if rows else [NODE.broken("link", "The edge knows no node.", machine.edit)]
    if not machine.has_edge:
        return []
    from hearthlink.doctor.dial import dial_all

    found = await dial_all(machine)
    told = await _told_already(machine)
    return [await _dialled(trouble, machine) for trouble in found if not told(trouble)]


async def _told_already(machine: Machine) -> Callable[[Trouble], bool]:
    """Whether it is a node of this machine that does not run, which has a line of its own."""
    runs = await machine.node_runs()

    def told(trouble: Trouble) -> bool:
        here = is_loopback(urlsplit(trouble.url).hostname or "")
        return here and trouble.cause == "app_not_listening" and machine.has_node and not runs

    return told


async def _linked(row: Mapping[str, Any], machine: Machine, *, others: bool) -> Line:
    name = str(row["name"])
    if row.get("connected"):
        version = f", version {row['version']}" if row.get("version") else ""
        return NODE.ok("link", f"Node {name} is linked to the edge{version}.")
    trouble = Trouble.of_row(row)
    mend, where = await mend_of(trouble, machine)
    text = f"Node {name} cannot be asked: {split_command(trouble.sentence)[0]}"
    if others:
        return NODE.warning("link", f"{text} Another node answers meanwhile.", mend, where)
    return NODE.broken("link", text, mend, where)


async def _dialled(trouble: Trouble, machine: Machine) -> Line:
    if not trouble.cause:
        return NODE.ok("link", f"Node {trouble.name} can be reached, and takes this machine's token; no edge runs.")
    mend, where = await mend_of(trouble, machine)
    text = f"Node {trouble.name} cannot be asked: {split_command(trouble.sentence)[0]}"
    return NODE.broken("link", text, mend, where)


async def process(machine: Machine) -> Sequence[Line]:
    """Whether the node of this machine runs."""
    if await machine.node_runs():
        return [await _runs(await machine.node(), machine)]
    if not machine.has_node:
        return [NODE.absent("process", "No node is set up on this machine.")]
    listen = machine.node_listen
    if isinstance(listen, OnTailnet) and listen.certain and (problem := await machine.away()) is not None:
        why, mend = explained(problem)
        return [NODE.broken("process", f"The node has no address to be called at. {why}", mend)]
    if isinstance(listen, OnInterface) and not addresses_of(listen.name):
        text = f"The node has no address to be called at: the network interface {listen.name} has none."
        return [NODE.broken("process", text, f"ip address show dev {listen.name}")]
    if machine.settings.node.tls.on and (open_at := await _open_at(machine)):
        return [NODE.ok("process", f"Something with certificates listens where the node should: {', '.join(open_at)}.")]
    answer = await machine.node()
    where = answer.url.removesuffix("/healthz")
    if answer.status:
        text = f"Something else than a node answers at {where} (HTTP {answer.status})."
        return [NODE.broken("process", text, f"ss -ltnp 'sport = :{listen.port}'")]
    if answer.silent:
        text = f"What listens at {where} says nothing: it hangs."
        return [NODE.broken("process", text, f"ss -ltnp 'sport = :{listen.port}'")]
    text = f"nothing answers at {where} ({answer.trouble})."
    if machine.node_ran:
        return [NODE.broken("process", f"The node of this machine does not run: {text}", await start_node(machine))]
    return [NODE.warning("process", f"A node has settings here and never ran: {text}", await start_node(machine))]


async def _runs(answer: Any, machine: Machine) -> Line:
    where = answer.url.removesuffix("/healthz")
    if not answer.has("runtime"):
        return NODE.ok("process", f"The node runs at {where}; it tells its health to its edges only.")
    tailnet = answer.json.get("tailnet")
    if isinstance(tailnet, dict):
        if tailnet.get("reason"):
            text, mend = split_command(f"The node cannot be called: {tailnet['reason']}")
            return NODE.broken("process", text, mend or "tailscale status")
        where = " and ".join(str(address) for address in tailnet.get("addresses", ()))
    elif not machine.has_edge and is_loopback(urlsplit(where).hostname or "") and await machine.away() is None:
        text = f"The node listens at {where} only, so no edge on another machine reaches it through the tailnet."
        return NODE.warning("process", text, f"hearthlink node{LISTEN}", "stop it, then")
    return NODE.ok("process", f"The node runs at {where}, version {answer.json.get('version', 'unknown')}.")


async def _open_at(machine: Machine) -> list[str]:
    listen = machine.node_listen
    if isinstance(listen, OnAddress):
        hosts: Sequence[str] = [listen.host]
    elif isinstance(listen, OnInterface):
        hosts = addresses_of(listen.name)
    else:
        status = await machine.tailscale_or_none()
        hosts = status.addresses if status is not None else ()
    return [f"{bracketed(host)}:{listen.port}" for host in await answering(hosts, listen.port)]


async def exposed(machine: Machine) -> Sequence[Line]:
    """Whether the node answers at addresses of this machine that are not its own, by a port that somebody publishes or
    forwards."""
    runs = await machine.node_runs()
    if not machine.has_node and not runs:
        return []
    listen = machine.node_listen
    # `up` gives its node a port of its own.
    port = (urlsplit((await machine.node()).url).port if runs else None) or listen.port
    addresses = await machine.addresses()
    closed = [address for address, interface in addresses.items() if not _allowed(address, interface, listen)]
    reached = await answering(closed, port)
    if not reached and not runs:
        return []
    if reached:
        shown = ", ".join(f"{address} ({addresses[address]})" for address in reached)
        text = (
            f"Port {port}, which is the node's, answers at {shown} too: whoever reaches that address gets past"
            " the tailnet's policy. Close it there."
        )
        mend = f"sudo ufw deny in on {addresses[reached[0]]} to any port {port} proto tcp"
        return [NODE.broken("exposed", text, mend)]
    text = f"The node's port {port} is closed at this machine's other addresses ({len(closed)} tried)."
    return [NODE.ok("exposed", text)]


def _allowed(address: str, interface: str, listen: OnAddress | OnTailnet | OnInterface) -> bool:
    if isinstance(listen, OnInterface):
        return interface == listen.name
    return isinstance(listen, OnTailnet) and is_tailnet(address)


async def clocks(machine: Machine) -> Sequence[Line]:
    """Of the nodes on other machines, which show theirs in every answer."""
    urls = {str(row["name"]): str(row.get("url", "")) for row in await machine.nodes()}
    remote = {name: url for name, url in urls.items() if _is_remote(url)}
    answers = await asyncio.gather(*(machine.get(_livez(url)) for url in remote.values()))
    ahead = {name: answer.ahead for name, answer in zip(remote, answers, strict=True) if answer.ahead is not None}
    return [_clock(name, seconds) for name, seconds in ahead.items()]


def _is_remote(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme == "ws" and bool(parts.hostname) and not is_loopback(parts.hostname or "")


def _livez(url: str) -> str:
    return url.replace("ws", "http", 1).removesuffix("/link") + "/livez"


def _clock(name: str, ahead: float) -> Line:
    off = abs(ahead)
    if off < _DOUBTFUL:
        return NODE.ok("clock", f"The clocks of node {name} and this machine agree.")
    text = f"The clock of node {name} is {off:.0f} s {'ahead of' if ahead > 0 else 'behind'} this machine's."
    if off < _WRONG:
        return NODE.warning("clock", text, "sudo timedatectl set-ntp true", "on both")
    return NODE.broken("clock", f"{text} Tokens end at the wrong time.", "sudo timedatectl set-ntp true", "on both")
