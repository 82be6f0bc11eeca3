"""The group tailnet, the part of Serve: does it lead to the edge of this machine?"""

from __future__ import annotations

from collections.abc import Sequence
from shlex import quote
from typing import TYPE_CHECKING

from hearthlink.doctor.machine import Machine
from hearthlink.doctor.probes import Probe
from hearthlink.doctor.report import Line
from hearthlink.doctor.tailnet import TAILNET, running

if TYPE_CHECKING:
    from hearthlink.setup.places import Place

_SECONDS = 7.0


def probes(machine: Machine) -> list[Probe]:
    return [Probe(TAILNET, "serve", lambda: serve(machine), _SECONDS)]


async def serve(machine: Machine) -> Sequence[Line]:
    """Whether Tailscale Serve leads to the edge here."""
    from hearthlink.setup.places import led_here
    from shared.tailscale.errors import TailscaleError
    from shared.tailscale.reading import mapping

    if not machine.has_edge or machine.settings.edge.serve == "off" or await running(machine) is None:
        return []
    try:
        config = (await (await machine.local()).serve_config()).config
    except TailscaleError as error:
        return [TAILNET.warning("serve", str(error), "tailscale serve status")]
    ours = led_here(config, machine.settings)
    if not ours:
        text = "Tailscale Serve does not lead to this edge: nobody calls it by its name in the tailnet."
        return [TAILNET.absent("serve", text, "hearthlink setup tailnet")]
    if funnelled := [place for place in ours if mapping(config.get("AllowFunnel")).get(place.host) is True]:
        return [_funnelled(place) for place in funnelled]
    hosts = ", ".join(place.host for place in ours)
    listens = await _listens_at(machine)
    if listens is not None and listens not in {place.target for place in ours}:
        text = f"Tailscale Serve leads {hosts} to {ours[0].target}, where this edge does not listen."
        if listens:
            return [TAILNET.broken("serve", text, "hearthlink setup tailnet")]
        return [TAILNET.broken("serve", f"{text} Its log says why.", "hearthlink edge", "stop it, then")]
    return [TAILNET.ok("serve", f"Tailscale Serve leads {hosts} to this edge.")]


def _funnelled(place: Place) -> Line:
    text = f"{place.host} is open to the whole internet by Funnel: the edge refuses all who come that way."
    # `tailscale funnel off` would take away all that is served at this port. To serve the same again closes it alone.
    again = f"sudo tailscale serve --bg --https={place.port} {quote(place.target)}"
    return TAILNET.broken("serve", text, again)


async def _listens_at(machine: Machine) -> str | None:
    """Where the edge listens for Serve, as the configuration writes it: "" for nowhere, None when no edge runs."""
    if not await machine.edge_runs():
        return None
    from hearthlink.setup.places import unix_target

    tailnet = (await machine.edge()).json.get("tailnet")
    told = str(tailnet.get("serve") or "") if isinstance(tailnet, dict) else ""
    return unix_target(machine.settings) if told == "unix" else f"http://{told}" if told else ""
