"""What a running edge consists of. Made and closed by ``edge.app``; handed to every route."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from edge.chats import Chats
from edge.client_address import AddressLists, ClientAddress
from edge.doors.issuers import Issuers
from edge.hosts import Hosts, names_of
from edge.load import Load
from edge.metrics import Metrics
from edge.plans import Plan
from edge.site import Site
from edge.store.admin import Admin
from edge.store.store import Store
from edge.tokens import Tokens
from edge.upstreams.pool import Upstreams
from shared.addresses import origin_of
from shared.asgi.connections import Connections
from shared.audit_sink import AuditSink
from shared.settings import Settings
from shared.signing_keys import SigningKeys

if TYPE_CHECKING:
    from limits.strategies import RateLimiter as Rates

    # importing them takes 0.1 s, which only an edge in a tailnet spends
    from shared.tailscale.client import LocalClient
    from shared.tailscale.tailnet import Tailnet


@dataclass(frozen=True, slots=True)
class Policy:
    """What the owner set, as the routes need it. Times in seconds, ``max_body`` in bytes. ``signing_keys_set``: the
    settings hold the keys that sign tokens, and not the store. ``hosts`` are the names that are good where callers
    connect, ``ops_hosts`` those on the listener for operations. ``own_origin`` is that of our own page where callers
    see it (``edge.public_url``)."""

    hosts: Hosts
    ops_hosts: Hosts
    callers: AddressLists
    allowed_origins: frozenset[str]
    exempt_origins: frozenset[str]
    require_authentication: bool
    page: bool
    anonymous: bool
    invites: bool
    user_ids: bool
    own_origin: str | None
    anonymous_raw_models: bool
    max_body: int
    request_timeout: float
    tester_capability: str
    signing_keys_set: bool


@dataclass(slots=True)
class Services:
    """``admin`` opens the owner's side of the store, for one act. ``connections`` are the public listener's.
    ``issuers`` are the doors at which somebody else's word counts. ``rates`` count requests of the routes that cost no
    model, and outlive a reload. ``local`` and ``tailnet`` ask and watch this machine's tailscaled; None where nothing
    here is in a tailnet. ``serve`` is where Tailscale Serve hands over requests, "unix" or "HOST:PORT", while that is
    open."""

    site: Site
    policy: Policy
    plans: Mapping[str, Plan]
    tokens: Tokens
    store: Store
    admin: Callable[[], AbstractAsyncContextManager[Admin]]
    addresses: ClientAddress
    connections: Connections
    load: Load
    upstreams: Upstreams
    chats: Chats
    metrics: Metrics
    audit: AuditSink
    pseudonym_key: bytes
    issuers: Issuers = field(default_factory=Issuers)
    rates: Rates | None = None
    local: LocalClient | None = None
    tailnet: Tailnet | None = None
    serve: str | None = None
    draining: bool = False

    def serve_at(self, where: str) -> None:
        self.serve = where


def policy_from(settings: Settings, running: Policy | None = None) -> Policy:
    """What is decided at the start stays as in ``running``: who is believed without a credential was allowed, or not,
    for the addresses that were bound then."""
    configured = settings.edge
    own_origin = None if configured.public_url is None else origin_of(urlsplit(configured.public_url))
    start = (configured.require_authentication, configured.user_ids, own_origin)
    if running is not None:
        start = (running.require_authentication, running.user_ids, running.own_origin)
    require_authentication, user_ids, own_origin = start
    believing = user_ids or not require_authentication
    names = names_of(() if believing else configured.allowed_hosts, own_origin)
    return Policy(
        hosts=Hosts(names, loopback_only=believing),
        ops_hosts=Hosts(names_of(configured.allowed_hosts), loopback_only=True),
        callers=AddressLists(configured.allowed_addresses, configured.denied_addresses),
        allowed_origins=frozenset(configured.allowed_origins),
        exempt_origins=frozenset(configured.exempt_origins),
        require_authentication=require_authentication,
        page=configured.page,
        anonymous=configured.anonymous,
        invites=configured.invites,
        user_ids=user_ids,
        own_origin=own_origin,
        anonymous_raw_models=configured.anonymous_raw_models,
        max_body=configured.max_body,
        request_timeout=configured.request_timeout,
        tester_capability=settings.tailscale.tester_capability,
        signing_keys_set=bool(configured.signing_keys),
    )


def tokens_from(settings: Settings, keys: SigningKeys) -> Tokens:
    """With the keys of the settings, which win, or the store's ``keys``."""
    configured = [key.get_secret_value() for key in settings.edge.signing_keys]
    return Tokens(configured or keys.verifying, settings.edge.token_lifetime)
