"""The edge put together: settings in, a running edge out."""

from __future__ import annotations

import asyncio
import functools
import secrets
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from loguru import logger

from edge.api.audit import Audit
from edge.api.maintenance import Closing
from edge.api.routes import create_app
from edge.chats import Chats
from edge.client_address import ClientAddress
from edge.doors.issuers import open_issuers
from edge.load import Load
from edge.metrics import Metrics, NodeState
from edge.plans import plans_from
from edge.principals import link_id
from edge.serve_listener import ServeListener
from edge.services import Services, policy_from, tokens_from
from edge.site import Site
from edge.store.opening import abandoned_after, admin_from, open_patiently, store_from
from edge.store.store import Store
from edge.upstreams.address import Address, addresses_from
from edge.upstreams.pool import Upstreams
from edge.upstreams.upstream import Upstream
from shared import __version__
from shared.addresses import split_listen
from shared.asgi.connections import Connections
from shared.asgi.listener import Listener
from shared.asgi.protocol import Limits
from shared.asgi.server import serving
from shared.asgi.types import App, Receive, Scope, Send
from shared.audit_sink import AuditSink, Write, audit_sink
from shared.interrupt import Interrupt
from shared.link.hello import Hello
from shared.memory import Memory
from shared.reload import reload_settings
from shared.settings import Settings
from shared.signing_keys import SigningKeys
from shared.state import StateDir
from shared.ticker import Ticker

# Keys that a reload applies; everything else is bound at the start.
RELOADABLE = (
    "plans.",
    "edge.allowed_origins",
    "edge.page",
    "edge.anonymous",
    "edge.anonymous_raw_models",
    "edge.invites",
    "edge.trusted_proxies",
    "edge.allowed_hosts",
    "edge.allowed_addresses",
    "edge.denied_addresses",
    "edge.exempt_origins",
    "edge.connections_per_ip",
    "edge.max_streams",
    "edge.max_body",
    "edge.request_timeout",
    "edge.token_lifetime",
    "edge.signing_keys",
    "tailscale.tester_capability",
)
# Sections that an edge reads, or keys of them.
_SECTIONS = ("edge.", "plans.", "logs.", "audit.", "tailscale.socket", "tailscale.proxy", "tailscale.tester_capability")


@dataclass(slots=True)
class Edge:
    """An edge that serves. ``drain`` before leaving the block that made it, or running answers are cut."""

    settings: Settings
    services: Services
    audit: Audit
    keys: SigningKeys
    app: App
    public: Listener
    ops: Listener
    drain_timeout: float

    def reload(self) -> None:
        """Read the settings again and apply what can change while it runs; a mistake keeps the old ones and is
        logged."""
        self.settings = reload_settings("edge", self.settings, self._apply, sections=_SECTIONS, applied=RELOADABLE)

    def renew_keys(self, _now: float) -> None:
        """Sign with what the owner rotated to, on this or another edge of the store; what it was signed with before is
        among those keys."""
        keys = self.services.store.records.signing_keys
        if keys != self.keys:
            self.keys = keys
            self.services.tokens = tokens_from(self.settings, keys)
            if not self.settings.edge.signing_keys:
                logger.info("the signing keys were rotated")

    def _apply(self, settings: Settings) -> None:
        services = self.services
        tokens = tokens_from(settings, self.keys)
        policy = policy_from(settings, services.policy)
        services.tokens, services.policy, services.plans = tokens, policy, plans_from(settings.plans)
        services.addresses = ClientAddress(settings.edge.trusted_proxies)
        services.connections.most, services.load.most = settings.edge.connections_per_ip, settings.edge.max_streams
        services.store.abandoned_after = abandoned_after(settings)
        self.app = create_app(services, self.audit)

    async def drain(self) -> None:
        self.services.draining = True
        await self.services.chats.drain(self.drain_timeout)

    def blocked(self, seconds: float) -> None:
        """The event loop stood still for so long."""
        self.services.metrics.loop_blocked.observe(seconds)


