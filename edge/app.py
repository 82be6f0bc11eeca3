"""The edge put together: settings in, a running edge out."""

from __future__ import annotations

import asyncio
import functools
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

from loguru import logger
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route, Router, WebSocketRoute

from edge.api.audit import Audit
from edge.api.chat import ChatEndpoint
from edge.api.funnel import FunnelGuard
from edge.api.health import HealthRoutes
from edge.api.limiter import rate_limiter
from edge.api.lists import ListRoutes
from edge.api.pages import PageRoutes
from edge.api.peers import is_peers, may_be_peers, treat_as_peers
from edge.api.stop import StopRoute
from edge.api.tokens import TokenRoutes
from edge.chats import Chats
from edge.client_address import ClientAddress
from edge.metrics import Metrics, NodeState
from edge.plans import plans_from
from edge.principals import link_id
from edge.serve_listener import ServeListener
from edge.services import Policy, Services
from edge.site import Site
from edge.store.sqlite import SQLiteStore
from edge.tokens import Tokens
from edge.upstreams.address import Address, addresses_from
from edge.upstreams.pool import Upstreams
from edge.upstreams.upstream import Upstream
from shared import __version__
from shared.addresses import split_listen
from shared.asgi.front import Envelope, Front, no_websocket
from shared.asgi.listener import Listener
from shared.asgi.protocol import Limits
from shared.asgi.server import serving
from shared.asgi.types import App, Receive, Scope, Send, header
from shared.contract.surface import SURFACES
from shared.interrupt import Interrupt
from shared.link.hello import Hello
from shared.reload import reload_settings
from shared.settings import Settings
from shared.state import StateDir
from shared.ticker import Ticker

# What OpenAI's SDKs send from a browser (clients §1), and our own.
_REQUEST_HEADERS = (
    "Authorization", "Content-Type", "Accept", "X-API-Key", "X-Request-Id", "Idempotency-Key", "Last-Event-ID",
    "OpenAI-Organization", "OpenAI-Project", "OpenAI-Beta",
    *(f"X-Stainless-{name}" for name in (
        "Lang", "Package-Version", "OS", "Arch", "Runtime", "Runtime-Version", "Retry-Count", "Timeout",
        "Helper-Method", "Poll-Helper", "Async", "Read-Timeout", "Raw-Response", "Custom-Poll-Interval",
    )),
)  # fmt: skip
_EXPOSED_HEADERS = (
    "X-Request-Id", "Retry-After", "x-should-retry", "Hearthlink-Chat-Id", "Hearthlink-Dropped-Params",
    *(f"x-ratelimit-{what}-{unit}" for what in ("limit", "remaining", "reset") for unit in ("requests", "tokens")),
)  # fmt: skip
_PREFLIGHT_SECONDS = 7200  # Chrome's own upper bound
_USAGE_WITHIN = 60.0  # seconds past a request's deadline after which its reservation counts as abandoned

AuditSink = Callable[[Mapping[str, Any]], None]


# Keys that a reload applies; everything else is bound at the start.
RELOADABLE = (
    "plans.",
    "edge.allowed_origins",
    "edge.page",
    "edge.anonymous",
    "edge.anonymous_raw_models",
    "edge.invites",
    "edge.trusted_proxies",
    "edge.max_body",
    "edge.request_timeout",
    "edge.token_lifetime",
    "edge.signing_keys",
    "tailscale.tester_capability",
)
# Sections that an edge reads, or keys of them.
_SECTIONS = ("edge.", "plans.", "logs.", "tailscale.socket", "tailscale.proxy", "tailscale.tester_capability")


