"""The serve configuration of tailscaled, which belongs to the owner of the machine: we add to it and take ours out.

    await edit(client, lambda config: with_proxy(config, name, 443, target))
    await edit(client, lambda config: without_proxy(config, name, 443, target))

Somebody else may change it at the same time, so every change is made to what is there and sent with its ETag.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from shared.tailscale.errors import Changed, PortTaken
from shared.tailscale.reading import mapping, text

Config = Mapping[str, Any]
_TRIES = 5
_LOOK = "Look at it (tailscale serve status), and take that away or choose another port."


@dataclass(frozen=True, slots=True)
class ServeConfig:
    """``config`` as tailscaled has it, empty where nothing is served; ``etag`` names this version of it."""

    config: Config
    etag: str


class Server(Protocol):
    """What ``edit`` needs of a client."""

    async def serve_config(self) -> ServeConfig: ...
    async def set_serve_config(self, config: Config, etag: str) -> None: ...


async def edit(client: Server, change: Callable[[Config], Config]) -> Config:
    """Replace the configuration with what ``change`` makes of it, which must leave what it is given as it is; the
    result. Nothing is sent when nothing changes. Raises Changed when others are always faster, what ``change``
    raises, and what the client raises."""
    for _ in range(_TRIES):
        found = await client.serve_config()
        wanted = change(found.config)
        if wanted == found.config:
            return wanted
        try:
            await client.set_serve_config(wanted, found.etag)
        except Changed:
            continue
        return wanted
    raise Changed(f"The serve configuration was changed by somebody else {_TRIES} times in a row. Try again.")


def with_proxy(
    config: Config, name: str, port: int, target: str, *, https: bool = True, capabilities: Sequence[str] = ()
) -> Config:
    """``config`` with ``target`` ("http://127.0.0.1:8710", "unix:/run/…") behind the whole of ``https://name:port/``,
    which passes on the grants named ``capabilities``. Raises PortTaken where the owner serves something else, or has
    opened that port to the internet with Funnel."""
    new = copy.deepcopy(dict(config))
    kind = "HTTPS" if https else "HTTP"
    served = mapping(mapping(new.get("TCP")).get(str(port)))
    if served and served.get(kind) is not True:
        raise PortTaken(f"Port {port} of {name} is served already, as something else than {kind}. {_LOOK}")
    host = f"{name}:{port}"
    if mapping(new.get("AllowFunnel")).get(host):
        raise PortTaken(f"{host} is open to the whole internet by Funnel. {_LOOK}")
    handlers = mapping(mapping(mapping(new.get("Web")).get(host)).get("Handlers"))
    there = mapping(handlers.get("/"))
    if there and text(there.get("Proxy")) != target:
        raise PortTaken(f"{host}/ is served already, by something else. {_LOOK}")
    handler: dict[str, Any] = {"Proxy": target}
    if capabilities:
        handler["AcceptAppCaps"] = list(capabilities)
    _within(new, "TCP")[str(port)] = {kind: True}
    _within(_within(_within(new, "Web"), host), "Handlers")["/"] = handler
    return new


def without_proxy(config: Config, name: str, port: int, target: str) -> Config:
    """``config`` without what ``with_proxy`` put there, and without what that leaves empty. What else the owner
    serves there stays, and all of it stays when ``target`` is not what ``/`` leads to."""
    new = copy.deepcopy(dict(config))
    host = f"{name}:{port}"
    web = mapping(new.get("Web"))
    handlers = mapping(mapping(web.get(host)).get("Handlers"))
    if text(mapping(handlers.get("/")).get("Proxy")) != target:
        return new
    left = {path: handler for path, handler in handlers.items() if path != "/"}
    if left:
        new["Web"][host]["Handlers"] = left
        return new
    _drop(new, "Web", host)
    _drop(new, "AllowFunnel", host)
    if not any(other.rpartition(":")[2] == str(port) for other in mapping(new.get("Web"))):
        _drop(new, "TCP", str(port))
    return new


def _within(parent: dict[str, Any], key: str) -> dict[str, Any]:
    """The object at ``key``, which is made where there is none or null."""
    if not isinstance(parent.get(key), dict):
        parent[key] = {}
    return parent[key]


def _drop(config: dict[str, Any], section: str, key: str) -> None:
    """Take ``key`` out of a section, and the section when nothing is left in it."""
    left = {name: value for name, value in mapping(config.get(section)).items() if name != key}
    if left:
        config[section] = left
    else:
        config.pop(section, None)
