"""The group edge: does the edge of this machine run, take calls, and have settings that make sense?"""

from __future__ import annotations

import os
from collections.abc import Sequence

from hearthlink.doctor.machine import Answer, Machine, edge_url
from hearthlink.doctor.probes import Probe, in_thread
from hearthlink.doctor.report import Group, Line, split_command
from hearthlink.doctor.store import client_of
from shared import __version__

EDGE = Group("edge")
_SECONDS = 5.0


def probes(machine: Machine) -> list[Probe]:
    return [
        Probe(EDGE, "process", lambda: process(machine), _SECONDS),
        Probe(EDGE, "listener", lambda: listener(machine), _SECONDS),
        Probe(EDGE, "settings", lambda: in_thread(lambda: settings(machine)), _SECONDS),
        Probe(EDGE, "node-token", lambda: in_thread(lambda: node_token(machine)), _SECONDS),
    ]


async def process(machine: Machine) -> Sequence[Line]:
    """Whether it runs, in which version, and whether its database works."""
    answer = await machine.edge()
    if not await machine.edge_runs():
        return [await _not_running(machine, answer)]
    version = str(answer.json["version"])
    lines = [
        EDGE.ok("process", f"The edge runs, version {version}; operations on {answer.url.removesuffix('/healthz')}.")
    ]
    if version != __version__:
        text = f"The edge runs version {version}, and {__version__} is installed: it was not restarted after an update."
        lines = [EDGE.warning("process", text, "hearthlink edge", "stop it, then")]
    if answer.json["status"] == "draining":
        text = "The edge is stopping: it takes no new chats, and ends when the running ones are over."
        lines.append(EDGE.warning("process", text, "hearthlink edge", "when it has ended"))
    if answer.json["status"] == "maintenance":
        text = "The edge is closed to all but admins (hearthlink maintenance show says why)."
        lines.append(EDGE.warning("process", text, "hearthlink maintenance off", "to open it"))
    if (problem := str(answer.json.get("store", "ok"))) != "ok":
        url = machine.settings.edge.store.get_secret_value()
        if url == "sqlite":
            text = f"The edge cannot write its database: {problem}"
            lines.append(EDGE.broken("store", text, f"df -h '{machine.state}'"))
        else:
            lines.append(EDGE.broken("store", problem, f"{client_of(url)} INFO", "as somebody who may"))
    if (problem := str(answer.json.get("audit", "ok"))) != "ok":
        sink = machine.settings.audit.sink
        text = f"The edge cannot write its audit lines to {sink}: {problem}. The last ones are in its memory."
        look = f"df -h '{os.path.dirname(sink)}'" if os.path.isabs(sink) else machine.edit
        lines.append(EDGE.broken("audit", text, look))
    return lines


async def _not_running(machine: Machine, answer: Answer) -> Line:
    where = answer.url.removesuffix("/healthz")
    if answer.status:
        text = f"Something else than an edge of this version answers at {where} (HTTP {answer.status})."
        return EDGE.broken("process", text, _who_listens(where))
    silent = f"nothing answers at {where} ({answer.trouble})"
    if process := await machine.edge_process():
        text = f"An edge runs with this state (process {process}), and {silent}: it hangs, or has other settings."
        return EDGE.broken("process", text, f"ps -fp {process}", "look at it before you end it")
    if answer.silent:
        return EDGE.broken("process", f"What listens at {where} says nothing: it hangs.", _who_listens(where))
    if machine.edge_ran:
        return EDGE.broken("process", f"The edge does not run: {silent}.", "hearthlink edge")
    if machine.has_edge:
        text = f"An edge has settings here and never ran: {silent}."
        return EDGE.warning("process", text, "hearthlink edge")
    if machine.has_node or await machine.node_runs():
        return EDGE.absent("process", "No edge is set up on this machine.")
    return EDGE.warning("process", "Neither an edge nor a node is set up on this machine.", "hearthlink up")


async def listener(machine: Machine) -> Sequence[Line]:
    """Whether callers get through to it."""
    if not await machine.edge_runs():
        return []
    configured = machine.settings.edge.listen
    url = edge_url(machine.settings)
    answer = await machine.get(f"{url}/livez")
    if answer.json.get("status") == "ok":
        return [EDGE.ok("listener", f"Callers are answered at {configured}.")]
    if answer.status:
        text = f"At {configured} something answers that is not this edge (HTTP {answer.status})."
    else:
        text = f"The edge runs, and at {configured} nothing answers ({answer.trouble})."
    return [EDGE.broken("listener", text, _who_listens(configured))]


def _who_listens(where: str) -> str:
    """The command that names the process."""
    return f"ss -ltnp 'sport = :{where.rpartition(':')[2]}'"


def settings(machine: Machine) -> Sequence[Line]:
    """What a start would refuse, and what it would start with against its owner's likely wish."""
    from edge.doubts import doubts
    from edge.plans import plans_from
    from node.prompts import SHIPPED, BrokenChatType, ChatTypes

    wrong: list[Line] = []
    try:
        plans_from(machine.settings.plans)
    except ValueError as error:
        wrong.append(EDGE.broken("settings", str(error), machine.edit))
    if machine.has_node:
        try:
            ChatTypes(machine.settings.node.chat_types or SHIPPED).load()
        except BrokenChatType as error:
            wrong.append(EDGE.broken("settings", str(error), "hearthlink config check"))
    if machine.has_edge:
        wrong += [
            EDGE.warning("settings", f"{sentence[:1].upper()}{sentence[1:]}.", machine.edit)
            for sentence in doubts(machine.settings)
        ]
    return wrong or [EDGE.ok("settings", "The settings can be used.")]


def node_token(machine: Machine) -> Sequence[Line]:
    """The file that edge and node share where neither has a token in its settings."""
    from shared.state import StateDir, StateError

    upstreams = machine.settings.edge.upstreams.values()
    used_by_edge = machine.has_edge and any(upstream.token is None for upstream in upstreams)
    used_by_node = machine.has_node and not machine.settings.node.tokens
    if not used_by_edge and not used_by_node:
        return []
    if not (machine.state / "node-token").exists():
        text = "There is no node token yet: the first start of edge or node makes it."
        return [EDGE.absent("node-token", text)]
    try:
        StateDir(machine.state).node_token()
    except StateError as error:
        said, command = split_command(str(error))
        return [EDGE.broken("node-token", said, command or f"ls -l '{machine.state}'")]
    return [EDGE.ok("node-token", "The token between edge and node is there, and closed to other users.")]
