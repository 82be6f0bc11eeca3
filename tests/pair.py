"""Edge and node on free ports in the test's own loop, in front of any runtime.

    async with FakeRuntime() as runtime, running_pair(runtime.url, edge={"heartbeat": 0.5}) as pair:
        async with pair.post("/v1/chat", question("hi")) as response:
            ...

``Pair`` also shows what a test needs to see of the inside: audit lines, the ledger's rows, what is under way.
"""

from __future__ import annotations

import contextlib
import random
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from edge.app import Edge, run_edge
from edge.store.sqlite import keys
from edge.store.sqlite.database import connect, open_for_admin
from edge.store.sqlite.store import SQLiteStore
from node.app import Node, run_node
from shared.contract.sse import Decoder, Event
from shared.settings import Settings, load_settings
from shared.state import StateDir
from tests.waiting import HANGS, wait_until

# The page that anonymous tokens are minted for.
ORIGIN = "http://app.test"
ANY_PORT = "127.0.0.1:0"


def question(text: str = "Where to?", **fields: Any) -> dict[str, Any]:
    """Body of ``POST /v1/chat`` with one user message."""
    return {"messages": [{"role": "user", "content": text}], **fields}


def events_of(stream: bytes) -> list[Event]:
    return Decoder().feed(stream)


def settings_for(state: Path, sections: Mapping[str, Mapping[str, Any]]) -> Settings:
    """Settings from nothing but these: ``sections`` are nested as in the file."""
    flags = dict(_flat("", sections))
    return load_settings(flags=flags, environ={"HEARTHLINK_STATE": str(state), "HOME": str(state)})


