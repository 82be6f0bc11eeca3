"""The server as an edge sees it: one call of a script within its time, or the news that there is no answer.

budget     all of a call, its one retry included, takes so long at most
breaker    after a failure nobody waits for the server until ``probe`` has found it answering
echo       each call's first reply value is its own number: another call's reply is never taken for it
"""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

from loguru import logger
from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ClusterError,
    MovedError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError

from edge.store.errors import StoreError
from edge.store.redis.scripts import Script

# Begins every key; a cluster keeps all that has the same text in braces on one of its servers.
TAG = "{hearthlink}"
# Connections of one process. A call takes a fraction of a millisecond, so that many serve some ten thousand a second.
_CONNECTIONS = 16
# So many calls in a row without an answer in time, and the server counts as away: one may be chance.
_SLOW_CALLS = 3
# When a call's time is over and the loop was so late itself, the reply may be there already, unread.
_LATE_SECONDS = 0.01
_INFO_SECONDS = 2.0
_OLDEST = (7, 0)
# What a second try on a new connection, or after the cluster's new map, may do better.
_WORTH_A_RETRY = (RedisConnectionError, ReadOnlyError, MovedError, TryAgainError, ClusterError)
_FAILURES = (RedisError, RedisClusterException, OSError)


class NoAnswer(Exception):
    """The server did not answer in time, or not as it has to; the text says how it was. What was asked may have been
    done all the same."""


class Server:
    """The Redis or Valkey server (or cluster) at ``url``, which is given a whole ``budget`` of seconds per call.

    ``open`` it before use and ``close`` it after, on one event loop. ``now`` gives Unix seconds in place of the
    server's clock.
    """

    def __init__(self, url: str, budget: float, now: Callable[[], float] | None = None) -> None:
        self._url = url
        self._budget = budget
        self._now = now
        self._numbers = itertools.count(1)
        self._client: Redis | RedisCluster | None = None
        self._free = asyncio.Semaphore(_CONNECTIONS)
        self._slow = 0
        self.failed = asyncio.Event()
        """Set when the breaker opens; ``probe`` clears it."""
        self.fault: str | None = None
        """Why the server counts as away, None while it answers."""

    @property
    def name(self) -> str:
        """Host and port, or socket, without the password."""
        return name_of(self._url)

    @property
    def answering(self) -> bool:
        return self.fault is None

    async def open(self, seconds: float = 5.0) -> None:
        """Connect, and see that the server can be counted on. Raises StoreError."""
        try:
            async with asyncio.timeout(seconds):
                self._client = Redis.from_pool(_pool(self._url, seconds))
                info = await self._info()
                if info.get("redis_mode") == "cluster":
                    await self._client.aclose()
                    self._client = await _cluster(self._url, seconds).initialize()
                    info |= await self._info()
        except TimeoutError:
            await self.close()
            raise self._unreachable(f"no answer within {seconds:g} seconds") from None
        except AuthenticationError as error:
            await self.close()
            text = f"The store {self.name} refuses the user or password in edge.store ({error}). Correct that setting."
            raise StoreError(text) from None
        except (*_FAILURES, TypeError, ValueError) as error:  # the last two are of what the URL says
            await self.close()
            raise self._unreachable(_said(error)) from None
        if (wrong := unfit(info)) is not None:
            await self.close()
            raise StoreError(f"The store {self.name} {wrong}")

    async def close(self) -> None:
        """Let go of all connections. Idempotent."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def info(self) -> dict[str, Any]:
        """What the server says of itself: version, mode, role, memory; empty where this user may not ask. Raises
        NoAnswer."""
        try:
            async with asyncio.timeout(_INFO_SECONDS):
                return await self._info()
        except TimeoutError:
            raise NoAnswer(f"no answer within {_INFO_SECONDS:g} s") from None
        except _FAILURES as error:
            raise NoAnswer(_said(error)) from None

    async def _info(self) -> dict[str, Any]:
        client = self._client
        found: dict[str, Any] | None = {}
        try:
            if isinstance(client, RedisCluster):
                found = await client.execute_command("INFO", "all", target_nodes=client.get_node_from_key(TAG))
            elif client is not None:
                found = await client.execute_command("INFO", "all")
        except NoPermissionError:
            pass
        if found and "redis_version" not in found:  # a cluster's, by node
            found = next(iter(found.values()))
        return found or {}

    async def call(self, script: Script, *args: str | int) -> list[Any]:
        """The reply of ``script``, a line as its words. Raises NoAnswer, at once while the breaker is open."""
        if self.fault is not None:
            raise NoAnswer(self.fault)
        return await self.probe(script, *args)

    async def probe(self, script: Script, *args: str | int, seconds: float | None = None) -> list[Any]:
        """As ``call``, but whether or not the breaker is open: an answer closes it."""
        number = format(next(self._numbers), "x")
        moment = 0 if self._now is None else int(self._now() * 1_000_000)
        try:
            async with _within(self._budget if seconds is None else seconds):
                reply = await self._twice(script, (number, moment, *args))
        except TimeoutError:
            self._slow += 1
            text = f"no answer within {(self._budget if seconds is None else seconds) * 1000:g} ms"
            if self._slow >= _SLOW_CALLS:
                self._fail(text)
            raise NoAnswer(text) from None
        except _FAILURES as error:
            self._fail(_said(error))
            raise NoAnswer(_said(error)) from None
        if isinstance(reply, str):
            reply = reply.split(" ")
        if not isinstance(reply, list) or not reply or reply[0] != number:
            await self._drop_connections()
            self._fail("a reply that belongs to another request")
            raise NoAnswer("a reply that belongs to another request")
        self._slow = 0
        if self.fault is not None:
            self.fault = None
            logger.info("The store {} answers again", self.name)
        self.failed.clear()
        return reply[1:]

    async def _twice(self, script: Script, args: tuple[str | int, ...]) -> Any:
        try:
            return await self._once(script, args)
        except _WORTH_A_RETRY as error:
            if isinstance(error, ReadOnlyError):
                await self._drop_connections()  # this server is a replica now; its name may lead to another
            return await self._once(script, args)

    async def _once(self, script: Script, args: tuple[str | int, ...]) -> Any:
        if self._client is None:
            raise RedisConnectionError("the store is closed")
        async with self._free:
            try:
                return await self._client.execute_command("EVALSHA", script.digest, 1, TAG, *args)
            except NoScriptError:  # it was restarted, or another server took over
                return await self._client.execute_command("EVAL", script.text, 1, TAG, *args)

    async def _drop_connections(self) -> None:
        if isinstance(self._client, Redis):
            await self._client.connection_pool.disconnect(inuse_connections=False)

    def _fail(self, text: str) -> None:
        if self.fault is None:
            logger.error("The store {} does not answer ({}): requests are counted as far as that goes", self.name, text)
        self.fault = text
        self.failed.set()

    def _unreachable(self, why: str) -> StoreError:
        return StoreError(
            f"The store {self.name} cannot be used ({why}). Start that server, or correct edge.store in the settings."
        )


def unfit(info: dict[str, Any]) -> str | None:
    """Why a server that says ``info`` of itself cannot hold the counts, as the end of a sentence; None when it can."""
    version = str(info.get("redis_version", "7.0"))
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < _OLDEST:
        return f"is Redis {version}: install version 7 or later, or Valkey."
    if info.get("role") == "slave":
        return "is a replica, which cannot be written to: name the primary in edge.store."
    return evicts(info)


def evicts(info: dict[str, Any]) -> str | None:
    """As ``unfit``, for a server that throws keys away when its memory is full: a quota would begin anew, unseen."""
    policy = info.get("maxmemory_policy", "noeviction")
    if int(info.get("maxmemory", 0)) == 0 or policy == "noeviction":
        return None
    return (
        f"may throw away what it counts when its memory is full (maxmemory-policy {policy}): "
        "set maxmemory-policy noeviction there."
    )


def name_of(url: str) -> str:
    """Where ``url`` leads, without user and password."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return parts.path
    try:
        port = parts.port or 6379
    except ValueError:
        return "of edge.store"
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname or "localhost"
    return f"{host}:{port}"


