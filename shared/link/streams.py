"""The two ends of one stream on the link: ``Reply`` is read at the edge, ``Responder`` is written at the node."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from shared.contract.errors import ApiError
from shared.link import frames
from shared.link.call import End
from shared.link.frames import FrameError, Kind

# Bytes of NOTE and DATA a node may send before the edge has passed any on: about 1,000 events, a second of the
# fastest model.
INITIAL_CREDIT = 256 << 10
# Credit goes back in steps, so that a CREDIT frame is rare and the node still never stands at 0 for a live reader.
_CREDIT_STEP = INITIAL_CREDIT // 4
# One event may overdraw the credit (design §3.8), and so may the few NOTEs before the first; more than this unread
# means a peer that ignores flow control.
_OVERDRAFT = frames.MAX_CONTENT_BYTES + (64 << 10)
# Of one header's value, as HTTP servers and proxies take it. Longer ones are cut: a HEAD over a frame's limit would
# close the link of everybody.
_MAX_VALUE = 8 << 10

Send = Callable[[bytes], None]


class Reply:
    """An answer under way, as the edge reads it. One reader. ``cancel`` must be called when it is left early."""

    def __init__(self, stream: int, control: Send, clock: Callable[[], float]) -> None:
        self.stream = stream
        self.headers: Mapping[str, str] = {}
        self.end: End | None = None
        self.error: ApiError | None = None
        self.error_usage: Any = None
        self.first_data_at: float | None = None
        self.relayed = 0
        self._control = control
        self._clock = clock
        self._chunks: list[bytes] = []
        self._unread = 0
        self._unreturned = 0
        self.has_head = False
        self._cancelled = False
        self._waiter: asyncio.Future[None] | None = None

    # What the session calls.

    def receive(self, kind: int, payload: bytes) -> bool:
        """Take one frame; True when it was the last. Raises FrameError when the order of §3.8 is broken."""
        if kind == Kind.DATA or kind == Kind.NOTE:
            if not self.has_head:
                raise FrameError("content before HEAD")
            if self._cancelled:
                return False
            if kind == Kind.DATA and self.first_data_at is None:
                self.first_data_at = self._clock()
            self._unread += len(payload)
            if self._unread > INITIAL_CREDIT + _OVERDRAFT:
                raise FrameError("more content than credit")
            self._chunks.append(payload)
        elif kind == Kind.HEAD:
            if self.has_head:
                raise FrameError("a second HEAD")
            if self.closed:  # it was given up, and another node is asked already: nothing of it may be read any more
                return True
            headers = frames.read_json(payload).get("headers")
            self.has_head = True
            self.headers = {str(k): str(v) for k, v in headers.items()} if isinstance(headers, dict) else {}
        elif kind == Kind.END:
            self.end = End.from_wire(frames.read_json(payload))
        elif kind == Kind.ERROR:
            wire = frames.read_json(payload)
            self.error_usage = wire.get("usage")
            self.error = ApiError.from_wire(wire)
        self._wake()
        return self.closed

    def lose(self, reason: str) -> None:
        """The link is gone. Before HEAD another node may still answer; after it the answer is cut."""
        code = "upstream_incomplete" if self.has_head else "node_unavailable"
        self.fail(ApiError(code, f"The link to the node was lost ({reason}). Please try again."))

    def fail(self, error: ApiError) -> None:
        if self.end is None and self.error is None:
            self.error = error
            self._wake()

    # What the reader calls.

    async def head(self) -> Mapping[str, str]:
        """Wait for HEAD; its headers. Raises the node's ApiError when it refuses."""
        while not self.has_head:
            if self.error is not None:
                raise self.error
            if self.end is not None:
                raise ApiError("upstream_invalid", "The node ended the request without an answer.")
            await self._wait()
        return self.headers

    async def read(self) -> bytes:
        """Everything that has arrived, at least one byte; b"" after a clean END. Raises ApiError after what came
        before it."""
        while not self._chunks:
            if self.error is not None:
                raise self.error
            if self.end is not None:
                return b""
            await self._wait()
        chunks, self._chunks = self._chunks, []
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def passed_on(self, size: int) -> None:
        """Say that ``size`` bytes of ``read`` left for the client's socket: their credit returns to the node."""
        self.relayed += size
        self._unread -= size
        self._unreturned += size
        if self._unreturned >= _CREDIT_STEP and self.end is None and self.error is None:
            self._control(frames.pack_json(self.stream, Kind.CREDIT, {"bytes": self._unreturned}))
            self._unreturned = 0

    def inject(self, payload: bytes) -> None:
        """Put bytes of the edge's own (a heartbeat) in front of the reader. Costs the node no credit."""
        if not self._chunks:
            self._unread += len(payload)
            self._unreturned -= len(payload)
            self._chunks.append(payload)
            self._wake()

    def cancel(self) -> None:
        """Tell the node to stop. Idempotent; END or ERROR still follows, content that is under way is dropped."""
        if not self._cancelled and self.end is None and self.error is None:
            self._cancelled = True
            self._chunks.clear()
            self._control(frames.pack(self.stream, Kind.CANCEL, b"{}"))

    async def ended(self) -> None:
        """Wait for END or ERROR. The caller sets the deadline."""
        while not self.closed:
            await self._wait()

    @property
    def at_end(self) -> bool:
        """A clean END is here and everything before it has been read."""
        return self.end is not None and not self._chunks

    @property
    def closed(self) -> bool:
        """END or ERROR is here."""
        return self.end is not None or self.error is not None

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Responder:
    """An answer under way, as the node writes it; an ``Outlet``. The session that made it sends END or ERROR."""

    def __init__(self, stream: int, send: Callable[[int, bytes], None]) -> None:
        self.stream = stream
        self._send = send
        self.closing: ApiError | None = None  # what to end with when the session cancels the answer
        self._credit = INITIAL_CREDIT
        self._waiter: asyncio.Future[None] | None = None

    def head(self, headers: Mapping[str, str]) -> None:
        short = {name: value[:_MAX_VALUE] for name, value in headers.items()}
        self._send(self.stream, frames.pack_json(self.stream, Kind.HEAD, {"headers": short}))

    def note(self, payload: bytes) -> None:
        self._credit -= len(payload)  # some hundred bytes: it may overdraw, it need not wait
        self._send(self.stream, frames.pack(self.stream, Kind.NOTE, payload))

    async def data(self, payload: bytes) -> None:
        if len(payload) <= frames.MAX_DATA_BYTES and self._credit > 0:
            self._credit -= len(payload)
            self._send(self.stream, frames.pack(self.stream, Kind.DATA, payload))
            return
        for piece in cut(payload):
            if len(piece) > frames.MAX_CONTENT_BYTES:
                raise ApiError("upstream_invalid", "The model runtime sent an event over 1 MiB.")
            while self._credit <= 0:
                await self._more_credit()
            self._credit -= len(piece)
            self._send(self.stream, frames.pack(self.stream, Kind.DATA, piece))

    async def _more_credit(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def add_credit(self, size: int) -> None:
        """Raises FrameError for more than was sent: credit without end would be memory without end."""
        if size > INITIAL_CREDIT - self._credit:
            raise FrameError("a CREDIT for more than was sent")
        self._credit += size
        if self._credit > 0 and self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def cut(payload: bytes) -> Iterator[bytes]:
    """Pieces of about MAX_DATA_BYTES that end where an event ends; one larger event stays whole up to a frame's
    limit. ``Responder.data`` sends each of them whole or not at all."""
    at = 0
    while at < len(payload):
        blank = payload.rfind(b"\n\n", at, at + frames.MAX_DATA_BYTES)
        if blank < 0:
            blank = payload.find(b"\n\n", at)
        end = blank + 2 if blank >= 0 else at + frames.MAX_DATA_BYTES
        yield payload[at:end]
        at = end
