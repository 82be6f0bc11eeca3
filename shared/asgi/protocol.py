"""uvicorn's HTTP/1.1 protocol with what it lacks: deadlines for headers and body, caps on both and on a caller's
connections, and one way to say which server is meant (design §3.1, §3.6).

uvicorn 0.54 starts no timer before the first request and restarts the keep-alive one at each byte, and its httptools
parser collects headers without limit. The server's ticker calls ``sweep`` once a second; no timer per connection.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from shared.asgi.connections import TooManyConnections
from shared.asgi.descriptors import scarce
from shared.asgi.front import SECURITY_HEADERS
from shared.asgi.listener import Listener, welcome
from shared.asgi.request_id import new_id
from shared.contract.errors import ApiError

if TYPE_CHECKING:  # only a server that takes WebSockets imports it
    from shared.asgi.websocket import WebSocketProtocol

# RFC 9110 §4.1 recommends at least 8,000 octets; nothing here has a query worth more.
MAX_URL_BYTES = 8 << 10

# A name or address, and a port (RFC 9110 §7.2, without percent-encoding, which no resolver takes). Anything else in
# Host moved the path of a URL that was made of it (CVE-2026-48710).
_HOST = re.compile(rb"(?:[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")

# Headers that decide something and have one value each: of two, a proxy in front may have read the other one.
_ONCE = frozenset({b"host", b"authorization", b"x-api-key", b"origin", b"content-type", b"content-encoding"})

# When a connection of the caller closes is not known; a second keeps one that waits quick and cheap.
_CONNECTION_RETRY_SECONDS = 1.0

# Of a body that was refused before its end: what is usual is read away, so that a caller who first sends and then reads
# gets the answer; more would be work for nothing.
_UNWANTED_BYTES = 1 << 20

# Headers of a request that has a body.
_FRAMING = frozenset({b"content-length", b"transfer-encoding"})

_IDLE, _HEADERS, _BODY, _ANSWER = range(4)


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds, bytes and counts for one connection. Defaults: issue "The pair answers", reliability §2.2."""

    header_timeout: float = 10.0
    body_timeout: float = 20.0
    header_bytes: int = 16 << 10
    headers: int = 64


# Hears of each request that was refused before it came to the app: why, and the request id that was answered.
Refused = Callable[[ApiError, str], None]


