"""The outer layers of both apps.

Front       request id and security headers on every response; tells ``finished`` how each request ended
Envelope    one JSON shape for whatever went wrong inside
"""

from __future__ import annotations

import time
from collections.abc import Callable

from loguru import logger
from starlette.datastructures import State
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.websockets import WebSocket

from shared.asgi.body import ClientLeft
from shared.asgi.request_id import request_id_of
from shared.asgi.responses import send_error
from shared.asgi.types import App, Headers, Message, Receive, Scope, Send, header
from shared.contract.errors import ApiError

SECURITY_HEADERS = (
    (b"x-frame-options", b"DENY"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)

_NO_WEBSOCKET = "There is no WebSocket here. The API is plain HTTP, see docs/api.md."

# Called once per HTTP request: scope, status (0: none was sent), seconds. ``scope["state"]["error"]`` is what was
# raised.
Finished = Callable[[Scope, int, float], None]


class Front:
    """Outermost. Sets ``scope["state"]["request_id"]``."""

    def __init__(self, app: App, finished: Finished | None = None) -> None:
        self._app = app
        self._finished = finished

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = request_id_of(scope)
        scope["state"]["request_id"] = request_id
        started = time.perf_counter()
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                added = scope["state"].get("headers", ())
                ids = (b"x-request-id", request_id.encode())
                message["headers"] = [*message["headers"], *added, *SECURITY_HEADERS, ids]
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        finally:
            if self._finished is not None:
                self._finished(scope, status, time.perf_counter() - started)


def add_headers(scope: Scope, headers: Headers) -> None:
    """Send ``headers`` with whatever answers this request, an error too. Called before the answer begins."""
    scope["state"].setdefault("headers", []).extend(headers)


class Envelope:
    """Turns ApiError and Starlette's HTTPException into the body of design §3.1; anything else is logged with its trace
    and answered with 500. After the first byte there is no status left: the connection is dropped, so that half an
    answer never looks whole."""

    def __init__(self, app: App) -> None:
        self._app = app
        self.state = State()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Where Starlette's routes look for their application: with one they raise HTTPException instead of answering
        # in plain text, and slowapi finds its limiter in ``state``.
        scope["app"] = self
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def watched_send(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, watched_send)
            return
        except ClientLeft:
            return
        except ApiError as raised:
            error = raised
        except HTTPException as raised:
            error = _from_http(raised, scope)
        except Exception as raised:
            request_id = scope["state"]["request_id"]
            logger.opt(exception=raised).error("{} {} failed, request {}", scope["method"], scope["path"], request_id)
            error = ApiError("internal_error", "Something broke here. The log has this request's id.")
        scope["state"]["error"] = error
        if started:
            abort(scope)
        else:
            await send_error(send, error, scope["state"]["request_id"])


def _from_http(raised: HTTPException, scope: Scope) -> ApiError:
    if raised.status_code == 405:
        error = ApiError("method_not_allowed", f"This route does not take {scope['method']}.")
        if allow := (raised.headers or {}).get("Allow"):
            error.extra_headers.append((b"allow", allow.encode()))
        return error
    return no_such_route(scope)


def no_such_route(scope: Scope) -> ApiError:
    """What whoever asks for a path that is none here is told, or is none for them."""
    begins = "" if scope["path"].startswith("/v1/") else " The API begins at /v1/."
    return ApiError("not_found", f"There is no such route.{begins} docs/api.md lists those there are.")


def plain_http(app: App) -> App:
    """``app``, for a server that takes no WebSockets: their handshakes are told so. It belongs inside of Envelope."""

    async def told(scope: Scope, receive: Receive, send: Send) -> None:
        if (header(scope, b"upgrade") or b"").lower() == b"websocket":
            raise ApiError("not_found", _NO_WEBSOCKET)
        await app(scope, receive, send)

    return told


async def no_websocket(socket: WebSocket) -> None:
    """Endpoint for WebSocket handshakes that no other route takes: the envelope instead of a bare 403."""
    error = ApiError("not_found", _NO_WEBSOCKET)
    request_id = request_id_of(socket.scope)
    headers = {name.decode(): value.decode() for name, value in SECURITY_HEADERS} | {"x-request-id": request_id}
    await socket.send_denial_response(Response(error.envelope(request_id), error.status, headers, "application/json"))


def abort(scope: Scope) -> None:
    """Drop the connection without flushing: for a reader that is stuck, or an answer that must not look whole."""
    if (extension := scope.get("extensions", {}).get("hearthlink.abort")) is not None:
        extension["abort"]()
