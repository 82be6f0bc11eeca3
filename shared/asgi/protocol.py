"""uvicorn's HTTP/1.1 protocol with what it lacks: deadlines for headers and body, and caps on both (design §3.1, §3.6).

uvicorn 0.54 starts no timer before the first request and restarts the keep-alive one at each byte, and its httptools
parser collects headers without limit. The server's ticker calls ``sweep`` once a second; no timer per connection.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from shared.asgi.front import SECURITY_HEADERS
from shared.asgi.listener import Listener, welcome
from shared.asgi.request_id import new_id
from shared.contract.errors import ApiError

# RFC 9110 §4.1 recommends at least 8,000 octets; nothing here has a query worth more.
MAX_URL_BYTES = 8 << 10

_IDLE, _HEADERS, _BODY, _ANSWER = range(4)


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds, bytes and counts for one connection. Defaults: issue "The pair answers", reliability §2.2."""

    header_timeout: float = 10.0
    body_timeout: float = 20.0
    header_bytes: int = 16 << 10
    headers: int = 64


class DeadlineProtocol(HttpToolsProtocol):
    """One connection, which came in by ``listener``; the rest is uvicorn's own."""

    def __init__(self, listener: Listener, limits: Limits, **own: Any) -> None:
        # uvicorn copies what each request's state begins with, and hands it on where a WebSocket begins.
        super().__init__(app_state={"listener": listener.rights, "connection": {}}, **own)
        self.listener = listener
        self.limits = limits
        self._refused = False

    def connection_made(self, transport: Any) -> None:
        if welcome(transport, self.listener):
            super().connection_made(transport)
            self._begin_headers()
        else:
            self.transport = transport
            self._refused = True

    def _begin_headers(self) -> None:
        self._stage = _HEADERS
        self._since = self.loop.time()
        self._header_bytes = 0

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        if self._stage == _IDLE:
            self._begin_headers()
        if self._stage in (_HEADERS, _BODY):
            self._header_bytes += len(data)
        super().data_received(data)
        if self._stage in (_HEADERS, _BODY) and self._header_bytes > self.limits.header_bytes and not self._refused:
            self._refuse(_headers_too_large(self.limits))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._stage != _HEADERS:
            self._begin_headers()
        self.scope["extensions"] = {"hearthlink.abort": {"abort": self.transport.abort}}

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > MAX_URL_BYTES and not self._refused:
            self._refuse(ApiError("uri_too_long", f"The URL is over {MAX_URL_BYTES} bytes."))

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._stage != _BODY:  # a trailer changes nothing any more: the request has been judged by its headers
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._refused:
            return
        size = sum(len(name) + len(value) for name, value in self.headers)
        if len(self.headers) > self.limits.headers or size > self.limits.header_bytes:
            self._refuse(_headers_too_large(self.limits))
            return
        self._stage = _BODY
        self._since = self.loop.time()
        self._header_bytes = 0
        super().on_headers_complete()
        if (cycle := self.cycle) is not None and cycle.scope is self.scope:  # not a WebSocket's handshake
            self.scope.setdefault("state", {})["write"] = cycle.send

    def on_body(self, body: bytes) -> None:
        self._header_bytes = 0  # counts chunk extensions and trailers from here on
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if not self._refused:
            self._stage = _ANSWER
            super().on_message_complete()

    def on_response_complete(self) -> None:
        if self._stage == _ANSWER:
            self._stage = _IDLE
        super().on_response_complete()

    def sweep(self, now: float) -> None:
        """Close the connection when its headers or body are overdue. The request itself, if it runs, sees a
        disconnect."""
        waited = now - self._since
        answered = self.cycle is None or self.cycle.response_complete
        if self._stage == _HEADERS and waited > self.limits.header_timeout and answered:
            self._refuse(ApiError("request_timeout", f"No complete request within {self.limits.header_timeout:g} s."))
        elif self._stage == _BODY and waited > self.limits.body_timeout:
            if self.cycle.response_started:
                self.transport.abort()  # refused long ago; what still trickles in is of no use to anybody
            else:
                self._refuse(ApiError("request_timeout", f"No complete body within {self.limits.body_timeout:g} s."))

    def send_400_response(self, msg: str) -> None:
        self._refuse(ApiError("invalid_request", "This is not a valid HTTP request."))

    def _refuse(self, error: ApiError) -> None:
        self._refused = True
        if self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete:
            self.transport.abort()  # an answer is on its way, and nothing may look like a part of it
            return
        request_id = new_id()
        body = error.envelope(request_id)
        headers = [
            *SECURITY_HEADERS,
            (b"x-request-id", request_id.encode()),
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
        ]
        lines = b"".join(b"%s: %s\r\n" % pair for pair in headers)
        if not self.transport.is_closing():
            self.transport.write(STATUS_LINE[error.status] + lines + b"\r\n" + body)
            self.transport.close()


def _headers_too_large(limits: Limits) -> ApiError:
    return ApiError("headers_too_large", f"At most {limits.headers} headers of {limits.header_bytes} bytes together.")