def _pool(url: str, connect_seconds: float) -> ConnectionPool:
    # Waiting is bounded by who calls; of the library's own retries there are none, so that one is one.
    return ConnectionPool.from_url(
        url,
        max_connections=_CONNECTIONS + 1,  # one asks how the server is
        socket_timeout=None,
        socket_connect_timeout=connect_seconds,
        retry=Retry(NoBackoff(), 0),
        decode_responses=True,
        protocol=2,
        driver_info=None,
    )


def _cluster(url: str, connect_seconds: float) -> RedisCluster:
    return RedisCluster.from_url(
        url,
        max_connections=_CONNECTIONS + 1,  # one asks how the server is
        socket_timeout=None,
        socket_connect_timeout=connect_seconds,
        retry=Retry(NoBackoff(), 1),
        require_full_coverage=False,
        decode_responses=True,
        protocol=2,
        driver_info=None,
    )


@asynccontextmanager
async def _within(seconds: float) -> AsyncIterator[None]:
    """``asyncio.timeout``, which does not blame the server for the time that this process itself was late."""
    loop = asyncio.get_running_loop()
    due = loop.time() + seconds
    async with asyncio.timeout(None) as timeout:

        def over() -> None:
            late = loop.time() - due > _LATE_SECONDS
            timeout.reschedule(loop.time() + (seconds if late else 0))

        handle = loop.call_at(due, over)
        try:
            yield
        finally:
            handle.cancel()


def _said(error: BaseException) -> str:
    if isinstance(error, OutOfMemoryError):
        return "its memory is full: give it more, or raise maxmemory"
    if isinstance(error, ReadOnlyError):
        return "it is a replica, which cannot be written to"
    if isinstance(error, BusyLoadingError):
        return "it is still reading its data"
    return str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
