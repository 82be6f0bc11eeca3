"""Node and edge as two child processes: started together, waited for until a chat can be answered, stopped together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx2

from hearthlink import ports
from hearthlink.child import Child, Show
from hearthlink.output import Failure, Status
from hearthlink.progress import Progress

_LOOK_EVERY = 0.1  # seconds
_ASK_SECONDS = 2.0
# The embedded runtime starts llama.cpp again by itself, at once at first. A second failure has the cause of the first;
# and one that is not tried again soon only the person can mend.
_EMBEDDED_FAILURES = 1
_BROKEN_SECONDS = 2.0
# How long a server of the person's own may be away or without a model: time to start it and to load one.
_AWAY_SECONDS = 600.0
# How the embedded runtime's reason ends where a process ended and another one is started.
_AGAIN = "It is started again."
# Somebody may take the node's port between choosing and binding it; twice in a row something else is wrong.
_STARTS = 3


@dataclass(frozen=True, slots=True)
class Ready:
    """What answers: the model's name and the kind of runtime. ``closed``: maintenance is on. ``yielded``: nobody is
    answered until the node's owner takes the GPU back."""

    model: str
    runtime: str
    closed: bool = False
    yielded: bool = False


@dataclass(slots=True)
class Pair:
    """``environment(node_port)`` is what both processes are started with. ``port`` is the edge's, the next one its
    operations listener. ``drain`` is how many seconds each may take to finish running answers.

    ``stop`` belongs to whoever called ``start``, also when that raised.
    """

    port: int
    environment: Callable[[int], Mapping[str, str]]
    show: Show
    drain: float
    verbose: bool = False
    node_port: int = 0
    children: list[Child] = field(default_factory=list)

    async def start(self, progress: Progress) -> Ready:
        """Start both and wait until a chat can be answered, or the node's owner is all that it waits for. Raises
        Failure."""
        for last in [False] * (_STARTS - 1) + [True]:
            self.node_port = ports.free()
            environment = self.environment(self.node_port)
            for name in ("node", "edge"):
                self.children.append(await Child.start(name, environment, self.show, verbose=self.verbose))
            try:
                return await self._until_ready(progress)
            except Failure:
                if last or not self._node_port_was_lost():
                    raise
                await self.stop()
                self.children.clear()
        raise AssertionError("the last start returns or raises")

    async def ended(self) -> Child:
        """The first of both that ends by itself."""
        waiting = {asyncio.create_task(child.wait()): child for child in self.children}
        try:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            return waiting[done.pop()]
        finally:
            for task in waiting:
                task.cancel()

    async def stop(self) -> None:
        """Let both drain: the edge first, whose running answers need the node."""
        for child in reversed(self.children):
            await child.stop(self.drain)

    def kill(self) -> None:
        for child in self.children:
            child.kill()

    def _node_port_was_lost(self) -> bool:
        return self.children[0].ended and ports.problem(self.node_port) is not None

    async def _until_ready(self, progress: Progress) -> Ready:
        patience = _Patience()
        async with httpx2.AsyncClient(trust_env=False, timeout=_ASK_SECONDS) as client:
            while True:
                for child in self.children:
                    if child.ended:
                        await child.wait()
                        raise Failure(self._epitaph(child))
                node = await _health(client, self.node_port)
                edge = await _health(client, self.port + 1)
                yielded = node.get("status") == "yielded"
                if self._joined(edge) if yielded else _ready(node) and self._linked(edge):
                    return Ready(str(node.get("model", "")), str(node.get("runtime", "")), _closed(edge), yielded)
                progress.show(*patience.judge(node))
                await asyncio.sleep(_LOOK_EVERY)

    def _linked(self, edge: Mapping[str, Any]) -> bool:
        """Whether this is the health of our own edge, and it reaches our node."""
        answers = _ready(edge) or _closed(edge)
        return answers and any(row.get("connected") and row.get("ready") for row in self._ours(edge))

    def _joined(self, edge: Mapping[str, Any]) -> bool:
        """As ``_linked``, whether or not our node can answer."""
        return any(row.get("connected") for row in self._ours(edge))

    def _ours(self, edge: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        return [row for row in edge.get("nodes") or () if f":{self.node_port}/" in str(row.get("url"))]

    def _epitaph(self, child: Child) -> str:
        if child.name == "edge":
            for port in (self.port, self.port + 1):
                if (error := ports.problem(port)) is not None:
                    return str(ports.refusal(port, error))
        return child.why()


def _ready(health: Mapping[str, Any]) -> bool:
    return health.get("status") in ("ok", "degraded")


def _closed(health: Mapping[str, Any]) -> bool:
    return health.get("status") == "maintenance"


class _Patience:
    """Tells waiting that helps from waiting that does not."""

    def __init__(self) -> None:
        self._since: float | None = None  # when the node began to say "unavailable"
        self._failures = 0
        self._last = "starting", "Starting node and edge."

    def judge(self, node: Mapping[str, Any]) -> tuple[str, str]:
        """What is waited for: stage and sentence. Raises Failure when that has become hopeless."""
        state, reason = str(node.get("status", "starting")), str(node.get("reason", ""))
        if state != "unavailable":
            self._since = None
            if reason and state != "yielded":  # of that its log tells, and what ``Ready`` says
                self._last = state, reason
            return self._last
        now = asyncio.get_running_loop().time()
        if self._since is None:
            self._since = now
            self._failures += 1
        if node.get("runtime") != "embedded":
            if now - self._since > _AWAY_SECONDS:
                raise Failure(reason, Status.UNAVAILABLE)
            return reason, reason
        if self._failures > _EMBEDDED_FAILURES or now - self._since > _BROKEN_SECONDS:
            raise Failure(reason)
        if reason.endswith(_AGAIN):  # else no process of it has run: there is no model
            self._last = state, "llama.cpp ended before it was ready, and is started again."
        return self._last


async def _health(client: httpx2.AsyncClient, port: int) -> dict[str, Any]:
    """The health that ``port`` tells of; empty while nobody answers there."""
    try:
        response = await client.get(f"http://{ports.HOST}:{port}/healthz")
        found = response.json()
    except (httpx2.TransportError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
