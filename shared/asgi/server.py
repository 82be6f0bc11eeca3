"""Serve an app on listeners that carry rights. Owns the sockets and the deadlines."""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, cast

import uvicorn
from loguru import logger

from shared.asgi.listener import CannotListen, Listener, bind
from shared.asgi.listening import Listening
from shared.asgi.protocol import DeadlineProtocol, Limits, Refused
from shared.asgi.types import App
from shared.link import frames
from shared.ticker import Ticker

if TYPE_CHECKING:  # only a server that takes WebSockets imports it
    from shared.asgi.websocket import WebSocketProtocol

# Seconds an idle connection is kept. Longer than the proxies in front do, or one of them sends a request just as it is
# closed here: 60 s are common, 90 s is Tailscale Serve (IdleConnTimeout in ipn/ipnlocal/serve.go).
_KEEP_ALIVE = 95
# Seconds uvicorn may take after the drain to flush and close; with the drain's 20 s it stays under the promised 30.
_CLOSE_WITHIN = 5
# Seconds between two tries to listen, and for how many seconds it is tried: a process before this one has 30 for its
# drain and its end.
_TRY_EVERY = 1.0
_PATIENCE = {errno.EADDRNOTAVAIL: math.inf, errno.EADDRINUSE: 30.0}


class _Server(uvicorn.Server):
    """uvicorn closes every WebSocket at once when it exits, so the first signal only starts the drain."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # ``shared.signals`` has them


@asynccontextmanager
async def serving(
    app: App,
    listeners: Sequence[Listener],
    limits: Limits,
    ticker: Ticker,
    *,
    refused: Refused | None = None,
    patient: bool = False,
    websockets: bool = True,
) -> AsyncIterator[Listening]:
    """Serve ``app`` while the block runs, on ``listeners`` (maybe none) and whatever is opened later. ``ticker`` stays
    the caller's. ``refused`` hears of requests that ``app`` never sees. Without ``websockets`` a handshake is a request
    as any other, for an app that has none.

    In ``scope["state"]``, ``listener`` is the rights of the listener a request came in by, ``connection`` a dict for
    the app's own use that all requests of one connection share and that goes with it, and for HTTP ``write`` the
    server's own ``send``, for the body of a stream whose start went through all layers. On leaving, listeners close,
    answers under way get 5 s, and everything is closed. Raises CannotListen; where that may pass by itself, only after
    waiting for it when ``patient``.
    """
    server = _Server(_configuration(app, websockets))
    listening = Listening(server.config, server.server_state, limits, refused)

    def sweep(now: float) -> None:
        for connection in list(server.server_state.connections):
            cast("DeadlineProtocol | WebSocketProtocol", connection).sweep(now)

    ticker.add(sweep)
    with _only_errors(logging.getLogger("uvicorn.error")):
        task = asyncio.create_task(server.serve(sockets=[]))
        try:
            while not server.started and not task.done():  # noqa: ASYNC110 - a flag is all that uvicorn has
                await asyncio.sleep(0.01)
            for listener, sock in zip(listeners, await _bind(listeners, patient=patient), strict=True):
                await listening.open(listener, sock)
            yield listening
        finally:
            await listening.close()
            server.should_exit = True
            await task
            ticker.remove(sweep)


async def _bind(listeners: Sequence[Listener], *, patient: bool) -> list[socket.socket]:
    """Listening sockets for all of them or for none: nobody is served by half of a server, which cannot be drained.

    At boot the address of a tailnet or VPN comes late, and in a restart the process before may still be finishing its
    answers. One line says what is waited for. Raises CannotListen.
    """
    clock = asyncio.get_running_loop().time
    began, told = clock(), ""
    order = list(range(len(listeners)))
    while True:
        bound: dict[int, socket.socket] = {}
        try:
            for number in order:
                bound[number] = bind(listeners[number])
            return [bound[number] for number in range(len(listeners))]
        except CannotListen as error:
            for sock in bound.values():
                sock.close()
            missing = order[len(bound)]
            order = [missing, *(number for number in order if number != missing)]  # so that nobody else is let in
            patience = _PATIENCE.get(error.errno, 0.0) if patient else 0.0
            if str(error) != told:
                began = clock()
            if clock() - began >= patience:
                raise
            if str(error) != told:
                until = f"for {patience:.0f} s" if math.isfinite(patience) else "until the address is there"
                logger.warning("{} It is tried again every second, {}.", error, until)
                told = str(error)
        await asyncio.sleep(_TRY_EVERY)


def _configuration(app: App, websockets: bool) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=DeadlineProtocol,
        ws="shared.asgi.websocket:WebSocketProtocol" if websockets else "none",
        ws_max_size=frames.MAX_WIRE_BYTES,
        ws_ping_interval=None,
        ws_per_message_deflate=False,
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=_CLOSE_WITHIN,
    )


@contextmanager
def _only_errors(log: logging.Logger) -> Iterator[None]:
    """At DEBUG the WebSocket library logs handshakes with their Authorization header, and every frame; warnings are one
    for each malformed request, which anybody can send by the thousand, and so is what uvicorn 0.54 calls an error: a
    handshake that the app has answered with a refusal."""

    def is_error(record: logging.LogRecord) -> bool:
        return record.msg != "ASGI callable returned without completing handshake."

    before = log.level
    log.setLevel(logging.ERROR)
    log.addFilter(is_error)
    try:
        yield
    finally:
        log.removeFilter(is_error)
        log.setLevel(before)
