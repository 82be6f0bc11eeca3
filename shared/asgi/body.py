"""Request bodies: JSON only, bounded while reading. Their deadline is kept by ``asgi.protocol``."""

from __future__ import annotations

from shared.asgi.types import Receive, Scope, header
from shared.contract.errors import ApiError


class ClientLeft(Exception):
    """The caller closed the connection. Nobody is left to answer."""


def check_json(scope: Scope) -> None:
    """Refuse what is not plain JSON, before a byte is read. Raises ApiError ``unsupported_media_type``."""
    kind = (header(scope, b"content-type") or b"").split(b";", 1)[0].strip().lower()
    if kind != b"application/json":
        raise ApiError("unsupported_media_type", "Send the body as JSON with Content-Type: application/json.")
    encoding = header(scope, b"content-encoding")
    if encoding is not None and encoding.strip().lower() != b"identity":
        raise ApiError("unsupported_media_type", "Compressed request bodies are not accepted. Send plain JSON.")


async def read_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """The whole body, at most ``limit`` bytes.

    Raises ApiError ``payload_too_large`` as soon as the limit is passed (a declared length counts before reading), and
    ClientLeft, also when the body was overdue and the connection has been answered 408 and closed.
    """
    declared = header(scope, b"content-length")
    if declared is not None and (not declared.isdigit() or int(declared) > limit):
        raise _too_large(limit)
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeft
        part = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise _too_large(limit)
        if part:
            parts.append(part)
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)


async def discard_body(receive: Receive, limit: int) -> None:
    """Read the body, or ``limit`` bytes of it, away. Before an answer that closes the connection: closing on what is
    still unread resets it, and the caller may lose the answer. Raises ClientLeft as ``read_body``."""
    size = 0
    while size <= limit:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeft
        if not message.get("more_body", False):
            return
        size += len(message.get("body", b""))


def _too_large(limit: int) -> ApiError:
    return ApiError("payload_too_large", f"The body is over {limit} bytes. Shorten the conversation.")
