"""One node, behind links that are kept up: dialled, redialled with backoff, replaced when silent or when the node is
somewhere else."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import aiohttp
from loguru import logger

from edge.upstreams.address import Address
from edge.upstreams.dialling import Place, Unreached, dial
from edge.upstreams.reach import Cause, Facts, Failure, explain
from shared.contract.errors import ApiError
from shared.contract.snapshot import NodeSnapshot
from shared.link.hello import Hello
from shared.link.session import Session
from shared.link.transports import DialledTransport

if TYPE_CHECKING:  # only an edge in a tailnet imports it
    from edge.upstreams.machine import Machine

_Result = TypeVar("_Result")

# Seconds between dials: quick at first, because a node usually restarts within a second or two; full jitter on top.
_FIRST_DELAY = 0.1
_LONGEST_DELAY = 5.0
# A link that held this long was good: the next dial starts from the beginning again.
_GOOD_AFTER = 10.0
# How often a live link is looked at for silence (design §3.8 wants a suspect one replaced at once).
_LOOK_EVERY = 0.5


class Upstream:
    """One node. ``run`` keeps its links until cancelled, or until ``leave`` and the last stream's end; ``reason`` says
    in a sentence why there is none, ``cause`` in a word. ``machine`` is where it is, without which ``address.url``
    says that."""

    def __init__(self, address: Address, hello: Hello, machine: Machine | None = None) -> None:
        self.address = address
        self.machine = machine
        self.snapshot: NodeSnapshot | None = None
        self.reason = "not connected yet"
        self.cause: Cause | None = None
        self._hello = hello
        self._sessions: list[Session] = []
        self._running: set[asyncio.Task[Any]] = set()
        self._moved = asyncio.Event()  # set once, and replaced by a new one
        self._left = False

    @property
    def name(self) -> str:
        return self.address.name

    @property
    def url(self) -> str:
        """Where it is dialled; empty while its machine is not to be found."""
        return self.machine.url if self.machine is not None else self.address.url

    @property
    def connected(self) -> bool:
        return any(session.usable for session in self._sessions)

    @property
    def sessions(self) -> list[Session]:
        return [session for session in self._sessions if session.usable]

    @property
    def ready(self) -> bool:
        """Could a chat be answered now?"""
        return self.connected and self.snapshot is not None and self.snapshot.ready

    def session(self) -> Session:
        """The usable link with the fewest streams. Raises ApiError ``node_unavailable``."""
        usable = self.sessions
        if not usable:
            raise ApiError("node_unavailable", "The machine with the model cannot be reached just now. Try again soon.")
        return usable[0] if len(usable) == 1 else min(usable, key=lambda session: session.streams)

    def redial(self, *, lost: bool = False) -> None:
        """Dial at once, also where a link stands: it is retired when the new one has been greeted, or now where it is
        ``lost``, being between addresses that are no more. Its streams go on while they can."""
        if lost:
            for session in self._sessions:
                session.retire()
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()

    def leave(self) -> None:
        """Let the running streams end, and take no new ones."""
        self._left = True
        self.redial(lost=True)

    async def run(self, client: aiohttp.ClientSession) -> None:
        """Keep all links of this node; closes them when cancelled. ``client`` stays the caller's."""
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self.address.links):
                    group.create_task(self._keep(client))
            if self._running:
                await asyncio.wait(self._running)
        finally:
            for task in self._running:
                task.cancel()
            await asyncio.gather(*self._running, return_exceptions=True)

    async def _keep(self, client: aiohttp.ClientSession) -> None:
        loop = asyncio.get_running_loop()
        delay = _FIRST_DELAY
        replaced: Session | None = None
        while not self._left:
            moved = self._moved
            transport = await _unless(moved, self._dial(client))
            if transport is not None:
                began = loop.time()
                replaced = await self._hold(transport, replaced, moved)
                if loop.time() - began > _GOOD_AFTER:
                    delay = _FIRST_DELAY
                    continue
            if moved.is_set():
                delay = _FIRST_DELAY
                continue
            await _unless(moved, asyncio.sleep(delay * (0.5 + random.random() / 2)))
            delay = min(delay * 2, _LONGEST_DELAY)
        if replaced is not None:
            replaced.retire()

    async def _dial(self, client: aiohttp.ClientSession) -> DialledTransport | None:
        if self.cause is None and self.machine is not None and self.machine.online is False:
            self._failed(None)  # it is dialled all the same: the control server may be late
        if self.machine is None:
            place = Place(self.address.url, tls=self.address.tls)
        elif (place := await self.machine.place()) is None:
            self._failed(None)
            return None
        try:
            return await dial(client, place, self.address.token)
        except Unreached as error:
            self._failed(error.failure, place.url)
        return None

    async def _hold(
        self, transport: DialledTransport, replaced: Session | None, moved: asyncio.Event
    ) -> Session | None:
        """Run one link until it ends, or until a new one should be dialled beside it, because it is suspect or
        draining or the node has ``moved``; gives the one to be replaced, which is retired as soon as the new one has
        been greeted."""
        session = Session(transport, self._hello, on_snapshot=lambda wire: self._take_snapshot(session, wire))
        self._sessions.append(session)
        running = asyncio.create_task(session.run())
        running.add_done_callback(lambda _: self._sessions.remove(session))
        self._running.add(running)
        running.add_done_callback(self._running.discard)
        greeted = False
        while not running.done():
            await _unless(moved, asyncio.wait({running}, timeout=_LOOK_EVERY))
            if not greeted and session.ready.is_set():
                greeted = True
                self.reason, self.cause = "", None
                if replaced is not None:
                    replaced.retire()
                    replaced = None
                logger.info("linked to node {} ({})", self.name, session.peer.get("id", "?"))
            if (why := _why_replaced(session, moved)) and not running.done():
                if not self._left:
                    self._failed(Failure("ended", detail=f"the link {why}; dialling a new one"), self.url)
                if replaced is not None:
                    replaced.retire()
                return session
        ended = running.result()
        said = ": ".join(filter(None, (ended.reason, transport.close_reason)))
        code = f" (code {transport.close_code})" if transport.close_code else ""
        self._failed(Failure("ended", detail=f"the link ended: {said}{code}"), self.url)
        return replaced

    def _take_snapshot(self, session: Session, wire: Mapping[str, Any]) -> None:
        """Ordered by (boot of the newest link, seq): what an old process still says must not hide the new one."""
        try:
            new = NodeSnapshot.from_wire(wire)
        except ValueError as error:
            logger.warning("node {} sent an unusable snapshot: {}", self.name, error)
            return
        old = self.snapshot
        if old is None or (new.seq >= old.seq if old.boot_id == new.boot_id else session is self._sessions[-1]):
            self.snapshot = new

    def _failed(self, failure: Failure | None, url: str = "") -> None:
        """Say why, once for each reason. A machine that has just appeared has no route yet; the next dial will do."""
        if self.machine is None:
            facts = Facts(self.address.key, url, failure)
        elif not self.machine.told or (failure is not None and failure.kind == "unreachable" and self.machine.new):
            return
        else:
            facts = self.machine.facts(self.address.key, url, failure)
        reach = explain(facts)
        self.cause = reach.cause
        if reach.sentence != self.reason:
            self.reason = reach.sentence
            logger.warning("node {}: {}", self.name, reach.sentence)


def _why_replaced(session: Session, moved: asyncio.Event) -> str:
    """Why a new link is needed; empty when it is not."""
    if moved.is_set():
        return "is older than a change of the tailnet"
    if session.suspect:
        return "is silent"
    return "is draining" if session.draining else ""


async def _unless(event: asyncio.Event, work: Coroutine[Any, Any, _Result]) -> _Result | None:
    """What ``work`` gives; None when ``event`` came first, and ``work`` is cancelled then."""
    working, waiting = asyncio.create_task(work), asyncio.create_task(event.wait())
    try:
        await asyncio.wait((working, waiting), return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        for task in (working, waiting):
            task.cancel()
        await asyncio.gather(working, waiting, return_exceptions=True)