@dataclass(slots=True)
class Edge:
    """An edge that serves. ``drain`` before leaving the block that made it, or running answers are cut."""

    settings: Settings
    services: Services
    audit: Audit
    state: StateDir
    app: App
    public: Listener
    ops: Listener
    drain_timeout: float

    def reload(self) -> None:
        """Read the settings again and apply what can change while it runs; a mistake keeps the old ones and is
        logged."""
        self.settings = reload_settings("edge", self.settings, self._apply, sections=_SECTIONS, applied=RELOADABLE)

    def _apply(self, settings: Settings) -> None:
        services = self.services
        tokens = _tokens(settings, self.state)  # may raise StateError, so it is the first
        # Whether credentials are asked for was allowed, or not, for the address that is listened on.
        policy = replace(_policy(settings), require_authentication=services.policy.require_authentication)
        services.tokens, services.policy, services.plans = tokens, policy, plans_from(settings.plans)
        services.addresses = ClientAddress(settings.edge.trusted_proxies)
        services.store.abandoned_after = _abandoned_after(settings)
        self.app = create_app(services, self.audit)

    async def drain(self) -> None:
        self.services.draining = True
        await self.services.chats.drain(self.drain_timeout)


@asynccontextmanager
async def run_edge(settings: Settings, audit_sink: AuditSink) -> AsyncIterator[Edge]:
    """Open the store, dial the nodes and serve until the block is left; everything is closed then. Raises CannotListen,
    SiteError, StateError or StoreError with a sentence for the person who starts it. Where something fails that the
    edge cannot do without, the block ends with that error: a supervisor then starts a whole edge."""
    configured = settings.edge
    state = StateDir(settings.state)
    store = SQLiteStore(
        state.database,
        requests_per_minute_per_ip=configured.requests_per_minute_per_ip,
        abandoned_after=_abandoned_after(settings),
    )
    await store.open()
    ticker = Ticker()
    try:
        addresses = list(addresses_from(configured.upstreams, state.node_token))
        hello = Hello(link_id(store.pseudonym_key, "edge group"), secrets.token_hex(8), __version__)
        upstreams = Upstreams(Upstream(address, hello) for address in addresses if not address.node)
        services = _services(settings, state, store, upstreams)
        audit = Audit(audit_sink, services.metrics)
        ticker.add(audit.tick)
        ticker.add(services.chats.tick)
        public = Listener("public", *split_listen(configured.listen))
        ops = Listener("ops", *split_listen(configured.ops_listen))
        limits = Limits(header_timeout=configured.header_timeout, body_timeout=configured.body_timeout)
        serve = ServeListener(configured.serve, state.path)
        works = [ticker.run(), services.upstreams.run(), *_in_tailnet(settings, services, addresses, hello, serve)]
        running = [asyncio.create_task(work) for work in works]
        try:
            app = create_app(services, audit)
            edge = Edge(settings, services, audit, state, app, public, ops, configured.drain_timeout)

            async def current(scope: Scope, receive: Receive, send: Send) -> None:
                await edge.app(scope, receive, send)

            async with (
                Interrupt() as interrupt,
                serving(current, [public, ops], limits, ticker) as listening,
                serve.opened(listening, services.local, services.tailnet, services.serve_at),
            ):
                edge.public, edge.ops = listening.listeners[:2]
                for task in running:
                    task.add_done_callback(functools.partial(_ended, interrupt))
                yield edge
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            if services.local is not None:
                await services.local.close()
    finally:
        await store.close()


def _ended(interrupt: Interrupt, task: asyncio.Task[None]) -> None:
    if not task.cancelled() and isinstance(error := task.exception(), Exception):
        logger.critical("the edge ends, because what it cannot do without has failed ({}); start it again", repr(error))
        interrupt.end_with(error)


def _in_tailnet(
    settings: Settings, services: Services, addresses: Sequence[Address], hello: Hello, serve: ServeListener
) -> list[Coroutine[Any, Any, None]]:
    """Give ``services`` its ``local`` and ``tailnet`` where something here uses them; what must run for them."""
    named = [address for address in addresses if address.node]
    if not named and not serve.wanted(settings.tailscale.socket):
        return []
    # Importing them takes 0.1 s, which nobody else should wait for.
    from edge.upstreams.directory import Directory
    from shared.tailscale.client import LocalClient
    from shared.tailscale.tailnet import Tailnet

    services.local = LocalClient(settings.tailscale.socket)
    services.tailnet = Tailnet(services.local)
    directory = Directory(
        services.tailnet,
        services.local,
        services.upstreams,
        hello,
        named,
        proxy=settings.tailscale.proxy,
        busy=lambda: len(services.chats) > 0,
    )
    return [services.tailnet.run(), directory.run()]


