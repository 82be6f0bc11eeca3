"""The sockets of a server that runs: opened and shut while it does, connections stay."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import uvicorn
from uvicorn.server import ServerState

from shared.asgi.handshake import Handshakes, SecureServer
from shared.asgi.listener import BACKLOG, CannotListen, Listener, bind, cannot
from shared.asgi.protocol import DeadlineProtocol, Limits, Refused

# What tells listeners apart: (path, host, port).
_Place = tuple[str, str, int]


class _Server(Protocol):
    """Accepts callers at a listening socket, which it owns, from ``start`` to ``close``. Connections go on."""

    async def start(self) -> None: ...
    async def close(self) -> None: ...


class _PlainServer:
    """The event loop's own, for callers without TLS."""

    def __init__(self, server: asyncio.AbstractServer) -> None:
        self._server = server

    async def start(self) -> None:
        await self._server.start_serving()

    async def close(self) -> None:
        self._server.close()


@dataclass(frozen=True, slots=True)
class _Open:
    """A listener at work. ``sock`` belongs to ``server``, which closes it."""

    listener: Listener
    server: _Server
    sock: socket.socket
    inode: int  # of the unix socket's file, so that nobody else's is removed; 0 for TCP

    @property
    def in_place(self) -> bool:
        """Whether a caller who looks up the address finds this socket."""
        return _inode(self.listener) == self.inode

    def remove(self) -> None:
        """Take the unix socket's file away, if it is ours."""
        if self.listener.path and self.in_place:
            with contextlib.suppress(OSError):
                os.unlink(self.listener.path)


class Listening:
    """Owned by ``serving``. Connections outlive the listener they came in by."""

    def __init__(
        self, config: uvicorn.Config, state: ServerState, limits: Limits, refused: Refused | None = None
    ) -> None:
        self._config = config
        self._state = state
        self._limits = limits
        self._refused = refused
        self._handshakes = Handshakes()
        self._open: dict[_Place, _Open] = {}

    @property
    def listeners(self) -> tuple[Listener, ...]:
        """Those that are open, in the order they were opened, with their real ports."""
        return tuple(found.listener for found in self._open.values())

    async def open(self, listener: Listener, sock: socket.socket | None = None) -> Listener:
        """Listen there too, on ``sock`` where one is given that is bound there, and which belongs to this object from
        now on; returns the listener with its real port. Raises CannotListen.

        What listens at this address already with the same rights is replaced: the socket stays, so that no caller is
        refused meanwhile, and the next connection has the new certificate and ``admits``.
        """
        old = self._open.get(_place(listener))
        if old is not None and old.listener.rights != listener.rights:
            if sock is not None:
                sock.close()
            raise CannotListen(
                f"{listener.url} is taken by this program itself, for {old.listener.rights}. Choose another address for"
                f" {listener.rights}.",
                errno.EADDRINUSE,
            )
        if sock is None:
            sock = _dup(old) if old is not None and old.in_place else bind(listener)
        try:
            if not listener.path:
                listener = replace(listener, port=sock.getsockname()[1])
            server = await self._server(listener, sock)
        except OSError as error:
            sock.close()
            raise CannotListen(cannot(listener, error), error.errno) from None
        except BaseException:
            sock.close()
            raise
        self._open[_place(listener)] = _Open(listener, server, sock, _inode(listener))
        if old is not None:
            await old.server.close()
        await server.start()
        return listener

    async def shut(self, listener: Listener) -> None:
        """Take no new connections there; open ones go on. Nothing happens when it is not open."""
        if (found := self._open.pop(_place(listener), None)) is not None:
            found.remove()
            await found.server.close()

    async def close(self) -> None:
        """Shut all listeners and end the TLS handshakes under way. Connections stay, for uvicorn to close."""
        for listener in self.listeners:
            await self.shut(listener)
        await self._handshakes.close()

    async def _server(self, listener: Listener, sock: socket.socket) -> _Server:
        """What accepts the connections of ``listener`` and makes the protocol of each."""
        make: Callable[[], asyncio.Protocol] = partial(
            DeadlineProtocol, listener, self._limits, self._refused, config=self._config, server_state=self._state
        )
        if listener.tls is not None:
            return SecureServer(listener, sock, make, self._handshakes)
        loop = asyncio.get_running_loop()
        return _PlainServer(await loop.create_server(make, sock=sock, backlog=BACKLOG, start_serving=False))


def _dup(old: _Open) -> socket.socket:
    try:
        return old.sock.dup()
    except OSError as error:
        raise CannotListen(cannot(old.listener, error), error.errno) from None


def _place(listener: Listener) -> _Place:
    return listener.path, listener.host, listener.port


def _inode(listener: Listener) -> int:
    try:
        return os.lstat(listener.path).st_ino if listener.path else 0
    except OSError:
        return -1
