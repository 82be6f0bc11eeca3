"""The server as an edge sees it: one call of a script within its time, or the news that there is no answer.

budget     from when a call has its connection, its reply takes so long at most; so does that of its one retry
turn       a burst waits for connections, and a new one is dialled: that has a time of its own
breaker    after a failure nobody waits for the server until ``probe`` has found it answering
echo       each call's first reply value is its own number: another call's reply is never taken for it
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from loguru import logger
from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import (
    AskError,
    AuthenticationError,
    BusyLoadingError,
    ClusterError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from edge.store.errors import StoreError, StoreNotYet
from edge.store.redis.clients import cluster, name_of, pool
from edge.store.redis.fitness import unfit
from edge.store.redis.scripts import Script

# Begins every key; a cluster keeps all that has the same text in braces on one of its servers.
TAG = "{hearthlink}"
# Connections of one process. A call takes a fraction of a millisecond, so that many serve some ten thousand a second.
_CONNECTIONS = 16
# Of those who look after the store, so that they need not wait behind requests.
_PATIENT_CONNECTIONS = 4
_ALL_CONNECTIONS = _CONNECTIONS + _PATIENT_CONNECTIONS + 1  # one asks how the server is
# A call waits for a connection for so many budgets: some thousand calls at once, or a dial of ten round trips.
TURN_BUDGETS = 10
# Nobody waits for what looks after the store, so that it may read much, or come to a server that is busy or far away.
PATIENT_SECONDS = 2.0
# So many calls in a row late, and not one reply to anybody for a whole budget: the server counts as away.
_SLOW_CALLS = 3
# When a call's time is over and the loop was so late itself, the reply may be there already, unread.
_LATE_SECONDS = 0.01
_TIMES_LATE = 9
_INFO_SECONDS = 2.0
# What a second try on a new connection, or after the cluster's new map, may do better.
_WORTH_A_RETRY = (RedisConnectionError, ReadOnlyError, AskError, TryAgainError, ClusterError)
_FAILURES = (RedisError, RedisClusterException, OSError)
# Of those, the ones that say that it is away or busy, and not that it is the wrong server, or we the wrong user.
_AWAY = (RedisConnectionError, RedisTimeoutError, BusyLoadingError, ClusterError, RedisClusterException, OSError)


class NoAnswer(Exception):
    """The server did not answer in time, or not as it has to; the text says how it was. What was asked may have been
    done all the same. ``away``: it may answer later, without anybody's doing."""

    def __init__(self, text: str, *, away: bool = False) -> None:
        super().__init__(text)
        self.away = away


class _LostReplyError(RedisConnectionError):
    """The connection broke when the request was on its way, so that it may have been done."""


@dataclass(frozen=True, slots=True)
class _Patience:
    """Seconds that one call waits, for a connection (of which ``places`` allows so many) and for its reply."""

    turn: float
    reply: float
    places: asyncio.Semaphore


