"""What a running edge consists of. Made and closed by ``edge.app``; handed to every route."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge.chats import Chats
from edge.client_address import ClientAddress
from edge.metrics import Metrics
from edge.plans import Plan
from edge.site import Site
from edge.store.sqlite import SQLiteStore
from edge.tokens import Tokens
from edge.upstreams.pool import Upstreams

if TYPE_CHECKING:  # importing them takes 0.1 s, which only an edge in a tailnet spends
    from shared.tailscale.client import LocalClient
    from shared.tailscale.tailnet import Tailnet


@dataclass(frozen=True, slots=True)
class Policy:
    """What the owner set, as the routes need it. Times in seconds, ``max_body`` in bytes."""

    allowed_origins: frozenset[str]
    require_authentication: bool
    page: bool
    anonymous: bool
    invites: bool
    anonymous_raw_models: bool
    max_body: int
    request_timeout: float
    tester_capability: str


@dataclass(slots=True)
class Services:
    """``local`` and ``tailnet`` ask and watch this machine's tailscaled; None where nothing here is in a tailnet.
    ``serve`` is where Tailscale Serve hands over requests, "unix" or "HOST:PORT", while that is open."""

    site: Site
    policy: Policy
    plans: Mapping[str, Plan]
    tokens: Tokens
    store: SQLiteStore
    addresses: ClientAddress
    upstreams: Upstreams
    chats: Chats
    metrics: Metrics
    pseudonym_key: bytes
    local: LocalClient | None = None
    tailnet: Tailnet | None = None
    serve: str | None = None
    draining: bool = False

    def serve_at(self, where: str) -> None:
        self.serve = where
