"""Server-sent events (WHATWG HTML §9.2), with no I/O: take any slice, give whole events.

Two readers for two needs. ``Decoder`` parses fields as the standard says (LF, CR, CRLF, BOM, comments, several data
lines). ``Framer`` only finds where whole events end, for the relay that passes bytes as they came.
"""

from __future__ import annotations

from dataclasses import dataclass

# One event of a chat is some hundred bytes; a tool call can hold a document. Past this the peer is broken (design
# §3.8).
MAX_EVENT_BYTES = 1 << 20


class SSEError(ValueError):
    """An event or line longer than the limit: the stream cannot be trusted any more."""


@dataclass(frozen=True, slots=True)
class Event:
    """One dispatched event. ``event`` is "" when unnamed; ``error`` is the text of a non-standard ``error:`` field
    (llama.cpp builds of 2025 wrote one)."""

    data: str
    event: str = ""
    id: str | None = None
    error: str | None = None


def encode(data: str | bytes, event: str | None = None) -> bytes:
    """Frame ``data``, which must hold no line break (JSON never does), as one event."""
    payload = data.encode() if isinstance(data, str) else data
    return (b"event: %s\ndata: %s\n\n" % (event.encode(), payload)) if event else b"data: %s\n\n" % payload


class Decoder:
    """Incremental decoder. ``feed`` any slice; events come out as soon as their blank line is there.

    Raises SSEError past ``limit`` bytes in one event. What is left at the end without a blank line is dropped, as the
    standard says. Cost is linear in the bytes fed.
    """

    def __init__(self, limit: int = MAX_EVENT_BYTES) -> None:
        self._limit = limit
        self._parts: list[bytes] = []  # pieces of the unfinished line, joined once
        self._pending = 0
        self._after_cr = False
        self._at_start = True
        self._reset()

    def _reset(self) -> None:
        self._data: list[str] = []
        self._size = 0
        self._event = ""
        self._error: str | None = None
        self._id: str | None = None

    def feed(self, chunk: bytes) -> list[Event]:
        found: list[Event] = []
        if not chunk:
            return found
        if self._after_cr and chunk[:1] == b"\n":
            chunk = chunk[1:]
        lines = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        self._after_cr = chunk[-1:] == b"\r"
        for line in lines[:-1]:
            if self._parts:
                self._parts.append(line)
                line = b"".join(self._parts)
                self._parts.clear()
                self._pending = 0
            if (event := self._line(line)) is not None:
                found.append(event)
        if lines[-1]:
            self._parts.append(lines[-1])
            self._pending += len(lines[-1])
            if self._pending + self._size > self._limit:
                raise SSEError(f"an event is longer than {self._limit} bytes")
        return found

    def _line(self, line: bytes) -> Event | None:
        if self._at_start:
            self._at_start = False
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not line:
            event = None
            if self._data or self._error is not None:
                event = Event("\n".join(self._data), self._event, self._id, self._error)
            self._reset()
            return event
        self._size += len(line)
        if self._size > self._limit:
            raise SSEError(f"an event is longer than {self._limit} bytes")
        name, _, value = line.decode("utf-8", "replace").partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "event":
            self._event = value
        elif name == "id" and "\0" not in value:
            self._id = value
        elif name == "error":
            self._error = value
        return None


def read_event(block: bytes) -> list[Event]:
    """What the lines of one whole event, LF-framed and without its blank line, dispatch: one event or, for comments,
    none. Raises SSEError as ``Decoder``."""
    if block.startswith(b"data: ") and b"\n" not in block and len(block) <= MAX_EVENT_BYTES:
        return [Event(block[6:].decode("utf-8", "replace"))]
    return Decoder().feed(block + b"\n\n")


class Framer:
    """Cuts a stream of any slices at its blank lines, and changes nothing else but CR and CRLF into LF.

    For a relay that passes bytes on: ``feed`` gives all whole events so far as one piece that ends in a blank line, or
    b"". Raises SSEError past ``limit`` bytes without a blank line. A BOM stays; linear in the bytes fed.
    """

    def __init__(self, limit: int = MAX_EVENT_BYTES) -> None:
        self._limit = limit
        self._rest = bytearray()
        self._after_cr = False

    def passes(self, chunk: bytes) -> bool:
        """Whether ``feed`` would give ``chunk`` back as it is; changes nothing."""
        return (
            not self._rest
            and not self._after_cr
            and chunk.endswith(b"\n\n")
            and b"\r" not in chunk
            and len(chunk) <= self._limit
        )

    def feed(self, chunk: bytes) -> bytes:
        if self.passes(chunk):
            return chunk
        if self._after_cr or b"\r" in chunk:
            chunk = self._to_lf(chunk)
        if not self._rest and chunk.endswith(b"\n\n"):
            return self._bounded(chunk)
        searched = max(0, len(self._rest) - 1)
        self._rest += chunk
        end = self._rest.rfind(b"\n\n", searched) + 2
        if end < 2:
            end = 0
        whole = bytes(self._rest[:end])
        del self._rest[:end]
        if len(self._rest) > self._limit:
            raise SSEError(f"an event is longer than {self._limit} bytes")
        return self._bounded(whole)

    def _bounded(self, whole: bytes) -> bytes:
        if len(whole) > self._limit and max(map(len, whole.split(b"\n\n"))) > self._limit:
            raise SSEError(f"an event is longer than {self._limit} bytes")
        return whole

    def _to_lf(self, chunk: bytes) -> bytes:
        if self._after_cr and chunk[:1] == b"\n":  # the CR before it already ended the line
            chunk = chunk[1:]
            self._after_cr = False
        if chunk:
            self._after_cr = chunk.endswith(b"\r")
        return chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
