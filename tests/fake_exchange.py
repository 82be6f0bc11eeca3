"""The wire side of the fake runtime: one TCP connection, and one request on it with the pen to answer it."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import time
from collections.abc import Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Literal, cast

from tests.waiting import HANGS

if TYPE_CHECKING:
    from tests.fake_runtime import FakeRuntime

CHAT = "/v1/chat/completions"
Outcome = Literal["running", "completed", "aborted", "dropped"]

_MAX_REQUEST = 32 << 20  # bytes; nothing sends this much, so growth past it is a bug in what is tested
_NO_TIME = struct.pack("ii", 1, 0)  # SO_LINGER: close() sends RST and drops what was not sent


class Exchange:
    """One request, and the pen with which a script writes its answer.

    ``outcome``: "completed" (the script ended and framed its answer), "aborted" (the peer left first), "dropped" (the
    script cut the connection). Times are ``time.monotonic()`` seconds; ``closed_at`` is when the peer was seen to leave
    during this exchange. ``sent`` counts body and head bytes handed to the kernel's side.
    """

    def __init__(self, connection: Connection, method: str, target: str, headers: dict[str, str], body: bytes) -> None:
        self._connection = connection
        self.method = method
        self.path, _, self.query = target.partition("?")
        self.headers = headers
        self.body = body
        self.received_at = time.monotonic()
        self.closed_at: float | None = None
        self.outcome: Outcome = "running"
        self.sent = 0
        self.is_chat = method == "POST" and self.path == CHAT
        self.keep_alive = headers.get("connection", "").lower() != "close"
        self._left = asyncio.Event()

    @property
    def json(self) -> dict[str, Any]:
        """The body, or {} when it is not a JSON object."""
        try:
            value = json.loads(self.body)
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}

    async def peer_left(self, within: float = HANGS) -> float:
        """Wait until the peer closed its connection during this exchange; the moment it was seen."""
        async with asyncio.timeout(within):
            await self._left.wait()
        return cast(float, self.closed_at)

    async def write(self, data: bytes) -> None:
        """Raw bytes; waits while the peer does not read."""
        await self._connection.write(data)
        self.sent += len(data)

    async def start_stream(self, status: int = 200, headers: Iterable[tuple[str, str]] = ()) -> None:
        """Head of a chunked ``text/event-stream``."""
        lines = [("Content-Type", "text/event-stream"), ("Transfer-Encoding", "chunked"), *headers]
        await self.write(self._head(status, lines))

    async def send(self, data: bytes) -> None:
        """One HTTP chunk of a started stream, in one write."""
        if data:
            await self.write(b"%x\r\n%s\r\n" % (len(data), data))

    async def end_stream(self) -> None:
        await self.write(b"0\r\n\r\n")

    async def respond(
        self,
        status: int,
        payload: Any = None,
        content_type: str = "application/json",
        headers: Iterable[tuple[str, str]] = (),
    ) -> None:
        """A whole answer; ``payload`` is bytes as they are, anything else as JSON."""
        data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        lines = [("Content-Type", content_type), ("Content-Length", str(len(data))), *headers]
        await self.write(self._head(status, lines) + data)

    def _head(self, status: int, lines: Iterable[tuple[str, str]]) -> bytes:
        server = self._connection.runtime.server_header
        named = [*lines, ("Server", server)] if server else lines
        fields = "".join(f"{name}: {value}\r\n" for name, value in named)
        return f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n{fields}\r\n".encode()

    async def drop(self) -> None:
        """End the connection here, whatever was framed (FIN)."""
        self.outcome = "dropped"
        self._connection.close()

    async def reset(self) -> None:
        """End the connection with RST."""
        self.outcome = "dropped"
        self._connection.reset()

    def note_peer_left(self) -> None:
        self.closed_at = time.monotonic()
        self.outcome = "aborted"
        self._left.set()


class Connection(asyncio.Protocol):
    """One TCP connection: requests in turn, one task for the one being answered."""

    def __init__(self, runtime: FakeRuntime) -> None:
        self.runtime = runtime
        self._buffer = bytearray()
        self._exchange: Exchange | None = None
        self._task: asyncio.Task[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.runtime.connections.add(self)
        self.runtime.accepted += 1
        self.runtime.changed()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        assert len(self._buffer) < _MAX_REQUEST, "a request without end"
        self._next()

    def eof_received(self) -> None:
        self._peer_left()

    def connection_lost(self, exc: Exception | None) -> None:
        self.runtime.connections.discard(self)
        self._peer_left()
        self._writable.set()
        self.runtime.changed()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    async def write(self, data: bytes) -> None:
        await self._writable.wait()
        self._transport.write(data)
        await asyncio.sleep(0)  # a peer that reads fast must not let one script keep the loop

    def close(self) -> None:
        self._transport.close()

    def reset(self) -> None:
        sock = self._transport.get_extra_info("socket")
        if sock is not None and sock.fileno() >= 0:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_TIME)
        self._transport.abort()

    async def end(self) -> None:
        """Reset, and wait for the script to be over."""
        task = self._task
        self.reset()
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def _peer_left(self) -> None:
        exchange, task = self._exchange, self._task
        if exchange is None or task is None or exchange.outcome == "aborted":
            return
        if exchange.outcome == "running":
            exchange.note_peer_left()
            self.runtime.answered(exchange)
        task.cancel()

    def _next(self) -> None:
        if self._task is not None or (exchange := self._parse()) is None:
            return
        self._exchange = exchange
        self._task = asyncio.get_running_loop().create_task(self._answer(exchange))

    def _parse(self) -> Exchange | None:
        """The next whole request, or None. A body needs Content-Length, which every client of ours sends."""
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return None
        first, *lines = self._buffer[:end].decode("latin-1").split("\r\n")
        method, target, _ = first.split(" ", 2)
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        size = int(headers.get("content-length", "0"))
        if len(self._buffer) < end + 4 + size:
            return None
        body = bytes(self._buffer[end + 4 : end + 4 + size])
        del self._buffer[: end + 4 + size]
        return Exchange(self, method, target, headers, body)

    async def _answer(self, exchange: Exchange) -> None:
        try:
            await self.runtime.answer(exchange)
            if exchange.outcome == "running":
                exchange.outcome = "completed"
        except Exception as error:
            self.runtime.failures.append(error)
            self.reset()
        finally:
            self._task = self._exchange = None
            if exchange.outcome == "running":
                exchange.outcome = "dropped"  # cancelled by kill()
            if exchange.outcome != "aborted":  # counted when it was seen
                self.runtime.answered(exchange)
        if not exchange.keep_alive:
            self.close()
        elif not self._transport.is_closing():
            self._next()
