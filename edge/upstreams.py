"""The nodes this edge can ask, each behind links that are kept up: dialled, redialled with backoff, replaced when
silent."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
from loguru import logger

from shared.contract.errors import ApiError
from shared.contract.snapshot import NodeSnapshot
from shared.link.hello import Hello
from shared.link.session import Session
from shared.link.transports import DIAL_WITHIN, DialledTransport, DialRefused

# Seconds between dials: quick at first, because a node usually restarts within a second or two; full jitter on top.
_FIRST_DELAY = 0.1
_LONGEST_DELAY = 5.0
# A link that held this long was good: the next dial starts from the beginning again.
_GOOD_AFTER = 10.0
# How often a live link is looked at for silence (design §3.8 wants a suspect one replaced at once).
_LOOK_EVERY = 0.5


@dataclass(frozen=True, slots=True)
class Address:
    """Where a node is and the bearer token it wants. Lower ``priority`` is asked first."""

    name: str
    url: str
    token: str
    priority: int = 0
    links: int = 1


class Upstream:
    """One node. ``run`` keeps its links until cancelled; ``reason`` says in a sentence why there is none."""

    def __init__(self, address: Address, hello: Hello) -> None:
        self.address = address
        self.snapshot: NodeSnapshot | None = None
        self.reason = "not connected yet"
        self._hello = hello
        self._sessions: list[Session] = []
        self._leaving: set[asyncio.Task[Any]] = set()

    @property
    def name(self) -> str:
        return self.address.name

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

    async def run(self, client: aiohttp.ClientSession) -> None:
        """Keep all links of this node; closes them when cancelled. ``client`` stays the caller's."""
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self.address.links):
                    group.create_task(self._keep(client))
        finally:
            for task in self._leaving:
                task.cancel()
            await asyncio.gather(*self._leaving, return_exceptions=True)

    async def _keep(self, client: aiohttp.ClientSession) -> None:
        loop = asyncio.get_running_loop()
        delay = _FIRST_DELAY
        replaced: Session | None = None
        while True:
            transport = await self._dial(client)
            if transport is not None:
                began = loop.time()
                replaced = await self._hold(transport, replaced)
                if loop.time() - began > _GOOD_AFTER:
                    delay = _FIRST_DELAY
                    continue
            await asyncio.sleep(delay * (0.5 + random.random() / 2))
            delay = min(delay * 2, _LONGEST_DELAY)

    async def _dial(self, client: aiohttp.ClientSession) -> DialledTransport | None:
        url = self.address.url
        try:
            async with asyncio.timeout(DIAL_WITHIN):
                return await DialledTransport.dial(client, url, self.address.token)
        except DialRefused as refused:
            self._unreachable(_why_refused(refused, self.address))
        except TimeoutError:
            self._unreachable(
                f"no answer from {url} within {DIAL_WITHIN:g} s. Is that machine on, and is the address right?"
            )
        except (aiohttp.ClientError, OSError) as error:
            cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
            what = os.strerror(cause.errno) if isinstance(cause, OSError) and cause.errno else type(cause).__name__
            setting = f"edge.upstreams.{self.name}.url"
            self._unreachable(
                f"cannot reach the node at {url} ({what}). Start `hearthlink node` there or correct {setting}."
            )
        return None

    async def _hold(self, transport: DialledTransport, replaced: Session | None) -> Session | None:
        """Run one link until it ends, or until it is suspect or draining and a new one should be dialled beside it;
        gives the one to be replaced, which is retired as soon as the new one has been greeted."""
        session = Session(transport, self._hello, on_snapshot=lambda wire: self._take_snapshot(session, wire))
        self._sessions.append(session)
        running = asyncio.create_task(session.run())
        running.add_done_callback(lambda _: self._sessions.remove(session))
        self._leaving.add(running)
        running.add_done_callback(self._leaving.discard)
        greeted = False
        while not running.done():
            await asyncio.wait({running}, timeout=_LOOK_EVERY)
            if not greeted and session.ready.is_set():
                greeted = True
                if replaced is not None:
                    replaced.retire()
                    replaced = None
                logger.info("linked to node {} ({})", self.name, session.peer.get("id", "?"))
            if session.suspect or session.draining:
                logger.warning(
                    "the link to node {} is {}; dialling a new one",
                    self.name,
                    "silent" if session.suspect else "draining",
                )
                if replaced is not None:
                    replaced.retire()
                return session
        ended = running.result()
        code = transport.close_code
        self._unreachable(f"the link ended: {ended.reason}" + (f" (code {code})" if code else ""))
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

    def _unreachable(self, reason: str) -> None:
        if reason != self.reason:
            self.reason = reason
            logger.warning("node {}: {}", self.name, reason)


def _why_refused(refused: DialRefused, address: Address) -> str:
    token = f"edge.upstreams.{address.name}.token"
    if refused.status == 401:
        return f"the node at {address.url} refuses this edge's token. Set {token} to one of the node's node.tokens."
    setting = f"edge.upstreams.{address.name}.url"
    if refused.status == 403:
        return f"the node at {address.url} does not listen under that name. Correct {setting} or node.listen there."
    if refused.status == 503:
        return f"the node at {address.url} is restarting."
    return f"what answers at {address.url} is not a Hearthlink node (HTTP {refused.status}). Correct {setting}."


class Upstreams:
    """All nodes, in the order in which they are asked."""

    def __init__(self, upstreams: Iterable[Upstream]) -> None:
        self.all = sorted(upstreams, key=lambda upstream: upstream.address.priority)

    def choose(self) -> Upstream:
        """The first node that could answer now; else the first that is connected, whose own refusal says more than
        ours. Raises ApiError ``node_unavailable``."""
        for upstream in self.all:
            if upstream.ready:
                return upstream
        for upstream in self.all:
            if upstream.connected:
                return upstream
        raise ApiError("node_unavailable", "The machine with the model cannot be reached just now. Try again soon.")

    @property
    def ready(self) -> bool:
        return any(upstream.ready for upstream in self.all)

    async def run(self) -> None:
        """Keep every link up until cancelled. Environment proxies are never used for links."""
        async with (
            aiohttp.ClientSession(trust_env=False, connector=aiohttp.TCPConnector(limit=0)) as client,
            asyncio.TaskGroup() as group,
        ):
            for upstream in self.all:
                group.create_task(upstream.run(client))
