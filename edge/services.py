"""What a running edge consists of. Made and closed by ``edge.app``; handed to every route."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edge.chats import Chats
from edge.client_address import ClientAddress
from edge.metrics import Metrics
from edge.plans import Plan
from edge.site import Site
from edge.store.sqlite import SQLiteStore
from edge.tokens import Tokens
from edge.upstreams import Upstreams


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


@dataclass(slots=True)
class Services:
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
    draining: bool = False
