"""Does the caller want a stream?"""

from __future__ import annotations

from shared.asgi.types import Scope, header


def wants_stream(scope: Scope, asked: bool | None, otherwise: bool = False) -> bool:
    """The body decides; without a word there, an ``Accept`` that names ``text/event-stream`` or ``application/json``
    does; ``otherwise`` it is as the owner wants it."""
    if asked is not None:
        return asked
    accept = header(scope, b"accept") or b""
    return b"text/event-stream" in accept or (otherwise and b"application/json" not in accept)
