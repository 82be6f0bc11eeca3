"""An HTTP/1.1 client that owns every byte: it can trickle, pipeline, stop reading, half-close and reset.

    async with await RawClient.connect(pair.url) as raw:
        await raw.post("/v1/chat", BODY, {"Authorization": f"Bearer {pair.key}"})
        head = await raw.head()                 # status and headers
        first = await raw.read_until(b"\\n\\n")   # body bytes as they come, chunk framing taken off
        raw.reset()

Nothing is read from the socket unless a test asks for it.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from tests.waiting import HANGS

_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close() sends RST
_READ = 65536


@dataclass(frozen=True, slots=True)
class Head:
    """Status line and headers of a response; names in lower case, several of one name joined with ", "."""

    status: int
    headers: Mapping[str, str]


def encode_request(method: str, path: str, headers: Mapping[str, str], body: bytes = b"") -> bytes:
    """A request as bytes. ``headers`` are written as given; Host and Content-Length are added when missing."""
    named = {name.lower() for name in headers}
    lines = [f"{method} {path} HTTP/1.1"]
    if "host" not in named:
        lines.append("Host: 127.0.0.1")
    if body and "content-length" not in named and "transfer-encoding" not in named:
        lines.append(f"Content-Length: {len(body)}")
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


class RawClient:
    """One TCP connection. ``aclose`` or leaving the block closes it with FIN; ``reset`` with RST."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self._loop = asyncio.get_running_loop()
        self._received = bytearray()  # from the socket, framing included
        self._body = bytearray()  # framing taken off, not handed out yet
        self._left: int | None = 0  # bytes of the body or chunk still to come; None: until EOF
        self._chunked = False
        self._complete = True

    @classmethod
    async def connect(cls, url: str, *, receive_buffer: int | None = None) -> Self:
        """``receive_buffer`` bytes (the kernel doubles it) bound what the peer can send while nobody reads."""
        parts = urlsplit(url)
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        try:
            await asyncio.get_running_loop().sock_connect(sock, (parts.hostname, parts.port))
        except BaseException:
            sock.close()
            raise
        return cls(sock)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Writing.

    async def send(self, data: bytes) -> None:
        await self._loop.sock_sendall(self.socket, data)

    async def trickle(self, data: bytes, gap: float, size: int = 1) -> None:
        """``size`` bytes every ``gap`` seconds."""
        for start in range(0, len(data), size):
            await self.send(data[start : start + size])
            await asyncio.sleep(gap)

    async def request(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> None:
        await self.send(encode_request(method, path, headers or {}, body))

    async def post(self, path: str, payload: Any, headers: Mapping[str, str] | None = None) -> None:
        """``payload`` as JSON, or bytes as they are."""
        body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        await self.request("POST", path, {"Content-Type": "application/json", **(headers or {})}, body)

    def half_close(self) -> None:
        """FIN: nothing more will be written, answers are still read."""
        self.socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """RST, as when the machine's program dies."""
        if self.socket.fileno() >= 0:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.socket.close()

    def close(self) -> None:
        self.socket.close()

    # Reading.

    async def _more(self) -> bool:
        data = await self._loop.sock_recv(self.socket, _READ)
        self._received += data
        return bool(data)

    async def head(self, seconds: float = HANGS) -> Head:
        """The next response's head; 1xx are passed over. Raises EOFError when the peer closes first."""
        async with asyncio.timeout(seconds):
            while True:
                while (end := self._received.find(b"\r\n\r\n")) < 0:
                    if not await self._more():
                        raise EOFError("the connection was closed instead of an answer")
                first, *lines = bytes(self._received[:end]).decode("latin-1").split("\r\n")
                del self._received[: end + 4]
                if (status := int(first.split(" ", 2)[1])) >= 200:
                    break
        headers: dict[str, str] = {}
        for name, _, value in (line.partition(":") for line in lines):
            name, value = name.strip().lower(), value.strip()
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        self._chunked = headers.get("transfer-encoding", "").lower() == "chunked"
        length = headers.get("content-length")
        self._left = 0 if self._chunked else (None if length is None else int(length))
        self._complete = (not self._chunked and self._left == 0) or status in (204, 304)
        self._body.clear()
        return Head(status, headers)

    async def read_some(self, seconds: float = HANGS) -> bytes:
        """At least one byte of the body; b"" at its end. Raises EOFError when a framed body is cut."""
        async with asyncio.timeout(seconds):
            while not self._body and not self._complete:
                self._unframe()
                if self._body or self._complete:
                    break
                if not await self._more():
                    if self._left is not None:
                        raise EOFError("the body was cut")
                    self._complete = True
        data = bytes(self._body)
        self._body.clear()
        return data

    async def read_until(self, mark: bytes, seconds: float = HANGS) -> bytes:
        """The body through ``mark``; what came behind it stays for the next read."""
        got = bytearray()
        async with asyncio.timeout(seconds):
            while (at := got.find(mark)) < 0:
                piece = await self.read_some(seconds)
                if not piece:
                    raise EOFError(f"the body ended before {mark!r}: {bytes(got[-200:])!r}")
                got += piece
        end = at + len(mark)
        self._body[:0] = got[end:]
        return bytes(got[:end])

    async def body(self, seconds: float = HANGS) -> bytes:
        """The rest of the body."""
        got = bytearray()
        async with asyncio.timeout(seconds):
            while piece := await self.read_some(seconds):
                got += piece
        return bytes(got)

    async def json(self, seconds: float = HANGS) -> Any:
        return json.loads(await self.body(seconds))

    async def closed_by_peer(self, seconds: float = HANGS) -> None:
        """Wait for FIN or RST; whatever is sent before it is dropped."""
        async with asyncio.timeout(seconds):
            try:
                while await self._more():
                    self._received.clear()
            except ConnectionError:
                pass

    def _unframe(self) -> None:
        if not self._chunked:
            take = len(self._received) if self._left is None else min(self._left, len(self._received))
            self._body += self._received[:take]
            del self._received[:take]
            if self._left is not None:
                self._left -= take
                self._complete = self._left == 0
            return
        while self._received and not self._complete:
            if not self._left:
                if (end := self._received.find(b"\r\n")) < 0:
                    return
                size = int(bytes(self._received[:end]), 16)
                if size == 0:
                    if len(self._received) < end + 4:
                        return
                    del self._received[: end + 4]
                    self._complete = True
                    return
                del self._received[: end + 2]
                self._left = size + 2  # and the line end behind it
            take = min(self._left, len(self._received))
            content = max(0, min(take, self._left - 2))
            self._body += self._received[:content]
            del self._received[:take]
            self._left -= take
