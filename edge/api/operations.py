"""What a node carries out and is no answer (``OPERATIONS``): scope and rate are checked here, the rest is the node's.

An owner's goes to the first connected node, or to the one that ``?node=NAME`` names; what belongs to the caller goes
where the caller's chats go.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Mapping

from starlette.routing import Route

from edge.api.accounting import enter, take_request
from edge.api.admin.entry import check_credential
from edge.api.audit import note
from edge.api.caller import Caller
from edge.chats import Chat
from edge.services import Services
from edge.upstreams.upstream import Upstream
from shared.asgi.accept import wants_stream
from shared.asgi.body import ClientLeft, check_json, read_body
from shared.asgi.departure import Departure
from shared.asgi.front import abort
from shared.asgi.query import read_query
from shared.asgi.request_id import new_id
from shared.asgi.responses import send_bytes
from shared.asgi.types import Receive, Scope, Send
from shared.contract.errors import ApiError
from shared.contract.operation import Operation, by_path
from shared.link.call import Call

_MAX_BODY = 16 * 1024
_MAX_ANSWER = 8 << 20  # bytes of a JSON answer, which is held as a whole
_NODE = "node"
_NO_STORE = (b"cache-control", b"no-store")
_STREAMING = [(b"cache-control", b"no-cache, no-transform"), (b"x-accel-buffering", b"no")]


class OperationEndpoint:
    """ASGI app for one path; ``operations`` by method."""

    def __init__(self, operations: Mapping[str, Operation], edge: Services) -> None:
        self._operations = operations
        self._edge = edge

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        edge, operation = self._edge, self._operations["GET" if scope["method"] == "HEAD" else scope["method"]]
        caller = enter(scope, edge, operation.path, operation.scope)
        if operation.scope == "admin":
            check_credential(caller.principal)
        await take_request(scope, edge, caller)
        if edge.draining:
            raise ApiError("draining", "The server is restarting. Please try again in a moment.")
        if operation.method == "POST":
            check_json(scope)
        body = await read_body(scope, receive, _MAX_BODY)
        query = read_query(scope)
        upstream = self._asked(operation, query.pop(_NODE, None))
        note(scope, node=upstream.name, **({"act": operation.name} if operation.method != "GET" else {}))
        call = Call(
            surface=operation,
            body=body,
            chat_id=new_id(),
            request_id=scope["state"]["request_id"],
            principal=caller.link_id(edge),
            stream=operation.streams and scope["method"] != "HEAD" and wants_stream(scope, None, operation.live),
            deadline=asyncio.get_running_loop().time() + operation.seconds,
            path={**query, **scope["path_params"]},
        )
        # The owner can act on an edge that is full: that may be why.
        with edge.load.place() if operation.owned else contextlib.nullcontext():
            await self._relay(call, caller, upstream, scope, receive, send)

    def _asked(self, operation: Operation, named: str | None) -> Upstream:
        """Raises ApiError ``not_found`` for a node that there is not, ``node_unavailable``."""
        upstreams = self._edge.upstreams
        if operation.owned:
            return upstreams.choose()
        if named is not None:
            for upstream in upstreams.all:
                if upstream.name == named:
                    return upstream
            known = ", ".join(upstream.name for upstream in upstreams.all) or "none"
            raise ApiError("not_found", f"No node has that name. This edge knows: {known}.", param=_NODE)
        # One that cannot answer a chat can still be told to load, or to resume.
        return next((upstream for upstream in upstreams.all if upstream.connected), None) or upstreams.choose()

    async def _relay(
        self, call: Call, caller: Caller, upstream: Upstream, scope: Scope, receive: Receive, send: Send
    ) -> None:
        session = upstream.session()
        operation = call.surface
        assert isinstance(operation, Operation)
        chat: Chat | None = None
        try:
            async with Departure(receive) as interrupt:
                chat = Chat(
                    id=call.chat_id,
                    principal=call.principal,
                    session=session,
                    reply=session.open(call),
                    interrupt=interrupt,
                    streaming=False,
                    revoked=functools.partial(caller.revoked, self._edge),
                    doubted=_stay,
                    drop=functools.partial(abort, scope),
                    deadline=call.deadline,
                    heard_at=asyncio.get_running_loop().time(),
                    is_answer=False,
                )
                self._edge.chats.add(chat)
                await _pass_on(chat, scope, send)
        except ApiError as error:
            if chat is None or not chat.started:
                raise error.outside_stream() from None
            scope["state"]["error"] = error
            if error.code != "slow_consumer":
                await send(_last(operation.frame_error(error, call.request_id) if chat.streaming else b""))
        except ClientLeft:
            note(scope, outcome="cancelled")
        finally:
            if chat is not None:
                self._edge.chats.remove(chat)
                chat.reply.cancel()


def operation_routes(edge: Services) -> list[Route]:
    return [
        Route(path, OperationEndpoint(operations, edge), methods=list(operations))
        for path, operations in by_path().items()
    ]


async def _pass_on(chat: Chat, scope: Scope, send: Send) -> None:
    """The node's answer as it comes: whole, or as the events that it is. Raises ApiError."""
    reply = chat.reply
    kind = (await reply.head()).get("content-type", "application/json")
    if not kind.startswith("text/event-stream"):
        await _whole(chat, kind, send)
        return
    chat.started = chat.streaming = True
    clock, write = asyncio.get_running_loop().time, scope["state"]["write"]
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind.encode()), *_STREAMING]}
    )
    while part := await reply.read():
        chat.heard_at = chat.writing_since = clock()
        await write({"type": "http.response.body", "body": part, "more_body": True})
        chat.writing_since = None
        reply.passed_on(len(part))
    await send(_last())


async def _whole(chat: Chat, kind: str, send: Send) -> None:
    parts: list[bytes] = []
    size = 0
    while part := await chat.reply.read():
        parts.append(part)
        size += len(part)
        if size > _MAX_ANSWER:
            raise ApiError("upstream_invalid", f"The node's answer is over {_MAX_ANSWER >> 20} MiB.")
        chat.reply.passed_on(len(part))
    chat.started = True
    chat.writing_since = asyncio.get_running_loop().time()
    await send_bytes(send, 200, b"".join(parts), kind.encode("latin-1", "replace"), [_NO_STORE])


def _last(body: bytes = b"") -> dict[str, object]:
    return {"type": "http.response.body", "body": body, "more_body": False}


def _stay(chat: Chat) -> None:
    """No other node can be asked instead: it is this one's state that is meant."""
