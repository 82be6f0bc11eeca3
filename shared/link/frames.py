"""Frames of the link, with no I/O.

    message = frame+                 one WebSocket binary message: 256 KiB at most, or one larger frame alone
    frame   = stream u32 · kind u8 · length u32 · payload        (network byte order)

Stream 0 is the link itself. NOTE, DATA and the body inside OPEN are raw bytes, every other payload is a JSON object.
An unknown kind is kept for the session to ignore, so that a newer peer can say more; anything else that does not add
up raises FrameError, and the session closes the link.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from enum import IntEnum
from typing import Any

_HEADER = struct.Struct("!IBI")
_LENGTH = struct.Struct("!I")
HEADER_BYTES = _HEADER.size

# Many small frames share a message up to this size: one write, yet short enough that control frames never wait long.
MAX_MESSAGE_BYTES = 256 << 10
# What a piece of an answer is cut to. One event larger than this travels alone.
MAX_DATA_BYTES = 64 << 10
# The largest event (contract.sse.MAX_EVENT_BYTES), and room for its line ends and for what the node writes around it.
MAX_CONTENT_BYTES = (1 << 20) + (64 << 10)
_MAX_JSON_BYTES = 1 << 20
_MAX_HEAD_BYTES = 64 << 10
# The largest body an edge may be set to accept (design §3.8) and its head.
MAX_OPEN_BYTES = (8 << 20) + _MAX_HEAD_BYTES + _LENGTH.size
# Largest message a peer may send: one OPEN alone.
MAX_WIRE_BYTES = MAX_OPEN_BYTES + HEADER_BYTES


class FrameError(ValueError):
    """The peer sent something that is not a frame of this protocol."""


class Kind(IntEnum):
    HELLO = 1
    SNAPSHOT = 2
    OPEN = 3
    HEAD = 4
    NOTE = 5
    DATA = 6
    END = 7
    ERROR = 8
    CANCEL = 9
    STOP = 10
    CREDIT = 11
    PING = 12
    PONG = 13
    GOAWAY = 14


_LIMITS = {Kind.OPEN: MAX_OPEN_BYTES, Kind.DATA: MAX_CONTENT_BYTES, Kind.NOTE: MAX_CONTENT_BYTES}


def pack(stream: int, kind: int, payload: bytes = b"") -> bytes:
    """One frame."""
    return _HEADER.pack(stream, kind, len(payload)) + payload


def pack_json(stream: int, kind: int, payload: Mapping[str, Any]) -> bytes:
    return pack(stream, kind, json.dumps(payload, separators=(",", ":"), ensure_ascii=False).encode())


def pack_open(stream: int, head: Mapping[str, Any], body: bytes) -> bytes:
    """OPEN: u32 length of the JSON head, the head, the caller's body as it came."""
    text = json.dumps(head, separators=(",", ":"), ensure_ascii=False).encode()
    if len(text) > _MAX_HEAD_BYTES:
        raise FrameError(f"an OPEN head of {len(text)} bytes is over {_MAX_HEAD_BYTES}")
    return pack(stream, Kind.OPEN, _LENGTH.pack(len(text)) + text + body)


def unpack(message: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yield (stream, kind, payload) of each frame in a message. Raises FrameError; frames before the fault are
    given."""
    at, size = 0, len(message)
    if not size:
        raise FrameError("an empty message")
    while at < size:
        if at + HEADER_BYTES > size:
            raise FrameError("a message ends inside a frame's header")
        stream, kind, length = _HEADER.unpack_from(message, at)
        at += HEADER_BYTES
        if length > _LIMITS.get(kind, _MAX_JSON_BYTES):
            raise FrameError(f"a frame of kind {kind} with {length} bytes is too long")
        if at + length > size:
            raise FrameError("a frame is longer than its message")
        if size > MAX_MESSAGE_BYTES and HEADER_BYTES + length < size:
            raise FrameError(f"a message of several frames with {size} bytes is over {MAX_MESSAGE_BYTES}")
        yield stream, kind, message[at : at + length]
        at += length


def read_json(payload: bytes) -> dict[str, Any]:
    try:
        value = json.loads(payload)
    except (ValueError, RecursionError):
        raise FrameError("a control frame is not JSON") from None
    if not isinstance(value, dict):
        raise FrameError("a control frame is not a JSON object")
    return value


def read_open(payload: bytes) -> tuple[dict[str, Any], bytes]:
    """(head, body) of an OPEN payload."""
    if len(payload) < _LENGTH.size:
        raise FrameError("an OPEN without a head")
    (length,) = _LENGTH.unpack_from(payload)
    end = _LENGTH.size + length
    if length > _MAX_HEAD_BYTES or end > len(payload):
        raise FrameError("an OPEN head longer than its frame")
    return read_json(payload[_LENGTH.size : end]), payload[end:]