class Server:
    """The Redis or Valkey server (or cluster) at ``url``, whose reply to a call may take ``budget`` seconds.

    ``open`` it before use and ``close`` it after, on one event loop. ``now`` gives Unix seconds in place of the
    server's clock.
    """

    def __init__(self, url: str, budget: float, now: Callable[[], float] | None = None) -> None:
        self._url = url
        self._budget = budget
        self._now = now
        self._numbers = itertools.count(1)
        self._client: Redis | RedisCluster | None = None
        self._hasty = _Patience(budget * TURN_BUDGETS, budget, asyncio.Semaphore(_CONNECTIONS))
        self._patient_places = asyncio.Semaphore(_PATIENT_CONNECTIONS)
        self._slow = 0
        self._replied_at = 0.0
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
        """Connect, and see that the server can be counted on. Raises StoreError, and StoreNotYet for a server that is
        away."""
        try:
            async with asyncio.timeout(seconds):
                self._client = Redis.from_pool(pool(self._url, _ALL_CONNECTIONS, seconds))
                info = await self._info()
                if info.get("redis_mode") == "cluster":
                    await self._client.aclose()
                    self._client = await cluster(self._url, _ALL_CONNECTIONS, seconds).initialize()
                    info |= await self._info()
        except TimeoutError:
            await self.close()
            raise self._unreachable(f"no answer within {seconds:g} seconds", away=True) from None
        except AuthenticationError as error:
            await self.close()
            text = f"The store {self.name} refuses the user or password in edge.store ({error}). Correct that setting."
            raise StoreError(text) from None
        except (*_FAILURES, TypeError, ValueError) as error:  # the last two are of what the URL says
            await self.close()
            raise self._unreachable(_said(error), away=_away(error)) from None
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

    async def call(self, script: Script, *args: str | int, once: bool = False) -> list[Any]:
        """The reply of ``script``, a line as its words. Raises NoAnswer, at once while the breaker is open. What must
        not be done twice is asked ``once``: not again where the first may have been done."""
        if self.fault is not None:
            raise NoAnswer(self.fault)
        return await self._ask(script, args, self._hasty, once)

    async def probe(
        self, script: Script, *args: str | int, seconds: float = PATIENT_SECONDS, once: bool = False
    ) -> list[Any]:
        """As ``call``, but whether or not the breaker is open, and patiently: an answer closes it."""
        return await self._ask(script, args, _Patience(seconds, seconds, self._patient_places), once)

    async def _ask(self, script: Script, args: tuple[str | int, ...], patience: _Patience, once: bool) -> list[Any]:
        number = format(next(self._numbers), "x")
        moment = 0 if self._now is None else int(self._now() * 1_000_000)
        try:
            reply = await self._twice(script, (number, moment, *args), patience, once)
        except TimeoutError:
            text = f"no answer within {patience.reply * 1000:g} ms"
            self._late(text)
            raise NoAnswer(text, away=True) from None
        except _LostReplyError as error:
            self._late(_said(error))
            raise NoAnswer(_said(error), away=True) from None
        except _FAILURES as error:
            self._fail(_said(error))
            raise NoAnswer(_said(error), away=_away(error)) from None
        if isinstance(reply, str):
            reply = reply.split(" ")
        if not isinstance(reply, list) or not reply or reply[0] != number:
            await self.drop_connections()
            self._fail("a reply that belongs to another request")
            raise NoAnswer("a reply that belongs to another request")
        self._slow = 0
        self._replied_at = asyncio.get_running_loop().time()
        if self.fault is not None:
            self.fault = None
            logger.info("The store {} answers again", self.name)
        self.failed.clear()
        return reply[1:]

    async def _twice(self, script: Script, args: tuple[str | int, ...], patience: _Patience, once: bool) -> Any:
        try:
            return await self._once(script, args, patience)
        except _WORTH_A_RETRY as error:
            if once and isinstance(error, _LostReplyError):
                raise
            if isinstance(error, ReadOnlyError):
                await self.drop_connections()  # this server is a replica now; its name may lead to another
            if isinstance(self._client, RedisCluster):
                async with _within(patience.turn), patience.places:  # the library finds out where the keys are now
                    return await _reply(self._client.execute_command, script, args)
        try:
            return await self._once(script, args, patience)
        except _LostReplyError as error:
            raise RedisConnectionError(str(error)) from None

    async def _once(self, script: Script, args: tuple[str | int, ...], patience: _Patience) -> Any:
        async with contextlib.AsyncExitStack() as stack:
            async with _within(patience.turn):
                await stack.enter_async_context(patience.places)
                if self.fault is not None and patience is self._hasty:
                    raise RedisConnectionError(self.fault)  # while this one waited
                connection = await self._connection(stack)

            async def ask(*command: str | int) -> Any:
                async with _within(patience.reply):
                    await connection.send_command(*command)
                    return await connection.read_response()

            try:
                return await _reply(ask, script, args)
            except BusyLoadingError:
                raise
            except RedisConnectionError as error:
                raise _LostReplyError(str(error)) from None

    async def _connection(self, stack: contextlib.AsyncExitStack) -> AbstractConnection:
        """One that is up, until ``stack`` ends. Whoever stops reading on it early closes it."""
        client = self._client
        if client is None:
            raise RedisConnectionError("the store is closed")
        if isinstance(client, Redis):
            connection = await client.connection_pool.get_connection()
            stack.push_async_callback(client.connection_pool.release, connection)
        else:
            node = client.get_node_from_key(TAG)
            if node is None:
                raise RedisConnectionError("no server of the cluster has the keys")
            connection = node.acquire_connection()
            stack.callback(node.release, connection)
            await connection.connect()
        return connection

    async def drop_connections(self) -> None:
        """Close those that nobody uses; the next call dials."""
        if isinstance(self._client, Redis):
            await self._client.connection_pool.disconnect(inuse_connections=False)
        elif self._client is not None:
            for node in self._client.get_nodes():
                await node.disconnect_free_connections()

    def _late(self, text: str) -> None:
        """A single call without an answer may be chance, or this process' own work."""
        self._slow += 1
        silent = asyncio.get_running_loop().time() - self._replied_at >= self._hasty.reply
        if self._slow >= _SLOW_CALLS and silent:
            self._fail(text)

    def _fail(self, text: str) -> None:
        if self.fault is None:
            logger.error("The store {} does not answer ({}): requests are counted as far as that goes", self.name, text)
        self.fault = text
        self.failed.set()

    def _unreachable(self, why: str, *, away: bool) -> StoreError:
        text = (
            f"The store {self.name} cannot be used ({why}). Start that server, or correct edge.store in the settings."
        )
        return StoreNotYet(text, math.inf) if away else StoreError(text)


async def _reply(ask: Callable[..., Awaitable[Any]], script: Script, args: tuple[str | int, ...]) -> Any:
    try:
        return await ask("EVALSHA", script.digest, 1, TAG, *args)
    except NoScriptError:  # it was restarted, or another server took over
        return await ask("EVAL", script.text, 1, TAG, *args)


@asynccontextmanager
async def _within(seconds: float) -> AsyncIterator[None]:
    """``asyncio.timeout``, which does not blame the server for the time that this process itself was late: it begins
    again then, for ten times as long at most."""
    loop = asyncio.get_running_loop()
    due = loop.time() + seconds
    last = due + seconds * _TIMES_LATE
    async with asyncio.timeout(None) as timeout:

        def over() -> None:
            nonlocal due, handle
            now = loop.time()
            if now - due > _LATE_SECONDS and now < last:
                due = now + seconds
                handle = loop.call_at(due, over)
            else:
                timeout.reschedule(now)

        handle = loop.call_at(due, over)
        try:
            yield
        finally:
            handle.cancel()


def _away(error: BaseException) -> bool:
    """A certificate that is not believed comes as a lost connection."""
    return isinstance(error, _AWAY) and not isinstance(error.__cause__ or error.__context__, ssl.SSLError)


def _said(error: BaseException) -> str:
    if isinstance(error, OutOfMemoryError):
        return "its memory is full: give it more, or raise maxmemory"
    if isinstance(error, ReadOnlyError):
        return "it is a replica, which cannot be written to"
    if isinstance(error, BusyLoadingError):
        return "it is still reading its data"
    return str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
