"""The group tailnet, the part of Serve: does it lead to the edge of this machine?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from shlex import quote

from hearthlink.doctor.machine import Machine
from hearthlink.doctor.probes import Probe
from hearthlink.doctor.report import Line
from hearthlink.doctor.tailnet import TAILNET, running

_SECONDS = 7.0


def probes(machine: Machine) -> list[Probe]:
    return [Probe(TAILNET, "serve", lambda: serve(machine), _SECONDS)]


async def serve(machine: Machine) -> Sequence[Line]:
    """Whether Tailscale Serve leads to the edge here."""
    from shared.tailscale.errors import TailscaleError

    if not machine.has_edge or machine.settings.edge.serve == "off" or await running(machine) is None:
        return []
    try:
        config = (await (await machine.local()).serve_config()).config
    except TailscaleError as error:
        return [TAILNET.warning("serve", str(error), "tailscale serve status")]
    ours = [place for place in _served(config) if place.target in _targets(machine)]
    if not ours:
        text = "Tailscale Serve does not lead to this edge: nobody calls it by its name in the tailnet."
        return [TAILNET.absent("serve", text, "hearthlink setup tailnet")]
    if funnelled := [place for place in ours if place.funnel]:
        return [_funnelled(place) for place in funnelled]
    hosts = ", ".join(place.host for place in ours)
    listens = await _listens_at(machine)
    if listens is not None and listens not in {place.target for place in ours}:
        text = f"Tailscale Serve leads {hosts} to {ours[0].target}, where this edge does not listen."
        if listens:
            return [TAILNET.broken("serve", text, "hearthlink setup tailnet")]
        return [TAILNET.broken("serve", f"{text} Its log says why.", "hearthlink edge", "stop it, then")]
    return [TAILNET.ok("serve", f"Tailscale Serve leads {hosts} to this edge.")]


def _funnelled(place: _Place) -> Line:
    text = f"{place.host} is open to the whole internet by Funnel: the edge refuses all who come that way."
    # `tailscale funnel off` would take away all that is served at this port. To serve the same again closes it alone.
    again = f"sudo tailscale serve --bg --https={place.host.rpartition(':')[2]} {quote(place.target)}"
    return TAILNET.broken("serve", text, again)


@dataclass(frozen=True, slots=True)
class _Place:
    """What Serve has at the root of ``host`` ("name:port")."""

    host: str
    target: str
    funnel: bool


def _served(config: object) -> list[_Place]:
    from shared.tailscale.reading import mapping, text

    whole = mapping(config)
    places = []
    for host, web in mapping(whole.get("Web")).items():
        target = text(mapping(mapping(mapping(web).get("Handlers")).get("/")).get("Proxy"))
        places.append(_Place(host, target, mapping(whole.get("AllowFunnel")).get(host) is True))
    return places


def _targets(machine: Machine) -> set[str]:
    """What stands for this edge in Serve's configuration: its socket, and the port that the settings name."""
    configured = machine.settings.edge.serve
    return {_unix(machine)} if configured in ("auto", "unix") else {_unix(machine), f"http://{configured}"}


def _unix(machine: Machine) -> str:
    from edge.serve_listener import SOCKET

    return f"unix:{machine.state / SOCKET}"


async def _listens_at(machine: Machine) -> str | None:
    """Where the edge listens for Serve, as the configuration writes it: "" for nowhere, None when no edge runs."""
    if not await machine.edge_runs():
        return None
    tailnet = (await machine.edge()).json.get("tailnet")
    told = str(tailnet.get("serve") or "") if isinstance(tailnet, dict) else ""
    return _unix(machine) if told == "unix" else f"http://{told}" if told else ""
