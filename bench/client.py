"""One client connection of the load generator, and the notes it takes."""

from __future__ import annotations

import asyncio
import time
from array import array
from dataclasses import dataclass, field
from typing import Any, cast

_STAMP = b'"@'  # as bench.upstream writes it, 16 digits follow


@dataclass(frozen=True, slots=True)
class Wave:
    """``requests`` requests, either by ``workers`` that each send the next when one is answered (their starts spread
    over ``stagger`` seconds), or at ``rate`` per second whatever is running. A good answer has ``status`` and, when
    ``events`` is not None, that many stamped events and ``[DONE]``. ``body`` is JSON text."""

    body: str
    requests: int
    workers: int = 0
    rate: float = 0.0
    stagger: float = 0.0
    status: int = 200
    events: int | None = None
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Seen:
    """What became of one wave. Times in milliseconds: ``first`` from request to first event (or whole answer),
    ``lag`` from an event's stamp to its receipt."""

    good: int = 0
    bad: int = 0
    error: str = ""
    events: int = 0
    first: array[float] = field(default_factory=lambda: array("d"))
    lag: array[float] = field(default_factory=lambda: array("d"))

    def summary(self) -> dict[str, Any]:
        percentiles = {
            f"{name}_{label}": percentile(values, share)
            for name, values in (("first", self.first), ("lag", self.lag))
            for label, share in (("p50", 0.5), ("p99", 0.99))
        }
        return {"good": self.good, "bad": self.bad, "error": self.error, "events": self.events, **percentiles}


def percentile(values: array[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[int(share * (len(ordered) - 1))] if ordered else float("nan")


class Answer(asyncio.Protocol):
    """One keep-alive connection; reads chunked or counted answers and the stamps in them."""

    def __init__(self) -> None:
        self._done: asyncio.Future[None] | None = None
        self._rest = b""
        self.open = False
        self.closing = False  # the server said that this answer is the connection's last

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.open = True

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = False
        self._finish()

    async def ask(self, request: bytes, wave: Wave, seen: Seen) -> None:
        """Send one request and wait for the end of its answer, which is noted in ``seen``."""
        self._seen = seen
        self._in_body = self._ended = self._terminated = False
        self._status = self._count = 0
        self._missing = -1  # bytes of a counted body still to come; -1: chunked
        self._text = b""
        self._rest = b""
        self._done = asyncio.get_running_loop().create_future()
        self._sent = time.perf_counter()
        self.transport.write(request)
        await self._done
        if self._ended and self._status == wave.status and self._complete(wave):
            seen.good += 1
            if wave.events is None:
                seen.first.append((time.perf_counter() - self._sent) * 1e3)
        else:
            seen.bad += 1
            ending = "ended" if self._ended else "cut"
            seen.error = seen.error or f"{self._status}, {self._count} events, {ending}: {self._text[-300:]!r}"

    def _complete(self, wave: Wave) -> bool:
        return wave.events is None or (self._count == wave.events and self._terminated)

    def _finish(self) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_result(None)

    def data_received(self, data: bytes) -> None:
        now = time.time_ns() // 1000
        if self._rest:
            data = self._rest + data
        if not self._in_body:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                self._rest = data
                return
            self._head(data[:end])
            data = data[end + 4 :]
        self._rest = b""
        if self._missing < 0:
            self._chunks(data, now)
        else:
            self._missing -= len(data)
            self._text += data
            self._ended = self._missing <= 0
        if self._ended:
            self._finish()

    def _head(self, head: bytes) -> None:
        self._in_body = True
        self._status = int(head[9:12])
        lower = head.lower()
        self.closing = b"\r\nconnection: close" in lower
        if (at := lower.find(b"\r\ncontent-length:")) >= 0:
            self._missing = int(lower[at + 17 :].split(b"\r\n", 1)[0])
            self._ended = self._missing == 0

    def _chunks(self, data: bytes, now: int) -> None:
        """Take every whole HTTP chunk; the rest waits for the next read."""
        at, end = 0, len(data)
        while at < end:
            line = data.find(b"\r\n", at)
            if line < 0:
                break
            stop = line + 4 + int(data[at:line], 16)
            if stop > end:
                break
            if stop == line + 4:
                self._ended = True
                return
            self._events(data[line + 2 : stop - 2], now)
            at = stop
        self._rest = data[at:]

    def _events(self, piece: bytes, now: int) -> None:
        """Note the stamps of whole events; what is cut inside an event waits in ``_text``."""
        if self._text:
            piece = self._text + piece
        whole = piece.rfind(b"\n\n") + 2
        self._text = piece[whole:] if whole > 1 else piece
        at = piece.find(_STAMP, 0, whole)
        while at >= 0:
            if not self._count:
                self._seen.first.append((time.perf_counter() - self._sent) * 1e3)
            self._count += 1
            self._seen.events += 1
            self._seen.lag.append((now - int(piece[at + 2 : at + 18])) / 1e3)
            at = piece.find(_STAMP, at + 18, whole)
        if piece.find(b"data: [DONE]", 0, whole) >= 0:
            self._terminated = True
        elif piece.find(b'"error"', 0, whole) >= 0:
            self._seen.error = self._seen.error or piece[:300].decode("utf-8", "replace")
