"""TLS for callers of a listener. The event loops drop a failed handshake without a word; here the connections are
accepted one by one, so that it can be said in words who was refused and why."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable

from loguru import logger

from shared import tls
from shared.asgi.listener import Listener

# Seconds a handshake may take: two round trips, over a slow relay with a packet lost.
_WITHIN = 10.0
# Seconds to wait for the other side's close_notify once a connection is closed.
_CLOSE_WITHIN = 2.0
# Handshakes at once. When one more begins, the oldest is given up: whoever opens connections and says nothing keeps
# nobody out.
_AT_ONCE = 128
# Lines a second that refusals may write: anybody who reaches the port can cause them.
_LINES = 10
# Seconds until the next try when the system gives no connection, such as when too many files are open.
_REST = 1.0


class Handshakes:
    """Those under way at one server. Owned by ``Listening``, which ends them with ``close``."""

    def __init__(self) -> None:
        self._running: dict[asyncio.Task[None], str] = {}  # and with whom; the oldest first
        self._second = 0
        self._refused = 0

    def start(
        self, sock: socket.socket, peer: str, context: ssl.SSLContext, make: Callable[[], asyncio.Protocol]
    ) -> None:
        """Bring TLS to ``sock``, just accepted, and then ``make`` the protocol that goes on inside it."""
        if len(self._running) >= _AT_ONCE:
            oldest = next(iter(self._running))
            oldest.cancel()
            self._say(self._running.pop(oldest), f"{_AT_ONCE} others began before it had finished the handshake")
        task = asyncio.get_running_loop().create_task(self._shake(sock, peer, context, make))
        self._running[task] = peer

        def ended(task: asyncio.Task[None]) -> None:
            self._running.pop(task, None)
            if task.cancelled():
                sock.close()  # maybe before the loop had it

        task.add_done_callback(ended)

    async def close(self) -> None:
        for task in list(self._running):
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def _shake(
        self, sock: socket.socket, peer: str, context: ssl.SSLContext, make: Callable[[], asyncio.Protocol]
    ) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                make, sock, ssl=context, ssl_handshake_timeout=_WITHIN, ssl_shutdown_timeout=_CLOSE_WITHIN
            )
        except OSError as error:
            self._say(peer, tls.refusal(error))

    def _say(self, peer: str, why: str) -> None:
        """Write a line about a refusal, unless there were too many in this second."""
        second = int(asyncio.get_running_loop().time())
        if second != self._second:
            if self._refused > _LINES:
                logger.warning("{} more TLS connections were refused in a second", self._refused - _LINES)
            self._second, self._refused = second, 0
        self._refused += 1
        if self._refused <= _LINES:
            logger.warning("a TLS connection from {} was refused: {}", peer, why)


class SecureServer:
    """Accepts the callers of one listener that has ``tls``. Owns ``sock``."""

    def __init__(
        self, listener: Listener, sock: socket.socket, make: Callable[[], asyncio.Protocol], handshakes: Handshakes
    ) -> None:
        self._listener = listener
        self._sock = sock
        self._make = make
        self._handshakes = handshakes
        self._accepting: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._accepting = asyncio.create_task(self._accept())

    async def close(self) -> None:
        """Accept nobody any more. Handshakes under way and connections go on."""
        try:
            if self._accepting is not None:
                self._accepting.cancel()
                await asyncio.gather(self._accepting, return_exceptions=True)
        finally:
            self._sock.close()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        context, admits = self._listener.tls, self._listener.admits
        assert context is not None
        while True:
            try:
                sock, address = await loop.sock_accept(self._sock)
            except ConnectionAbortedError:
                continue  # the caller was gone before we came
            except OSError as error:
                logger.warning("{} takes no connections for a moment: {}", self._listener.url, error.strerror)
                await asyncio.sleep(_REST)
                continue
            peer = address[0] if isinstance(address, tuple) else "this machine"
            if admits is None or admits(peer):
                self._handshakes.start(sock, peer, context, self._make)
            else:
                sock.close()
