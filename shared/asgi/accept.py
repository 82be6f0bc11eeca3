"""Does the caller want a stream?"""

from __future__ import annotations

from shared.asgi.types import Scope, header


def wants_stream(scope: Scope, asked: bool | None) -> bool:
    """The body decides; without a word there, ``Accept: text/event-stream`` does."""
    return asked if asked is not None else b"text/event-stream" in (header(scope, b"accept") or b"")
