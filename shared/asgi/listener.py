"""A place to listen on, and its socket: a TCP address, or a path of the file system."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import ssl
import stat
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from shared.asgi.connections import Connections

# What callers of a listener may reach. "ops" is loopback only: metrics, full health, admin. "serve" is where Tailscale
# Serve calls, with its headers about who is there.
Rights = Literal["public", "serve", "tailnet", "interface", "ops"]

# Connections that wait to be accepted; the kernel cuts it to net.core.somaxconn.
BACKLOG = 2048
# A reader that vanished without FIN is noticed by TCP itself: 30 s idle, then 3 probes 10 s apart, or 30 s
# unacknowledged.
_KEEPALIVE = ((socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3))
_USER_TIMEOUT_MS = 30_000
# Bytes of a unix socket's path: sun_path, less the byte that ends it.
_LONGEST_PATH = 103 if sys.platform == "darwin" else 107
# Nobody but the owner (and root) may connect to a unix socket.
_UNIX_UMASK = 0o177


class CannotListen(Exception):
    """The address cannot be bound; the text says why and what to do, ``errno`` what the system said (0: nothing)."""

    def __init__(self, text: str, number: int | None = 0) -> None:
        super().__init__(text)
        self.errno = number or 0


@dataclass(frozen=True, slots=True)
class Listener:
    """Where to listen and what callers from there may reach: ``host`` and ``port`` (0: any free one), or ``path``, a
    unix socket that only this user may connect to.

    ``tls`` speaks for this side. ``admits`` is asked for each connection with the peer's IP address, before anything is
    read; on False the connection is dropped unanswered. ``connections`` counts them by caller, and refuses those that
    are too many.
    """

    rights: Rights
    host: str = ""
    port: int = 0
    path: str = ""
    tls: ssl.SSLContext | None = field(default=None, compare=False, repr=False)
    admits: Callable[[str], bool] | None = field(default=None, compare=False, repr=False)
    connections: Connections | None = field(default=None, compare=False, repr=False)

    @property
    def url(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'http' if self.tls is None else 'https'}://{host}:{self.port}"


def welcome(transport: asyncio.Transport, listener: Listener) -> bool:
    """Prepare a connection that was just accepted; False: it is not admitted and has been dropped.

    Small events must not wait for an ACK, whoever made the listening socket: uvloop sets TCP_NODELAY, asyncio only
    where the protocol of the listening socket is named.
    """
    sock = transport.get_extra_info("socket")
    if sock is None or sock.family == socket.AF_UNIX:
        return True
    with contextlib.suppress(OSError):  # the peer has left already; macOS refuses options then
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if listener.admits is None:
        return True
    peer = transport.get_extra_info("peername")
    if peer and listener.admits(peer[0]):
        return True
    transport.abort()
    return False


def bind(listener: Listener) -> socket.socket:
    """A listening socket; the caller closes it, and removes ``listener.path``. Raises CannotListen."""
    return _bind_path(listener) if listener.path else _bind_address(listener)


def _socket(family: int, listener: Listener) -> socket.socket:
    try:
        return socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:  # too many files are open, or there is no IPv6 here
        raise CannotListen(cannot(listener, error), error.errno) from None


def _bind_address(listener: Listener) -> socket.socket:
    family = socket.AF_INET6 if ":" in listener.host else socket.AF_INET
    sock = _socket(family, listener)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        idle = getattr(socket, "TCP_KEEPIDLE", getattr(socket, "TCP_KEEPALIVE", None))
        for option, value in ((idle, 30), *_KEEPALIVE):
            if option is not None:
                sock.setsockopt(socket.IPPROTO_TCP, option, value)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _USER_TIMEOUT_MS)
        sock.bind((listener.host, listener.port))
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise CannotListen(_why(listener, error), error.errno) from None
    return sock


def cannot(listener: Listener, error: OSError) -> str:
    """The sentence for what the system says, where there is nothing to add."""
    return f"Cannot listen on {listener.url}: {os.strerror(error.errno or 0)}."


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
    return cannot(listener, error)


def _bind_path(listener: Listener) -> socket.socket:
    path = listener.path
    length = len(os.fsencode(path))
    if length > _LONGEST_PATH:
        raise CannotListen(
            f"The path of the socket {path} has {length} bytes, and the system allows {_LONGEST_PATH}. "
            "Choose a shorter state folder.",
            errno.ENAMETOOLONG,
        )
    sock = _socket(socket.AF_UNIX, listener)
    try:
        _clear(path)
        before = os.umask(_UNIX_UMASK)  # chmod after bind would leave a moment in which others can connect
        try:
            sock.bind(path)
        finally:
            os.umask(before)
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        why = os.strerror(error.errno or 0)
        raise CannotListen(
            f"Cannot make the socket {path}: {why}. Its folder must be there and writable for this user.", error.errno
        ) from None
    except CannotListen:
        sock.close()
        raise
    return sock


def _clear(path: str) -> None:
    """Remove the socket that a process left behind when it was killed. Raises CannotListen when one listens there, or
    when something else has that name."""
    try:
        kind = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind):
        raise CannotListen(f"{path} is there and is no socket. Move it away, or choose another path.", errno.EEXIST)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
        caller.setblocking(False)
        answer = caller.connect_ex(path)
    if answer == errno.ECONNREFUSED:
        os.unlink(path)
    elif answer in (errno.EACCES, errno.EPERM):
        raise CannotListen(
            f"The socket {path} belongs to another user, so this one can neither use nor replace it. If nothing "
            f"listens there (`ss -lxp src {path}`), remove it as root: sudo rm {path}",
            answer,
        )
    elif answer != errno.ENOENT:
        raise CannotListen(
            f"Another program listens on {path}. Stop it (`ss -lxp src {path}` names it) or choose another path.",
            errno.EADDRINUSE,
        )