def _flat(prefix: str, section: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in section.items():
        if isinstance(value, Mapping):
            yield from _flat(f"{prefix}{name}.", value)
        else:
            yield prefix + name, value


def from_elsewhere() -> dict[str, str]:
    """A header that makes the caller another address, behind a trusted proxy (``shared_pair`` trusts this machine)."""
    return {"X-Forwarded-For": f"198.18.{random.randrange(256)}.{random.randrange(256)}"}


def create_key(state: Path, plan: str = "owner", name: str | None = None, *, scopes: Sequence[str] = ("chat",)) -> str:
    """An API key, made as the command line makes it; an edge that runs already sees it within a second."""
    connection = open_for_admin(StateDir(state).database)
    try:
        return keys.create(connection, name or f"test-{plan}-{time.time_ns()}", plan, scopes)[1]
    finally:
        connection.close()


def revoke_key(state: Path, key: str) -> None:
    connection = open_for_admin(StateDir(state).database)
    try:
        keys.revoke(connection, key)
    finally:
        connection.close()


def principal_of(key: str) -> str:
    """The id under which the ledger counts an API key."""
    return "key_" + key.split("_")[1]


@dataclass(frozen=True, slots=True)
class LedgerRows:
    """What stands in the edge's database: tokens used per principal, and open reservations (tokens per chat id)."""

    used: Mapping[str, int]
    reserved: Mapping[str, int]


def read_ledger(state: Path) -> LedgerRows:
    """Read as another process would; what was settled is there 50 ms later."""
    connection = connect(StateDir(state).database, busy_seconds=5)
    try:
        used = dict(connection.execute("SELECT principal, SUM(tokens) FROM usage GROUP BY principal"))
        reserved = dict(connection.execute("SELECT chat_id, tokens FROM reservations"))
    finally:
        connection.close()
    return LedgerRows(used, reserved)


@dataclass(slots=True)
class Pair:
    """``key`` is an owner's: no limits. ``audit`` has the edge's line of each request. ``client`` is for ``url``."""

    state: Path
    node: Node
    edge: Edge
    key: str
    client: aiohttp.ClientSession
    audit: list[dict[str, Any]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return self.edge.public.url

    @property
    def ops_url(self) -> str:
        return self.edge.ops.url

    def post(
        self, path: str, payload: Any, *, key: str | None = None, headers: Mapping[str, str] | None = None
    ) -> contextlib.AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """POST ``payload`` as JSON with ``key``, the owner's unless given."""
        return self.client.post(self.url + path, json=payload, headers=self.bearer(key) | dict(headers or {}))

    def get(
        self, path: str, *, key: str | None = None, headers: Mapping[str, str] | None = None
    ) -> contextlib.AbstractAsyncContextManager[aiohttp.ClientResponse]:
        return self.client.get(self.url + path, headers=self.bearer(key) | dict(headers or {}))

    def bearer(self, key: str | None = None) -> dict[str, str]:
        return {"Authorization": f"Bearer {key or self.key}"}

    async def token(self, origin: str = ORIGIN) -> str:
        """An anonymous token for a page on ``origin``; send that Origin with it."""
        async with self.client.post(self.url + "/v1/token", json={}, headers={"Origin": origin}) as response:
            assert response.status == 200, await response.text()
            return (await response.json())["token"]

    async def new_key(self, plan: str = "owner", *, scopes: Sequence[str] = ("chat",)) -> str:
        """A key that the edge knows already."""
        key = create_key(self.state, plan, scopes=scopes)
        await wait_until(lambda: self._knows(key))
        return key

    def _knows(self, key: str) -> bool:
        with contextlib.suppress(Exception):
            self.edge.services.store.lookup(key)
            return True
        return False

    def ledger(self) -> LedgerRows:
        return read_ledger(self.state)

    def open_work(self) -> dict[str, int]:
        """What is under way, by place; every value is 0 when nothing is."""
        sessions = [session for upstream in self.edge.services.upstreams.all for session in upstream.sessions]
        turns, store = self.node.services.turns, self.edge.services.store
        return {
            "chats at the edge": len(self.edge.services.chats),
            "streams on the edge's links": sum(session.streams for session in sessions),
            "streams on the node's links": sum(session.streams for session in self.node.link.sessions),
            "answers at the node": len(self.node.services.running),
            "slots taken": turns.running,
            "places in the queue": turns.queued,
            "reservations": len(self.ledger().reserved),
            "writes of the ledger": int(isinstance(store, SQLiteStore) and store._journal.dirty),
        }

    async def idle(self, seconds: float = HANGS) -> None:
        """Wait until nothing is under way anywhere and the ledger says so on disk."""
        await wait_until(lambda: not any(self.open_work().values()), seconds, what=self.open_work)


@asynccontextmanager
async def running_pair(
    runtime_url: str | None = None,
    *,
    state: Path | None = None,
    edge: Mapping[str, Any] | None = None,
    node: Mapping[str, Any] | None = None,
    plans: Mapping[str, Any] | None = None,
    wait: bool = True,
) -> AsyncIterator[Pair]:
    """Serve a pair while the block runs. ``edge``, ``node`` and ``plans`` are settings as in their sections of the
    file; ``runtime_url`` is an OpenAI-compatible server's (without it, ``node={"runtime": {...}}`` says which). With
    ``wait`` the block begins when a chat can be answered."""
    async with contextlib.AsyncExitStack() as stack:
        if state is None:
            state = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        key = create_key(state)
        audit: list[dict[str, Any]] = []
        running_node = await stack.enter_async_context(run_node(node_settings(state, runtime_url, node)))
        link = f"ws://127.0.0.1:{running_node.listener.port}/link"
        settings = edge_settings(state, link, edge, plans)
        running_edge = await stack.enter_async_context(run_edge(settings, lambda line: audit.append(dict(line))))
        client = await stack.enter_async_context(
            aiohttp.ClientSession(trust_env=False, connector=aiohttp.TCPConnector(limit=0))
        )
        pair = Pair(state, running_node, running_edge, key, client, audit)
        if wait:
            upstreams = running_edge.services.upstreams
            await wait_until(lambda: upstreams.ready, 10, what=lambda: [one.reason for one in upstreams.all])
        yield pair


def node_settings(state: Path, runtime_url: str | None, overrides: Mapping[str, Any] | None = None) -> Settings:
    runtime = {"runtime": {"kind": "openai", "url": runtime_url}} if runtime_url is not None else {}
    return settings_for(state, {"node": {"listen": ANY_PORT, **runtime, **(overrides or {})}})


def edge_settings(
    state: Path, link: str, overrides: Mapping[str, Any] | None = None, plans: Mapping[str, Any] | None = None
) -> Settings:
    edge = {
        "listen": ANY_PORT,
        "ops_listen": ANY_PORT,
        "allowed_origins": [ORIGIN],
        "upstreams": {"default": {"url": link}},
        **(overrides or {}),
    }
    return settings_for(state, {"edge": edge, "plans": plans or {}})
