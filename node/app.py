"""The node put together: settings in, a running node out."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from loguru import logger
from starlette.routing import Route, Router, WebSocketRoute

from node.admission import Admission
from node.api.chat import ChatEndpoint
from node.api.health import Health
from node.api.link import LinkEndpoint
from node.metrics import Metrics
from node.prompts import SHIPPED, ChatTypes
from node.running import Running
from node.runtimes import create
from node.services import Services, Timeouts
from node.special_tokens import Neutraliser
from node.turns import Turns
from shared.addresses import split_listen
from shared.asgi.front import Envelope, Front, no_websocket
from shared.asgi.protocol import Limits
from shared.asgi.server import Listener, serving
from shared.asgi.types import App
from shared.contract.surface import SURFACES
from shared.reload import reload_settings
from shared.settings import Settings
from shared.state import StateDir
from shared.ticker import Ticker

# The largest body an edge may be set to accept; the edge's own limit is the one callers meet.
_MAX_BODY = 8 << 20


# Keys that a reload applies; everything else is bound at the start. Chat types need none, their files are watched.
RELOADABLE = ("node.tokens", "node.queue", "node.max_tokens", "node.first_token_timeout", "node.stall_timeout")


@dataclass(slots=True)
class Node:
    """A node that serves. ``drain`` before leaving the block that made it, or running answers are cut."""

    settings: Settings
    services: Services
    admission: Admission
    state: StateDir
    link: LinkEndpoint
    listener: Listener
    drain_timeout: float

    def reload(self) -> None:
        """Read the settings again and apply what can change while it runs; a mistake keeps the old ones and is
        logged."""
        self.settings = reload_settings(
            "node", self.settings, self._apply, sections=("node.", "logs."), applied=RELOADABLE
        )

    def _apply(self, settings: Settings) -> None:
        self.admission.accept(_tokens(settings, self.state))  # may raise StateError, before anything has changed
        node = self.services
        node.turns.queue_limit = settings.node.queue
        node.max_tokens = settings.node.max_tokens
        node.timeouts = _timeouts(settings)
        self.link.push()

    async def drain(self) -> None:
        self.services.draining = True
        await self.link.drain(self.drain_timeout)


@asynccontextmanager
async def run_node(settings: Settings) -> AsyncIterator[Node]:
    """Start the runtime and serve until the block is left; everything is closed then. Raises CannotListen,
    BrokenChatType or StateError with a sentence for the person who starts it."""
    state = StateDir(settings.state)
    configured = settings.node
    chat_types = ChatTypes(configured.chat_types or SHIPPED)
    chat_types.load()
    own_ports = [
        split_listen(address)[1] for address in (configured.listen, settings.edge.listen, settings.edge.ops_listen)
    ]
    runtime = create(configured.runtime, slots=configured.slots, own_ports=own_ports)
    services = Services(
        node_id=state.node_id(),
        boot_id=secrets.token_hex(8),
        runtime=runtime,
        chat_types=chat_types,
        turns=Turns(runtime.status().slots, configured.queue),
        running=Running(),
        ticker=Ticker(),
        metrics=Metrics(),
        timeouts=_timeouts(settings),
        max_tokens=configured.max_tokens,
        max_body=_MAX_BODY,
    )
    listener = Listener("tailnet", *split_listen(configured.listen))
    admission = Admission(_tokens(settings, state))
    link = LinkEndpoint(services, admission, _hosts(listener))
    _connect(services, link)
    ticking = asyncio.create_task(services.ticker.run())
    try:
        async with serving(create_app(services, link, admission), [listener], Limits(), services.ticker) as bound:
            await runtime.start(lambda: _runtime_changed(services, link))
            yield Node(settings, services, admission, state, link, bound[0], configured.drain_timeout)
    finally:
        ticking.cancel()
        await runtime.close()


def _tokens(settings: Settings, state: StateDir) -> list[str]:
    return [token.get_secret_value() for token in settings.node.tokens] or [state.node_token()]


def _timeouts(settings: Settings) -> Timeouts:
    return Timeouts(settings.node.first_token_timeout, settings.node.stall_timeout)


def create_app(node: Services, link: LinkEndpoint, admission: Admission) -> App:
    """The routes of design §3.7, behind the envelope."""
    health = Health(node, admission)
    routes = [
        WebSocketRoute("/link", link),
        *(
            Route(surface.path, ChatEndpoint(surface, node, admission), methods=["POST"])
            for surface in SURFACES.values()
        ),
        Route("/v1/chat/types", health.chat_types),
        Route("/v1/models", health.models),
        Route("/v1/models/{id:path}", health.model),
        Route("/healthz", health.healthz),
        Route("/livez", health.livez),
        Route("/metrics", health.metrics),
        WebSocketRoute("/{path:path}", no_websocket),
    ]
    return Front(Envelope(Router(routes)))


def _hosts(listener: Listener) -> frozenset[str]:
    return frozenset({listener.host, "localhost", "127.0.0.1", "::1"})


def _connect(node: Services, link: LinkEndpoint) -> None:
    """Tell the edges of what changes, and Prometheus of what is."""

    def refresh(now: float) -> None:
        if node.chat_types.refresh():
            link.push()

    node.ticker.add(refresh)
    node.metrics.gauge("running", "Answers running", lambda: node.turns.running)
    node.metrics.gauge("queued", "Requests waiting for a slot", lambda: node.turns.queued)
    node.metrics.gauge("slots", "Answers that may run at once", lambda: node.turns.slots)
    node.metrics.gauge("ready", "1 when the runtime can answer", lambda: node.runtime.status().state == "ready")
    node.metrics.gauge("links", "Edges connected", lambda: len(link.sessions))


def _runtime_changed(node: Services, link: LinkEndpoint) -> None:
    status = node.runtime.status()
    if status.state != node.runtime_state:
        node.runtime_state = status.state
        level = "WARNING" if status.state == "unavailable" else "INFO"
        what = status.reason or f"It answers as {status.default_model}."
        logger.log(level, "the runtime ({}) is {}. {}", node.runtime.kind, status.state, what)
    node.turns.set_slots(status.slots)
    node.neutraliser = Neutraliser(node.runtime.special_tokens)
    link.push()
