"""Whole answers, sent in two ASGI messages. Streams have their own path: they never pass through here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from shared.asgi.types import Headers, Send
from shared.contract.errors import ApiError

JSON = b"application/json"


async def send_bytes(send: Send, status: int, body: bytes, content_type: bytes, headers: Headers | None = None) -> None:
    """Send a complete response."""
    length = (b"content-length", b"%d" % len(body))
    start = [(b"content-type", content_type), length, *(headers or [])]
    await send({"type": "http.response.start", "status": status, "headers": start})
    await send({"type": "http.response.body", "body": body})


async def send_json(send: Send, payload: Mapping[str, Any], status: int = 200, headers: Headers | None = None) -> None:
    """Send ``payload`` as compact JSON, never cached."""
    body = json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode()
    await send_bytes(send, status, body, JSON, [(b"cache-control", b"no-store"), *(headers or [])])


async def send_error(send: Send, error: ApiError, request_id: str, headers: Headers | None = None) -> None:
    """Send the envelope of design §3.1 with the error's own status and headers, never cached."""
    own = [(b"cache-control", b"no-store"), *error.headers(), *(headers or [])]
    await send_bytes(send, error.status, error.envelope(request_id), JSON, own)
