"""The node put together: settings in, a running node out. Of Tailscale nothing is loaded where it is not used."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Container, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loguru import logger
from starlette.routing import Route, Router, WebSocketRoute

from node.admission import Admission
from node.admission.callers import Callers, TailnetCallers
from node.admission.loopback import LoopbackCallers
from node.api.chat import ChatEndpoint
from node.api.gauges import add_gauges
from node.api.health import Health
from node.api.link import LinkEndpoint
from node.api.operation_routes import operation_routes
from node.conversations.opening import opened
from node.events import Events
from node.metrics import Metrics
from node.models.kept import NAME, KeptFile
from node.models.models import Models
from node.placement import LOOPBACK_NAMES, InterfacePlacement, Placement, TailnetPlacement, Where, settled
from node.prompts import SHIPPED, ChatTypes
from node.running import Running
from node.runtimes import create
from node.services import Services, Timeouts
from node.special_tokens import Neutraliser
from node.turns import Turns
from shared.addresses import OnAddress, OnInterface, parse_node_listen, split_listen
from shared.asgi.front import Envelope, Front, no_websocket
from shared.asgi.listener import CannotListen, Listener
from shared.asgi.protocol import Limits
from shared.asgi.server import Listening, serving
from shared.asgi.types import App
from shared.contract.surface import SURFACES
from shared.reload import reload_settings
from shared.settings import Settings
from shared.state import StateDir
from shared.ticker import Ticker
from shared.tls import server_context

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
    listening: Listening
    drain_timeout: float

    @property
    def listener(self) -> Listener:
        """The first that is open: on loopback there is no other."""
        return self.listening.listeners[0]

    def reload(self) -> None:
        """Read the settings again and apply what can change while it runs; a mistake keeps the old ones and is
        logged."""
        self.settings = reload_settings(
            "node", self.settings, self._apply, sections=("node.", "tailscale.", "logs."), applied=RELOADABLE
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
        self.services.events.end()
        await self.link.drain(self.drain_timeout)

    def blocked(self, seconds: float) -> None:
        """The event loop stood still for so long."""
        self.services.metrics.loop_blocked.observe(seconds)


@dataclass(frozen=True, slots=True)
class _Network:
    """How callers get here: by ``loopback``, or where ``placement`` is; ``callers`` says who they are."""

    loopback: Listener | None = None
    placement: Placement | None = None
    callers: Callers | None = None

    @property
    def hosts(self) -> Container[str]:
        """What callers may write for the node's address."""
        if self.placement is not None:
            return self.placement
        return LOOPBACK_NAMES | ({self.loopback.host} if self.loopback is not None else set())


@asynccontextmanager
async def run_node(settings: Settings) -> AsyncIterator[Node]:
    """Start the runtime and serve until the block is left; everything is closed then. Raises CannotListen, TlsError,
    BrokenChatType or StateError with a sentence for the person who starts it."""
    state = StateDir(settings.state)
    chat_types = ChatTypes(settings.node.chat_types or SHIPPED)
    chat_types.load()
    async with AsyncExitStack() as stack:
        where = await settled(parse_node_listen(settings.node.listen), settings.tailscale.socket)
        network = await stack.enter_async_context(_network(where, settings))
        services = _services(settings, state, chat_types, where.port, network.placement)
        services.conversations = await stack.enter_async_context(opened(settings.node.conversations, state.path))
        admission = Admission(_tokens(settings, state), network.callers)
        link = LinkEndpoint(services, admission, network.hosts)
        models = settings.node.runtime.models or state.path / "models"
        _connect(services, link, {"state": state.path, "models": models})
        stack.push_async_callback(services.runtime.close)
        stack.push_async_callback(services.models.close)
        await stack.enter_async_context(_meanwhile(services.ticker.run(), "its clock"))
        if services.conversations is not None:
            await stack.enter_async_context(_meanwhile(services.conversations.run(), "forgetting conversations"))
        app = create_app(services, link, admission)
        first = [network.loopback] if network.loopback is not None else []
        listening = await stack.enter_async_context(serving(app, first, Limits(), services.ticker))
        await _open_for_owner(listening, state)
        if network.placement is not None:
            await stack.enter_async_context(_meanwhile(network.placement.run(listening), "following its addresses"))
        await services.models.start(lambda: _runtime_changed(services, link))
        if network.loopback is not None:
            logger.info("node listens on {}", listening.listeners[0].url)
        yield Node(settings, services, admission, state, link, listening, settings.node.drain_timeout)


