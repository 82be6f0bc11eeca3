"""The node's own plain-HTTP surface, for curl, CI and SDKs beside it: the same answer as over the link."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from node.admission import Admission
from node.api.answer import answer
from node.api.snapshots import snapshot
from node.services import Services
from shared.asgi.accept import wants_stream
from shared.asgi.body import ClientLeft, check_json, discard_body, read_body
from shared.asgi.departure import Departure
from shared.asgi.request_id import new_id
from shared.asgi.types import Headers, Receive, Scope, Send
from shared.contract.body import AnyBody, parse_body
from shared.contract.errors import ApiError
from shared.contract.surface import Surface
from shared.link.call import Call

# Seconds. The edge sets its own; a direct caller gets as long as an SDK waits (openai: 10 minutes).
_DEADLINE = 600.0


class ChatEndpoint:
    """ASGI app for one surface."""

    def __init__(self, surface: Surface, node: Services, admission: Admission) -> None:
        self._surface = surface
        self._node = node
        self._admission = admission

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._admission.admit(scope)
        except ApiError:
            await discard_body(receive, self._node.max_body)
            raise
        if self._node.draining:
            raise ApiError("draining", "The node is restarting. Please try again.")
        check_json(scope)
        raw = await read_body(scope, receive, self._node.max_body)
        body = parse_body(self._surface.body, raw)
        call = Call(
            surface=self._surface,
            body=raw,
            chat_id=new_id(),
            request_id=scope["state"]["request_id"],
            principal=self._admission.principal(scope),
            stream=self._streamed(scope, body),
            deadline=asyncio.get_running_loop().time() + _DEADLINE,
        )
        out = HttpOutlet(send, call.chat_id)
        try:
            async with Departure(receive) as caller, self._admission.kept(scope, caller.end_with):
                await answer(call, out, self._node)
                await out.end()
        except ClientLeft:
            pass
        except ApiError as error:
            if not out.started:
                raise error.outside_stream() from None
            over = not call.stream or self._surface.ends(out.last)
            await out.end(b"" if over else self._surface.frame_error(error, call.request_id))
        finally:
            await out.close()

    def _streamed(self, scope: Scope, body: AnyBody) -> bool:
        if not self._surface.streams or body.stream is not None:
            return self._surface.streams and bool(body.stream)
        return wants_stream(scope, None, snapshot(self._node).streams(body.model, body.chat_type))


class HttpOutlet:
    """Writes an answer as an HTTP response. ``head`` and ``note`` cannot wait, so they queue for a flush task. ``last``
    is the newest piece of the answer."""

    def __init__(self, send: Send, chat_id: str) -> None:
        self.started = False
        self.last = b""
        self._send = send
        self._chat_id = chat_id
        self._waiting: list[dict[str, object]] = []
        self._lock = asyncio.Lock()
        self._flush: asyncio.Task[None] | None = None

    def head(self, headers: Mapping[str, str]) -> None:
        self.started = True
        lines: Headers = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        lines += [
            (b"hearthlink-chat-id", self._chat_id.encode()),
            (b"cache-control", b"no-cache, no-transform"),
            (b"x-accel-buffering", b"no"),
        ]
        self._soon({"type": "http.response.start", "status": 200, "headers": lines})

    def note(self, payload: bytes) -> None:
        self._soon({"type": "http.response.body", "body": payload, "more_body": True})

    async def data(self, payload: bytes) -> None:
        self.last = payload
        self._waiting.append({"type": "http.response.body", "body": payload, "more_body": True})
        await self._write()

    async def end(self, last: bytes = b"") -> None:
        self._waiting.append({"type": "http.response.body", "body": last, "more_body": False})
        await self._write()

    async def close(self) -> None:
        if self._flush is not None:
            self._flush.cancel()

    def _soon(self, message: dict[str, object]) -> None:
        self._waiting.append(message)
        if self._flush is None or self._flush.done():
            self._flush = asyncio.create_task(self._write())

    async def _write(self) -> None:
        async with self._lock:
            while self._waiting:
                await self._send(self._waiting.pop(0))
