"""The kinds of store that the contract's tests run against: how each is made, and the clock that it looks at."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

from edge.store.admin import Admin
from edge.store.redis.admin import RedisAdmin
from edge.store.redis.store import RedisStore
from edge.store.sqlite.admin import SQLiteAdmin
from edge.store.sqlite.store import SQLiteStore
from edge.store.store import Store
from shared.state import StateDir
from tests.redis_server import RedisServer, shared_redis

# Requests a minute from one address, in every store that is made here.
PER_IP = 50


class Clock:
    """Wall and monotonic time, moved by hand; it starts at 12:00 UTC."""

    def __init__(self) -> None:
        self.unix = 20_000 * 86_400 + 43_200.0
        self.elapsed = 500.0

    def advance(self, seconds: float) -> None:
        self.unix += seconds
        self.elapsed += seconds


class Place(Protocol):
    """The data that stores and admins of one kind share. What they are made with they do not open, nor close."""

    @property
    def clock(self) -> Clock:
        """Moving it moves the time of everything that was made here."""
        ...

    def store(self, **options: Any) -> Store:
        """``options`` are arguments of the kind's own class."""
        ...

    def admin(self) -> Admin: ...


class SQLitePlace:
    def __init__(self, folder: Path) -> None:
        self.clock = Clock()
        self.state = StateDir(folder)

    def store(self, **options: Any) -> Store:
        clock = self.clock
        given = {"requests_per_minute_per_ip": PER_IP, "monotonic": lambda: clock.elapsed, **options}
        return SQLiteStore(self.state, now=lambda: clock.unix, **given)

    def admin(self) -> Admin:
        return SQLiteAdmin(self.state, now=lambda: self.clock.unix)


class RedisPlace:
    """All data of ``server``. Calls may take long, because this machine may have other work."""

    def __init__(self, server: RedisServer) -> None:
        self.clock = Clock()
        self._url = server.url

    def store(self, **options: Any) -> Store:
        clock = self.clock
        given = {"requests_per_minute_per_ip": PER_IP, "monotonic": lambda: clock.elapsed, "budget": 5.0, **options}
        return RedisStore(self._url, now=lambda: clock.unix, **given)

    def admin(self) -> Admin:
        return RedisAdmin(self._url, now=lambda: self.clock.unix)


@asynccontextmanager
async def sqlite() -> AsyncIterator[Place]:
    with tempfile.TemporaryDirectory() as folder:
        yield SQLitePlace(Path(folder))


@asynccontextmanager
async def redis() -> AsyncIterator[Place]:
    server = shared_redis()
    server.ask("FLUSHALL")
    yield RedisPlace(server)


KINDS: dict[str, Callable[[], AbstractAsyncContextManager[Place]]] = {"sqlite": sqlite, "redis": redis}
# Those that several edges may have open at once.
SHARED_KINDS = ("redis",)
