"""What all formats do with a runtime's bytes: cut them into events, and write events and objects of their own."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from shared.contract import sse
from shared.contract.errors import ApiError

# Bytes of the stream behind one whole answer, about 250 a token: its text is held in memory until the end.
MAX_ANSWER = 64 << 20


def whole_events(framer: sse.Framer, chunk: bytes) -> list[bytes]:
    """The events that ``chunk`` completes, without their blank lines. Raises ApiError ``upstream_invalid``."""
    try:
        events = framer.feed(chunk).split(b"\n\n")
    except sse.SSEError:
        raise ApiError("upstream_invalid", "The model runtime sent an event over 1 MiB.") from None
    return [event for event in (piece.lstrip(b"\n") for piece in events) if event]


def json_of(event: sse.Event, error_of: Callable[[object], ApiError]) -> Any:
    """What an event holds. Raises ApiError: for an error that stands beside the data, or is no JSON itself, what
    ``error_of`` makes of it; ``upstream_invalid`` for any other data that is no JSON."""
    if event.error is not None:
        raise error_of(event.error)
    try:
        return json.loads(event.data)
    except (ValueError, RecursionError):
        if event.event == "error":
            raise error_of(event.data) from None
        raise ApiError("upstream_invalid", "The model runtime sent something that is not JSON.") from None


def to_json(fields: Mapping[str, Any]) -> bytes:
    """Compact UTF-8."""
    try:
        return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:  # half a surrogate pair, cut in two by some runtimes: only an escape can hold it
        return json.dumps(fields, separators=(",", ":")).encode()
