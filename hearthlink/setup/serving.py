"""The edge of this machine in tailscaled's serve configuration: put there, and taken out again.

The configuration belongs to the owner of the machine; whatever else is in it stays. Imported when it is used.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx2

from edge.doors.grants import example
from edge.serve_listener import UNIX_SINCE
from hearthlink.output import Failure, Status
from hearthlink.setup.places import Place, forget, led_here, remember, target_of
from shared.settings import Settings
from shared.state import StateError
from shared.tailscale import serve
from shared.tailscale.client import LocalClient
from shared.tailscale.reading import mapping
from shared.tailscale.serve import Config
from shared.tailscale.status import Status as TailnetStatus

_HTTPS_PORT = 443
_HTTP_PORT = 80
# Seconds that an edge on this machine may take to say that it lives.
_ANSWERS_WITHIN = 3.0
_UNIX = "unix:"
_ON_A_PORT = (
    'Set edge.serve = "127.0.0.1:8702", which every user of this machine can reach, restart the edge, and run this'
    " again."
)
_START = "Start it, and run this again: hearthlink edge"


@dataclass(frozen=True, slots=True)
class Served:
    """What was put there. ``url`` is for people, ``target`` for tailscaled; ``changed``: it was not there before.
    ``removed`` are URLs where the edge was before. ``grant`` is one for the policy, ``warnings`` say what keeps people
    from the page all the same."""

    url: str
    https: bool
    target: str
    changed: bool
    removed: tuple[str, ...]
    grant: dict[str, Any]
    warnings: tuple[str, ...]


async def add(client: LocalClient, settings: Settings, port: int | None) -> Served:
    """Serve the edge on ``port``, and nowhere else: of HTTPS where this machine has a certificate, else of plain HTTP;
    None is the usual one. Raises Failure, and TailscaleError (PortTaken where the owner serves something else there).
    """
    status = await client.status(peers=False)
    if status.problem is not None:
        raise status.problem
    if status.node is None or not status.node.name:
        raise Failure("This machine has no name in its tailnet. Turn on MagicDNS for the tailnet, and run this again.")
    target = _target(settings, client.capability_version)
    await _check_edge(target)
    own, name = status.node, status.node.name
    https = name in status.certificate_names
    place = Place(name, port or (_HTTPS_PORT if https else _HTTP_PORT), target)
    url = _url(place, https=https)
    left: set[str] = set()

    def change(config: Config) -> Config:
        left.clear()
        for old in led_here(config, settings):
            # Of another time: before there were certificates, with another port, name or edge.serve.
            was_https = _is_https(config, old.port)
            if (old, was_https) != (place, https):
                left.add(_url(old, https=was_https))
                config = serve.without_proxy(config, *old)
        return serve.with_proxy(config, *place, https=https)

    changed = await _edit(client, change)
    warnings = [*_remembered(settings, place), *await _warnings(client, settings, status)]
    destination = own.tags[0] if own.tags else next(iter(status.addresses), name)
    return Served(
        url=url,
        https=https,
        target=target,
        changed=changed,
        removed=tuple(sorted(left - {url})),
        grant=example("autogroup:member", destination, place.port, settings.tailscale.tester_capability),
        warnings=tuple(warnings),
    )


async def remove(client: LocalClient, settings: Settings) -> list[str]:
    """Take out whatever leads to this edge, under whatever name and port it was put there; the URLs. Raises
    TailscaleError."""
    taken: list[str] = []

    def change(config: Config) -> Config:
        places = led_here(config, settings)
        taken[:] = [_url(place, https=_is_https(config, place.port)) for place in places]
        for place in places:
            config = serve.without_proxy(config, *place)
        return config

    await _edit(client, change)
    forget(settings.state)
    return taken


async def _edit(client: LocalClient, change: Callable[[Config], Config]) -> bool:
    """Whether the configuration is another one now."""
    changed = False

    def watched(config: Config) -> Config:
        nonlocal changed
        new = change(config)
        changed = new != config
        return new

    await serve.edit(client, watched)
    return changed


def _remembered(settings: Settings, place: Place) -> list[str]:
    """Keep ``place`` for the next time; a warning where that fails."""
    try:
        remember(settings.state, place)
    except (StateError, OSError) as error:
        why = (error.strerror if isinstance(error, OSError) else None) or str(error).rstrip(".")
        text = f"Where the edge is served could not be kept in {settings.state}: {why}."
        return [f"{text} Before you change edge.serve, run: hearthlink setup tailnet --off"]
    return []


def _is_https(config: Mapping[str, Any], port: int) -> bool:
    return mapping(mapping(config.get("TCP")).get(str(port))).get("HTTPS") is True


def _target(settings: Settings, capability_version: int) -> str:
    """Where the edge listens for Serve. Raises Failure where it does not, or where this tailscaled cannot reach it."""
    if settings.edge.serve == "off":
        raise Failure(
            'edge.serve is "off", so the edge does not listen for Tailscale Serve. Set it to "unix" and restart it.'
        )
    target = target_of(settings)
    if settings.edge.serve == "auto" and sys.platform != "linux":
        raise Failure(f"By itself an edge listens for Tailscale Serve on Linux only. {_ON_A_PORT}")
    if target.startswith(_UNIX) and 0 < capability_version < UNIX_SINCE:
        raise Failure(f"This tailscaled is older than 1.94 and serves no unix sockets. Update it. Or: {_ON_A_PORT}")
    return target


async def _check_edge(target: str) -> None:
    """Raises Failure when no edge answers at ``target``."""
    path = target.removeprefix(_UNIX) if target.startswith(_UNIX) else None
    transport = httpx2.AsyncHTTPTransport(uds=path)
    base = "http://localhost" if path else target
    try:
        async with httpx2.AsyncClient(transport=transport, base_url=base, timeout=_ANSWERS_WITHIN) as client:
            answer = await client.get("/livez")
            found = answer.status_code == 200 and answer.json() == {"status": "ok"}
    except httpx2.TransportError:
        why = _closed(path) if path else f"it does not run, or listens elsewhere. {_START}"
        raise Failure(f"No edge answers at {target}: {why}", Status.UNAVAILABLE) from None
    except ValueError:
        found = False
    if not found:
        raise Failure(f"What answers at {target} is no edge. Stop it, or choose another place in edge.serve.")


def _closed(path: str) -> str:
    """Why nobody answers at a unix socket, and what to do."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
            caller.settimeout(_ANSWERS_WITHIN)
            caller.connect(path)
    except FileNotFoundError:
        why = "it does not run, has another state folder (HEARTHLINK_STATE), or was started before tailscaled"
    except PermissionError:
        return "this user may not open its socket. Run this as root, or as the user who runs the edge."
    except OSError:
        why = "it does not run"
    else:
        why = "it hangs"
    return f"{why}. {_START}"


def _url(place: Place, *, https: bool) -> str:
    scheme, usual = ("https", _HTTPS_PORT) if https else ("http", _HTTP_PORT)
    return f"{scheme}://{place.name}/" if place.port == usual else f"{scheme}://{place.name}:{place.port}/"


async def _warnings(client: LocalClient, settings: Settings, status: TailnetStatus) -> tuple[str, ...]:
    found: list[str] = []
    if (await client.prefs()).shields_up:
        found.append("Tailscale lets nothing in on this machine. Change that: sudo tailscale set --shields-up=false")
    if status.magic_dns is False:
        found.append("MagicDNS is off in this tailnet, so the name leads nowhere. Turn it on among its DNS settings.")
    if not settings.edge.page:
        found.append("edge.page is false: there is the API, and no chat page at /.")
    return tuple(found)
