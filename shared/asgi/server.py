"""Serve an app on listeners that carry rights. Owns the sockets, the deadlines, the signals and the drain."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Literal

import uvicorn
from loguru import logger

from shared.asgi.protocol import DeadlineProtocol, Limits
from shared.asgi.types import App, Receive, Scope, Send
from shared.link import frames
from shared.ticker import Ticker

Rights = Literal["public", "tailnet", "ops"]

# Seconds uvicorn may take after the drain to flush and close; with the drain's 20 s it stays under the promised 30.
_CLOSE_WITHIN = 5
# A reader that vanished without FIN is noticed by TCP itself: 30 s idle, then 3 probes 10 s apart, or 30 s
# unacknowledged.
_KEEPALIVE = ((socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3))
_USER_TIMEOUT_MS = 30_000


class CannotListen(Exception):
    """The address cannot be bound; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Listener:
    """An address and what callers from there may reach. "ops" is loopback only: metrics, full health, admin."""

    rights: Rights
    host: str
    port: int

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"


def bind(listener: Listener) -> socket.socket:
    """A listening TCP socket; the caller closes it. Raises CannotListen."""
    family = socket.AF_INET6 if ":" in listener.host else socket.AF_INET
    # asyncio sets TCP_NODELAY only on sockets whose protocol is named; without it small events wait for an ACK.
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        idle = getattr(socket, "TCP_KEEPIDLE", getattr(socket, "TCP_KEEPALIVE", None))
        for option, value in ((idle, 30), *_KEEPALIVE):
            if option is not None:
                sock.setsockopt(socket.IPPROTO_TCP, option, value)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _USER_TIMEOUT_MS)
        sock.bind((listener.host, listener.port))
        sock.listen(2048)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise CannotListen(_why(listener, error)) from None
    return sock


def _why(listener: Listener, error: OSError) -> str:
    where = f"{listener.host}:{listener.port}"
    if error.errno == errno.EADDRINUSE:
        return (
            f"Port {listener.port} on {listener.host} is taken by another program. "
            f"Stop it (`ss -ltnp 'sport = :{listener.port}'` names it) or choose another port."
        )
    if error.errno == errno.EACCES:
        return f"Not allowed to listen on {where}: ports below 1024 need root. Choose a higher one behind Caddy."
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{listener.host} is not an address of this machine, so {where} cannot be bound."
    return f"Cannot listen on {where}: {os.strerror(error.errno or 0)}."


class _Server(uvicorn.Server):
    """uvicorn closes every WebSocket at once when it exits, so the first signal only starts the drain."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # ``until_signalled`` has them


@asynccontextmanager
async def serving(
    app: App, listeners: Sequence[Listener], limits: Limits, ticker: Ticker
) -> AsyncIterator[list[Listener]]:
    """Serve ``app`` while the block runs; yields the listeners with their real ports. ``ticker`` stays the caller's.

    In ``scope["state"]``, ``listener`` is the rights of the listener a request came in by, and ``write`` the server's
    own ``send``, for the body of a stream whose start went through all layers. On leaving, listeners close, answers
    under way get 5 s, and everything is closed. Raises CannotListen.
    """
    sockets = _bind_all(listeners)
    bound = [
        Listener(listener.rights, listener.host, sock.getsockname()[1])
        for listener, sock in zip(listeners, sockets, strict=True)
    ]
    server = _Server(_configuration(_by_listener(app, {listener.port: listener.rights for listener in bound}), limits))

    def sweep(now: float) -> None:
        for connection in list(server.server_state.connections):
            if isinstance(connection, DeadlineProtocol):
                connection.sweep(now)

    ticker.add(sweep)
    with _only_errors(logging.getLogger("uvicorn.error")):
        task = asyncio.create_task(server.serve(sockets))
        try:
            while not server.started and not task.done():  # noqa: ASYNC110 - a flag is all that uvicorn has
                await asyncio.sleep(0.01)
            yield bound
        finally:
            server.should_exit = True
            await task
            ticker.remove(sweep)


def _bind_all(listeners: Sequence[Listener]) -> list[socket.socket]:
    """A socket for each listener, or none. Raises CannotListen."""
    sockets: list[socket.socket] = []
    try:
        for listener in listeners:
            sockets.append(bind(listener))
    except CannotListen:
        for sock in sockets:
            sock.close()
        raise
    return sockets


def _configuration(app: App, limits: Limits) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=type("BoundedProtocol", (DeadlineProtocol,), {"limits": limits}),
        ws="websockets-sansio",
        ws_max_size=frames.MAX_WIRE_BYTES,
        ws_ping_interval=None,
        ws_per_message_deflate=False,
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=75,  # longer than the 60 s idle of common proxies, so that they never reuse a closing one
        timeout_graceful_shutdown=_CLOSE_WITHIN,
    )


@contextmanager
def _only_errors(log: logging.Logger) -> Iterator[None]:
    """At DEBUG the WebSocket library logs handshakes with their Authorization header, and every frame; warnings are one
    for each malformed request, which anybody can send by the thousand."""
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


def _by_listener(app: App, rights: dict[int, Rights]) -> App:
    async def with_rights(scope: Scope, receive: Receive, send: Send) -> None:
        scope["state"]["listener"] = rights.get(scope["server"][1], "public")
        scope["state"]["write"] = send
        await app(scope, receive, send)

    return with_rights


async def until_signalled(drain: Callable[[], Awaitable[None]], reload: Callable[[], None]) -> None:
    """Call ``reload`` at each SIGHUP. Wait for SIGTERM or SIGINT, then run ``drain``; a second one cuts it short."""
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, reload)
    first, second = asyncio.Event(), asyncio.Event()

    def signalled() -> None:
        (second if first.is_set() else first).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signalled)
    await first.wait()
    logger.info("stopping: no new requests, running ones may finish")
    waiting = (asyncio.ensure_future(drain()), asyncio.ensure_future(second.wait()))
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