def _services(settings: Settings, state: StateDir, store: SQLiteStore, upstreams: Upstreams) -> Services:
    configured = settings.edge
    services = Services(
        site=Site.load(),
        policy=_policy(settings),
        plans=plans_from(settings.plans),
        tokens=_tokens(settings, state),
        store=store,
        addresses=ClientAddress(configured.trusted_proxies),
        upstreams=upstreams,
        chats=Chats(configured.heartbeat, configured.slow_reader_timeout),
        metrics=Metrics(),
        pseudonym_key=store.pseudonym_key,
    )
    services.metrics.gauge("running", "Chats running", lambda: len(services.chats))
    services.metrics.gauge("ready", "1 when a chat could be answered", lambda: upstreams.ready)
    services.metrics.nodes(lambda: map(_node_state, upstreams.all))
    return services


def _node_state(upstream: Upstream) -> NodeState:
    machine = upstream.machine
    if machine is None:
        return NodeState(upstream.name, upstream.connected)
    return NodeState(upstream.name, upstream.connected, machine.online, machine.relayed, machine.round_trip)


def _policy(settings: Settings) -> Policy:
    configured = settings.edge
    return Policy(
        allowed_origins=frozenset(configured.allowed_origins),
        require_authentication=configured.require_authentication,
        page=configured.page,
        anonymous=configured.anonymous,
        invites=configured.invites,
        anonymous_raw_models=configured.anonymous_raw_models,
        max_body=configured.max_body,
        request_timeout=configured.request_timeout,
        tester_capability=settings.tailscale.tester_capability,
    )


def _abandoned_after(settings: Settings) -> float:
    return settings.edge.request_timeout + _USAGE_WITHIN


def _tokens(settings: Settings, state: StateDir) -> Tokens:
    keys = [key.get_secret_value() for key in settings.edge.signing_keys] or state.signing_keys()
    return Tokens(keys, settings.edge.token_lifetime)


def create_app(edge: Services, audit: Audit) -> App:
    """The routes of design §3.5 that this version has, behind id, CORS and envelope."""
    limiter = rate_limiter(edge)
    tokens, pages = TokenRoutes(edge, limiter), PageRoutes(edge.site, limiter, page=edge.policy.page)
    lists, health, stop = ListRoutes(edge), HealthRoutes(edge), StopRoute(edge)
    routes = [
        *(Route(surface.path, ChatEndpoint(surface, edge), methods=["POST"]) for surface in SURFACES.values()),
        Route("/v1/token", tokens.mint, methods=["POST"]),
        Route("/v1/token", tokens.revoke, methods=["DELETE"]),
        Route("/v1/me", tokens.me),
        Route("/v1/chat/types", lists.chat_types),
        Route("/v1/chat/{id}", stop.stop, methods=["DELETE"]),
        Route("/v1/models", lists.models),
        Route("/v1/models/{id:path}", lists.model),
        Route("/healthz", health.healthz),
        Route("/health", health.health),
        Route("/livez", health.livez),
        Route("/readyz", health.readyz),
        Route("/metrics", health.metrics),
        *pages.routes,
        WebSocketRoute("/{path:path}", no_websocket),
    ]
    envelope = Envelope(Router(routes))
    envelope.state.limiter = limiter
    cors = CORSMiddleware(
        envelope,
        allow_origins=sorted(edge.policy.allowed_origins),
        allow_methods=["GET", "POST", "DELETE"],
        allow_headers=_REQUEST_HEADERS,
        expose_headers=_EXPOSED_HEADERS,
        max_age=_PREFLIGHT_SECONDS,
    )

    funnel = FunnelGuard()

    async def by_origin(scope: Scope, receive: Receive, send: Send) -> None:
        if funnel.concerns(scope):
            await funnel.refuse(scope, send)
            return
        if may_be_peers(scope, edge) and await is_peers(scope, edge) and not await treat_as_peers(scope, send):
            return
        # Programs send no Origin. What may be cached is open to every origin, so answers to them need no Vary either.
        await (envelope if header(scope, b"origin") is None else cors)(scope, receive, send)

    return Front(by_origin, audit.finished)
