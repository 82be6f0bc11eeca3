"""Request ids: the caller's own when it is safe to log and to echo, else a new one."""

from __future__ import annotations

import re
import secrets

from shared.asgi.types import Scope, header

_SAFE = re.compile(rb"[A-Za-z0-9_-]{8,64}")


def new_id() -> str:
    """128 random bits, as 22 letters of the URL-safe alphabet."""
    return secrets.token_urlsafe(16)


def request_id_of(scope: Scope) -> str:
    given = header(scope, b"x-request-id")
    if given is not None and _SAFE.fullmatch(given):
        return given.decode("ascii")
    return new_id()