@asynccontextmanager
async def run_edge(settings: Settings, log: Write, *, patient: bool = True) -> AsyncIterator[Edge]:
    """Open the store, dial the nodes and serve until the block is left; everything is closed then. ``log`` takes the
    audit lines, unless the settings name another sink. When ``patient``, what may come by itself is waited for: an
    address, a port, the store. Raises AuditError, CannotListen, SiteError, StateError or StoreError with a sentence for
    the person who starts it. Where something fails that the edge cannot do without, the block ends with that error: a
    supervisor then starts a whole edge."""
    with audit_sink(settings.audit, log) as sink:
        async with _running(settings, sink, patient) as edge:
            yield edge


@asynccontextmanager
async def _running(settings: Settings, sink: AuditSink, patient: bool) -> AsyncIterator[Edge]:
    configured = settings.edge
    state = StateDir(settings.state)
    store = store_from(settings, state)
    await (open_patiently(store) if patient else store.open())
    ticker = Ticker()
    try:
        addresses = list(addresses_from(configured.upstreams, state.node_token))
        hello = Hello(link_id(store.pseudonym_key, "edge group"), secrets.token_hex(8), __version__)
        upstreams = Upstreams(Upstream(address, hello) for address in addresses if not address.node)
        services = _services(settings, state, store, upstreams, sink)
        audit = Audit(sink, services.metrics)
        ticker.add(audit.tick)
        ticker.add(services.chats.tick)
        ticker.add(services.load.tick)
        ticker.add(Closing(services).tick)
        public = Listener("public", *split_listen(configured.listen), connections=services.connections)
        ops = Listener("ops", *split_listen(configured.ops_listen))
        limits = Limits(header_timeout=configured.header_timeout, body_timeout=configured.body_timeout)
        serve = ServeListener(configured.serve, state.path)
        works = [ticker.run(), services.upstreams.run(), *_in_tailnet(settings, services, addresses, hello, serve)]
        running = [asyncio.create_task(work) for work in works]
        try:
            app, keys = create_app(services, audit), store.records.signing_keys
            edge = Edge(settings, services, audit, keys, app, public, ops, configured.drain_timeout)
            ticker.add(edge.renew_keys)

            async def current(scope: Scope, receive: Receive, send: Send) -> None:
                await edge.app(scope, receive, send)

            async with (
                open_issuers(configured, store.pseudonym_key) as services.issuers,
                Interrupt() as interrupt,
                serving(
                    current, [public, ops], limits, ticker, refused=audit.refused, patient=patient, websockets=False
                ) as listening,
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


def _services(settings: Settings, state: StateDir, store: Store, upstreams: Upstreams, audit: AuditSink) -> Services:
    configured = settings.edge
    services = Services(
        site=Site.load(),
        policy=policy_from(settings),
        plans=plans_from(settings.plans),
        tokens=tokens_from(settings, store.records.signing_keys),
        store=store,
        admin=functools.partial(admin_from, settings, state),
        addresses=ClientAddress(configured.trusted_proxies),
        connections=Connections(configured.connections_per_ip, lambda peer: services.addresses.whose_connection(peer)),
        load=Load(configured.max_streams, Memory.of_this_process()),
        upstreams=upstreams,
        chats=Chats(configured.heartbeat, configured.slow_reader_timeout),
        metrics=Metrics(),
        audit=audit,
        pseudonym_key=store.pseudonym_key,
    )
    services.metrics.gauge("running", "Chats running", lambda: len(services.chats))
    load, connections, gauge = services.load, services.connections, services.metrics.gauge
    gauge("memory_short", "1 while answers are refused for want of memory", lambda: load.short)
    gauge("connections", "Open connections that count for a caller", lambda: len(connections))
    gauge(
        "connections_refused", "Connections over the limit of one caller since the start", lambda: connections.refused
    )
    services.metrics.gauge(
        "maintenance", "1 while closed to all but admins", lambda: store.records.maintenance is not None
    )
    services.metrics.gauge("store_answering", "1 while limits can be counted", lambda: store.answering)
    gauge("store_failing", "1 while the store cannot count or write", lambda: store.problem is not None)
    services.metrics.gauge("ready", "1 when a chat could be answered", lambda: upstreams.ready)
    services.metrics.nodes(lambda: map(_node_state, upstreams.all))
    return services


def _node_state(upstream: Upstream) -> NodeState:
    machine = upstream.machine
    if machine is None:
        return NodeState(upstream.name, upstream.connected)
    return NodeState(upstream.name, upstream.connected, machine.online, machine.relayed, machine.round_trip)
