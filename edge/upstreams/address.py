"""Where the settings say that the nodes are."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from shared.settings_edge import UpstreamSettings
from shared.tls import client_context


@dataclass(frozen=True, slots=True)
class Address:
    """Where a node is, and the bearer token it wants: at ``url``, or at ``port`` of ``node``, a machine of the tailnet
    by name or address, or all that have a tag. Lower ``priority`` is asked first; ``links`` are connections. ``tls`` is
    what wss:// uses in place of the system's authorities. ``setting`` is where all this stands in the settings, where
    that is not below its own name."""

    name: str
    url: str
    token: str = field(repr=False)
    priority: int = 0
    links: int = 1
    node: str = ""
    port: int = 0
    tls: ssl.SSLContext | None = field(default=None, repr=False, compare=False)
    setting: str = ""

    @property
    def key(self) -> str:
        return self.setting or f"edge.upstreams.{self.name}"


def addresses_from(upstreams: Mapping[str, UpstreamSettings], own_token: Callable[[], str]) -> Iterator[Address]:
    """``own_token`` is asked for where none is set. Raises TlsError, and what ``own_token`` raises."""
    for name, upstream in upstreams.items():
        yield Address(
            name=name,
            url=upstream.url or "",
            token=upstream.token.get_secret_value() if upstream.token is not None else own_token(),
            priority=upstream.priority,
            links=upstream.links,
            node=upstream.node or "",
            port=upstream.port,
            tls=client_context(upstream.tls) if upstream.tls.on else None,
            setting=f"edge.upstreams.{name}",
        )
