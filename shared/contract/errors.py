"""Every error a caller can meet, named once.

A code becomes a status here, travels over the link as ``to_wire()`` and comes back as the same error with
``from_wire()``.

    4xx  the caller can mend it          429 is about this caller
    5xx  ours                            503 is about us, and comes with Retry-After

Codes with ``in_stream`` exist only after the 200 has left; their status is what a non-streaming answer would carry.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True, slots=True)
class ErrorKind:
    """Status, OpenAI error type, and whether the code exists only inside a stream."""

    status: int
    type: str
    in_stream: bool = False


_REQUEST = "invalid_request_error"
_AUTH = "authentication_error"
_PERMISSION = "permission_error"
_NOT_FOUND = "not_found_error"
_LIMIT = "rate_limit_error"
_SERVER = "server_error"

CODES: Mapping[str, ErrorKind] = MappingProxyType(
    {
        "invalid_json": ErrorKind(400, _REQUEST),
        "invalid_request": ErrorKind(400, _REQUEST),
        "context_length_exceeded": ErrorKind(400, _REQUEST),
        "missing_token": ErrorKind(401, _AUTH),
        "invalid_token": ErrorKind(401, _AUTH),
        "token_expired": ErrorKind(401, _AUTH),
        "token_revoked": ErrorKind(401, _AUTH),
        "token_exhausted": ErrorKind(401, _AUTH),
        "origin_not_allowed": ErrorKind(403, _PERMISSION),
        "address_not_allowed": ErrorKind(403, _PERMISSION),
        "insufficient_scope": ErrorKind(403, _PERMISSION),
        "model_not_allowed": ErrorKind(403, _PERMISSION),
        "chat_type_not_allowed": ErrorKind(403, _PERMISSION),
        "not_found": ErrorKind(404, _NOT_FOUND),
        "model_not_found": ErrorKind(404, _NOT_FOUND),
        "chat_type_not_found": ErrorKind(404, _NOT_FOUND),
        "not_supported": ErrorKind(404, _NOT_FOUND),
        "method_not_allowed": ErrorKind(405, _REQUEST),
        "request_timeout": ErrorKind(408, _REQUEST),
        "resume_expired": ErrorKind(410, _REQUEST),
        "payload_too_large": ErrorKind(413, _REQUEST),
        "uri_too_long": ErrorKind(414, _REQUEST),
        "unsupported_media_type": ErrorKind(415, _REQUEST),
        "rate_limited": ErrorKind(429, _LIMIT),
        "concurrency_limited": ErrorKind(429, _LIMIT),
        "quota_exceeded": ErrorKind(429, _LIMIT),
        "headers_too_large": ErrorKind(431, _REQUEST),
        "internal_error": ErrorKind(500, _SERVER),
        "runtime_error": ErrorKind(502, _SERVER),
        "upstream_invalid": ErrorKind(502, _SERVER),
        "node_unavailable": ErrorKind(503, _SERVER),
        "overloaded": ErrorKind(503, _SERVER),
        "draining": ErrorKind(503, _SERVER),
        "model_loading": ErrorKind(503, _SERVER),
        "maintenance": ErrorKind(503, _SERVER),
        "first_token_timeout": ErrorKind(504, _SERVER),
        "upstream_incomplete": ErrorKind(502, _SERVER, in_stream=True),
        "upstream_stalled": ErrorKind(504, _SERVER, in_stream=True),
        "slow_consumer": ErrorKind(408, _SERVER, in_stream=True),
        "server_draining": ErrorKind(503, _SERVER, in_stream=True),
    }
)

# What stands for a code of streams where there is still a status to give.
_OUTSIDE_STREAMS: Mapping[str, str] = MappingProxyType(
    {
        "upstream_incomplete": "runtime_error",
        "upstream_stalled": "runtime_error",
        "slow_consumer": "request_timeout",
        "server_draining": "draining",
    }
)

# Seconds a 503 asks the caller to wait when nobody knows better: one redial or model load is usually over by then.
_RETRY_503_SECONDS = 2.0
# A peer that asks for more than a day is broken; SDKs would wait for it.
_MAX_RETRY_SECONDS = 86_400


class ApiError(Exception):
    """An error with a code of this contract. ``message`` says what happened, why, and what to do; never prompt text.

    ``retry_after`` is in seconds. ``should_retry=False`` tells SDKs that waiting will not help soon
    (``x-should-retry``, honoured by the OpenAI SDKs).
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_after: float | None = None,
        should_retry: bool | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param
        self.kind = CODES[code]
        self.retry_after = retry_after if retry_after is not None or self.status != 503 else _RETRY_503_SECONDS
        self.should_retry = should_retry
        self.extra_headers: list[tuple[bytes, bytes]] = []  # the raiser's own, such as x-ratelimit-*

    @property
    def status(self) -> int:
        return self.kind.status

    def outside_stream(self) -> ApiError:
        """The error for an answer that has not begun, or has no stream: itself, or what stands for a code of
        streams."""
        if not self.kind.in_stream:
            return self
        return ApiError(_OUTSIDE_STREAMS[self.code], self.message, param=self.param, should_retry=self.should_retry)

    def envelope(self, request_id: str) -> bytes:
        """The JSON body of design §3.1, compact UTF-8."""
        error = {"message": self.message, "type": self.kind.type, "code": self.code, "param": self.param}
        return json.dumps(
            {"error": error, "request_id": request_id}, ensure_ascii=False, separators=(",", ":")
        ).encode()

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Response headers the error itself asks for: Retry-After (whole seconds, rounded up), x-should-retry."""
        found = list(self.extra_headers)
        if self.status == 401:
            challenge = b'Bearer error="invalid_token"' if self.code != "missing_token" else b"Bearer"
            found.append((b"www-authenticate", challenge))
        if self.retry_after is not None and self.status in (429, 503):
            found.append((b"retry-after", b"%d" % max(1, -int(-self.retry_after // 1))))
        if self.should_retry is not None:
            found.append((b"x-should-retry", b"true" if self.should_retry else b"false"))
        return found

    def to_wire(self) -> dict[str, Any]:
        """As the payload of an ERROR frame; ``from_wire`` is its inverse."""
        wire: dict[str, Any] = {"code": self.code, "message": self.message}
        for name in ("param", "retry_after", "should_retry"):
            if (value := getattr(self, name)) is not None:
                wire[name] = value
        return wire

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any]) -> ApiError:
        """Rebuild the peer's error. An unknown code (a newer peer) becomes ``runtime_error``; nothing is raised."""
        code = wire.get("code")
        message = wire.get("message")
        retry_after = wire.get("retry_after")
        if not isinstance(retry_after, int | float) or not 0 <= retry_after <= _MAX_RETRY_SECONDS:
            retry_after = None
        should_retry = wire.get("should_retry")
        param = wire.get("param")
        return cls(
            code if isinstance(code, str) and code in CODES else "runtime_error",
            message if isinstance(message, str) else "The node reported an error without saying which.",
            param=param if isinstance(param, str) else None,
            retry_after=None if retry_after is None else float(retry_after),
            should_retry=should_retry if isinstance(should_retry, bool) else None,
        )