@asynccontextmanager
async def _network(where: Where, settings: Settings) -> AsyncIterator[_Network]:
    """What ``where`` needs; it is closed when the block is left. Raises TlsError."""
    tls = server_context(settings.node.tls) if settings.node.tls.on else None
    capability = settings.tailscale.node_capability
    if isinstance(where, OnAddress):
        beside = LoopbackCallers(settings.tailscale.socket, capability)
        try:
            yield _Network(loopback=Listener("ops", where.host, where.port, tls=tls), callers=beside)
        finally:
            await beside.close()
        return
    if isinstance(where, OnInterface):
        assert tls is not None, "the settings want it"
        yield _Network(placement=InterfacePlacement(where.name, where.port, tls))
        return
    from shared.tailscale.client import LocalClient
    from shared.tailscale.tailnet import Tailnet

    async with LocalClient(settings.tailscale.socket) as client:
        tailnet = Tailnet(client)
        async with _meanwhile(tailnet.run(), "following the tailnet"):
            callers = TailnetCallers(client, capability)
            yield _Network(placement=TailnetPlacement(where.port, tailnet, client, tls), callers=callers)


async def _open_for_owner(listening: Listening, state: StateDir) -> None:
    """A socket in the state folder, for the owner's commands: wherever the node listens, and while that is away."""
    try:
        await listening.open(Listener("ops", path=str(state.path / "node.sock")))
    except CannotListen as error:
        logger.warning("the owner's commands must name where the node listens: {}", error)


@asynccontextmanager
async def _meanwhile(work: Coroutine[Any, Any, None], what: str) -> AsyncIterator[None]:
    """Run what never ends by itself while the block runs; where it does, ``what`` says for people what is missing."""
    task = asyncio.create_task(work, name=what)
    task.add_done_callback(_ended)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


def _ended(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.opt(exception=error).critical("the node goes on without {}: restart it", task.get_name())


def _services(
    settings: Settings, state: StateDir, chat_types: ChatTypes, port: int, placement: Placement | None
) -> Services:
    configured = settings.node
    own_ports = [port, *(split_listen(text)[1] for text in (settings.edge.listen, settings.edge.ops_listen))]
    decided = state.path / NAME
    kept = KeptFile(decided).read()
    runtime = create(
        configured.runtime,
        slots=configured.slots,
        own_ports=own_ports,
        models=configured.models,
        pulled=state.path / "models",
        at_start=kept.at_start,
        earlier=kept.active or kept.default,
    )
    metrics = Metrics()
    events = Events(metrics.heard)
    models = Models(
        runtime,
        configured.models,
        idle_unload=configured.idle_unload,
        kept=decided,
        publish=events.publish,
    )
    return Services(
        node_id=state.node_id(),
        boot_id=secrets.token_hex(8),
        runtime=runtime,
        models=models,
        chat_types=chat_types,
        turns=Turns(runtime.status().slots, configured.queue),
        running=Running(),
        ticker=Ticker(),
        metrics=metrics,
        events=events,
        timeouts=_timeouts(settings),
        max_tokens=configured.max_tokens,
        max_body=_MAX_BODY,
        placement=placement,
    )


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
        *operation_routes(node, admission),
        Route("/v1/chat/types", health.chat_types),
        Route("/v1/models", health.models),
        Route("/v1/models/{id:path}", health.model),
        Route("/healthz", health.healthz),
        Route("/livez", health.livez),
        Route("/metrics", health.metrics),
        WebSocketRoute("/{path:path}", no_websocket),
    ]
    return Front(Envelope(Router(routes, redirect_slashes=False)))


def _connect(node: Services, link: LinkEndpoint, folders: Mapping[str, Path]) -> None:
    """Tell the edges of what changes, and Prometheus of what is, on the disks of ``folders`` too."""

    def refresh(now: float) -> None:
        if node.chat_types.refresh():
            link.push()

    node.ticker.add(refresh)
    node.ticker.add(node.turns.tick)
    node.ticker.add(node.models.tick)
    add_gauges(node, lambda: len(link.sessions), folders)


def _runtime_changed(node: Services, link: LinkEndpoint) -> None:
    node.models.changed()
    status = node.models.status()
    if status.state != node.runtime_state:
        node.runtime_state = status.state
        level = "WARNING" if status.state == "unavailable" else "INFO"
        what = status.reason or f"It answers as {status.default_model}."
        logger.log(level, "the runtime ({}) is {}. {}", node.runtime.kind, status.state, what)
        node.events.publish("runtime", state=status.state, reason=status.reason)
    own = [model for model in status.models if model.slots and model.home == model.id]
    node.turns.set_slots(
        status.slots,
        {model.id: model.slots for model in own if model.state != "available"},
        {model.id: model.slots for model in own if model.state == "available"},
    )
    node.neutraliser = Neutraliser(node.runtime.special_tokens)
    link.push()