class DeadlineProtocol(HttpToolsProtocol):
    """One connection, which came in by ``listener``; the rest is uvicorn's own."""

    def __init__(self, listener: Listener, limits: Limits, refused: Refused | None = None, **own: Any) -> None:
        # uvicorn copies what each request's state begins with, and hands it on where a WebSocket begins.
        super().__init__(app_state={"listener": listener.rights, "connection": {}}, **own)
        self.listener = listener
        self.limits = limits
        self._tell = refused
        self._refused = False
        self._stage = _IDLE
        self._counts_for: str | None = None
        self._running: RequestResponseCycle | None = None

    def connection_made(self, transport: Any) -> None:
        if not welcome(transport, self.listener):
            self.transport = transport
            self._refused = True
            return
        if self.listener.rights != "ops" and scarce(transport):
            self.transport = transport
            self._refuse(ApiError("overloaded", "This server has as many connections as it can hold. Try again soon."))
            return
        try:
            self._enter(transport)
        except TooManyConnections as error:
            self.transport = transport
            text = f"{error} Close some, or send more than one request on each."
            self._refuse(ApiError("concurrency_limited", text, retry_after=_CONNECTION_RETRY_SECONDS))
            return
        super().connection_made(transport)
        self._begin_headers()

    def _enter(self, transport: Any) -> None:
        peer = transport.get_extra_info("peername")
        if self.listener.connections is not None and isinstance(peer, tuple):  # a unix socket's is no address
            self._counts_for = self.listener.connections.enter(peer[0])

    def _leave(self) -> None:
        if self.listener.connections is not None:
            self.listener.connections.leave(self._counts_for)
            self._counts_for = None

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()
        super().connection_lost(exc)
        if (running := self._running) is not None and not running.response_complete:
            running.disconnected = True  # uvicorn tells only the last of several requests
            running.message_event.set()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def handle_websocket_upgrade(self) -> None:
        if self._refused:
            return
        super().handle_websocket_upgrade()  # another protocol has the connection from here on
        socket = cast("WebSocketProtocol", self.transport.get_protocol())
        socket.begin(self.loop.time() + self.limits.header_timeout, self._leave)
        if not socket.understood:
            self._refuse(ApiError("invalid_request", "This is not a valid WebSocket handshake."))

    def _begin_headers(self) -> None:
        self._stage = _HEADERS
        self._since = self.loop.time()
        self._header_bytes = 0
        self._unwanted = 0

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
        size, twice = 0, b""
        once: dict[bytes, bytes] = {}
        for name, value in self.headers:
            size += len(name) + len(value)
            if name in _ONCE:
                twice = name if name in once else twice
                once[name] = value
        if len(self.headers) > self.limits.headers or size > self.limits.header_bytes:
            self._refuse(_headers_too_large(self.limits))
            return
        assert self.parser is not None  # it is what calls
        upgrading = self.parser.should_upgrade()
        if twice:
            fault = f"The header {twice.decode().title()} is there more than once."
        else:
            fault = _authority_fault(self.url, once.get(b"host"), self.parser.get_http_version())
        if fault is None and upgrading:
            fault = self._upgrade_fault()
        if fault is not None:
            self._refuse(ApiError("invalid_request", fault))
            return
        self._stage = _BODY
        self._since = self.loop.time()
        self._header_bytes = 0
        super().on_headers_complete()
        if (cycle := self.cycle) is not None and cycle.scope is self.scope:  # not a WebSocket's handshake
            self.scope.setdefault("state", {})["write"] = cycle.send
            if upgrading:
                cycle.keep_alive = False  # which protocol comes next on this connection, nobody can tell

    def _upgrade_fault(self) -> str | None:
        """What is wrong with a request that offers to go on in another protocol, a WebSocket or one that we do not
        speak. The parser takes what follows its headers for that protocol, or for a request of its own."""
        if any(name in _FRAMING for name, _ in self.headers):
            return "A request with a body cannot change the protocol: send it without the header Upgrade."
        if self._owes_answer:
            return "A request that changes the protocol cannot follow one that has no answer yet."
        return None

    def on_body(self, body: bytes) -> None:
        self._header_bytes = 0  # counts chunk extensions and trailers from here on
        if self._refused:
            return
        super().on_body(body)
        if self.cycle is not None and self.cycle.response_complete:
            self._unwanted += len(body)
            if self._unwanted > _UNWANTED_BYTES:
                self.transport.pause_reading()  # ``sweep`` closes; whoever still writes can read the answer until then

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
        elif self._stage == _BODY and self._unwanted > _UNWANTED_BYTES:
            self.transport.close()
        elif self._stage == _BODY and waited > self.limits.body_timeout:
            if self.cycle.response_started:
                self.transport.abort()  # refused long ago; what still trickles in is of no use to anybody
            else:
                self._refuse(ApiError("request_timeout", f"No complete body within {self.limits.body_timeout:g} s."))

    def send_400_response(self, msg: str) -> None:
        self._refuse(ApiError("invalid_request", "This is not a valid HTTP request."))

    @property
    def _owes_answer(self) -> bool:
        """Whether an earlier request has to be answered yet. With ``_BODY`` the last one is the request itself."""
        return self.cycle is not None and not self.cycle.response_complete and self._stage != _BODY

    def _refuse(self, error: ApiError) -> None:
        self._refused = True
        if self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete:
            self.transport.abort()  # an answer is on its way, and nothing may look like a part of it
            return
        if self._owes_answer:
            self._record(error, new_id())
            self.cycle.keep_alive = False  # what is written now would look like that answer; it is the last
            return
        if self.pipeline:
            self.transport.abort()
            return
        request_id = new_id()
        self._record(error, request_id)
        body = error.envelope(request_id)
        headers = [
            *SECURITY_HEADERS,
            *error.headers(),
            (b"x-request-id", request_id.encode()),
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
        ]
        lines = b"".join(b"%s: %s\r\n" % pair for pair in headers)
        if not self.transport.is_closing():
            self.transport.write(STATUS_LINE[error.status] + lines + b"\r\n" + body)
            self.transport.close()

    def _record(self, error: ApiError, request_id: str) -> None:
        """So that what became of each request is known once: by the app, if that has it."""
        if self._stage == _BODY and self.cycle is not None:
            self.cycle.scope.setdefault("state", {}).setdefault("error", error)
        elif self._tell is not None and (self._stage != _HEADERS or self._header_bytes):
            self._tell(error, request_id)  # a connection on which nothing came was no request


def _authority_fault(url: bytes, host: bytes | None, version: str) -> str | None:
    """What is wrong with how the request says which server it means: by Host, and nothing else. Where two things say
    it, a proxy in front may have believed the other one."""
    if not url.startswith(b"/"):
        return "The request line must hold a path that begins with /, such as /v1/chat, and no whole URL."
    if host is None:
        return None if version == "1.0" else "The header Host is missing."
    return None if _HOST.fullmatch(host) else "The header Host is not the name or address of a server."


def _headers_too_large(limits: Limits) -> ApiError:
    return ApiError("headers_too_large", f"At most {limits.headers} headers of {limits.header_bytes} bytes together.")
