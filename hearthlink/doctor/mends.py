"""What mends a node that cannot be reached: one command for each cause that the edge tells apart."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

from hearthlink.doctor.machine import Machine
from hearthlink.doctor.tailnet import explained
from shared.addresses import OnTailnet, is_loopback

if TYPE_CHECKING:
    from shared.tailscale.nodes import Node

_LOOK_UP_SECONDS = 1.0
# What `auto` comes to as well, unless Tailscale was away when the node started.
LISTEN = " --listen tailnet"
_POLICY = "in the tailnet's policy"


@dataclass(frozen=True, slots=True)
class Trouble:
    """Of one node: ``cause`` and ``sentence`` as ``edge.upstreams.reach`` has them, both empty where there is none;
    ``machine`` its name in the tailnet, else empty."""

    name: str
    cause: str
    sentence: str
    machine: str = ""
    url: str = ""

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> Self:
        """Of a node in the edge's health."""
        tailnet = row.get("tailnet")
        machine = str(tailnet.get("machine") or "") if isinstance(tailnet, Mapping) else ""
        sentence = str(row.get("reason") or "its link broke a moment ago.")
        return cls(str(row["name"]), str(row.get("cause") or "other"), sentence, machine, str(row.get("url") or ""))


async def mend_of(trouble: Trouble, machine: Machine) -> tuple[str, str]:
    """The command, and where it is run; "" is this machine."""
    short = trouble.machine.partition(".")[0]
    there = f"on {short}" if short else _there(trouble)
    match trouble.cause:
        case "tailscaled_down" | "not_logged_in":
            problem = await machine.away()
            return "sudo tailscale up" if problem is None else explained(problem)[1], ""
        case "no_such_machine":
            return _join(trouble, machine), "on the machine with the node"
        case "machine_offline":
            return "sudo tailscale up", there
        case "key_expired":
            return "sudo tailscale up --force-reauth", there
        case "policy_blocks" | "machine_refused":
            return await _grant(trouble, machine), _POLICY
        case "app_not_listening":
            return f"hearthlink node{LISTEN if trouble.machine else ''}", there
        case "token_refused":
            return machine.edit, ""
        case _ if await _has_address(trouble):
            return ("hearthlink doctor", there) if there else (machine.edit, "")
        case _:
            return machine.edit, ""


async def _has_address(trouble: Trouble) -> bool:
    """Whether the name in the URL leads to a machine at all; nobody can run a command on one without an address."""
    host = urlsplit(trouble.url).hostname
    if not host:
        return True
    try:
        async with asyncio.timeout(_LOOK_UP_SECONDS):
            await asyncio.get_running_loop().getaddrinfo(host, None)
    except (OSError, TimeoutError, UnicodeError):
        return False
    return True


def _there(trouble: Trouble) -> str:
    host = urlsplit(trouble.url).hostname or ""
    return "" if not host or is_loopback(host) else f"on {host}"


def _wanted(trouble: Trouble, machine: Machine) -> tuple[str, int]:
    """The machine and port that the settings name for this node. One of several with a tag is called NAME/MACHINE."""
    upstream = machine.settings.edge.upstreams.get(trouble.name.partition("/")[0])
    return (upstream.node or "", upstream.port) if upstream is not None else ("", 0)


async def start_node(machine: Machine) -> str:
    """The command that starts the node of this machine."""
    tailnet = isinstance(machine.node_listen, OnTailnet) and await machine.away() is None
    return f"hearthlink node{LISTEN if tailnet else ''}"


def _join(trouble: Trouble, machine: Machine) -> str:
    wanted = _wanted(trouble, machine)[0]
    return f"sudo tailscale up --advertise-tags={wanted}" if wanted.startswith("tag:") else "sudo tailscale up"


async def _grant(trouble: Trouble, machine: Machine) -> str:
    """What the policy lacks, as it is written there."""
    from shared.tailscale.view import View

    wanted, port = _wanted(trouble, machine)
    status = await machine.tailscale_or_none()
    found = View.of(status).find(trouble.machine or wanted) if status is not None else ()
    grant = {
        "src": [_selector(status.node) if status is not None and status.node is not None else "tag:edge"],
        "dst": [_selector(found[0]) if found else wanted if wanted.startswith("tag:") else "tag:gpu"],
        "ip": [f"tcp:{port}"],
        "app": {machine.settings.tailscale.node_capability: [{"role": "infer"}]},
    }
    return json.dumps(grant)


def _selector(node: Node) -> str:
    """How a policy names the machine: by its tag, else its address."""
    return next(iter((*node.tags, *node.addresses)), node.name)
