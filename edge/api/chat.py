"""A chat, from the caller's first byte to the settled quota."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from edge.api.accounting import admit, enter
from edge.api.audit import note
from edge.api.caller import Caller
from edge.api.permission import Permit, permit
from edge.chats import Chat
from edge.services import Services
from edge.store.ledger import Cost
from edge.upstreams.upstream import Upstream
from shared.asgi.accept import wants_stream
from shared.asgi.body import ClientLeft, check_json, read_body
from shared.asgi.departure import Departure
from shared.asgi.front import abort
from shared.asgi.request_id import new_id
from shared.asgi.responses import send_bytes
from shared.asgi.types import Headers, Receive, Scope, Send
from shared.contract.body import AnyBody, parse_body
from shared.contract.errors import ApiError
from shared.contract.snapshot import NodeSnapshot
from shared.contract.surface import Surface
from shared.contract.usage import Usage
from shared.link.call import Call, read_usage
from shared.link.session import Session
from shared.link.streams import Reply

# Seconds a cancelled stream's END is awaited before it is settled at what was relayed (design §3.8).
_END_WITHIN = 2.0
# An event's JSON around one token, in bytes, for a stream whose usage nobody will ever tell (design §3.8).
_BYTES_PER_EVENT = 256
_OWN_PREFIX = "hearthlink-"
# What a node, or the loss of it, says before an answer has begun, and another node need not say.
_ONLY_THERE = frozenset({"node_unavailable", "draining"})
# How a request ends that the model may not have begun on.
_WITHOUT_ANSWER = frozenset({"stopped", "cancelled"})


class ChatEndpoint:
    """ASGI app for one surface."""

    def __init__(self, surface: Surface, edge: Services) -> None:
        self._surface = surface
        self._edge = edge

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        edge, surface = self._edge, self._surface
        caller = enter(scope, edge, surface.path)
        edge.load.check()
        if (refusal := edge.store.refusal(caller.ip, caller.principal, caller.plan)) is not None:
            raise refusal
        if edge.draining:
            raise ApiError("draining", "The server is restarting. Please try again in a moment.")
        check_json(scope)
        raw = await read_body(scope, receive, edge.policy.max_body)
        body = parse_body(surface.body, raw)

        def permitted(upstream: Upstream) -> Permit:
            return permit(surface, body, len(raw), caller, upstream.snapshot, edge.policy.anonymous_raw_models)

        upstream = edge.upstreams.choose()
        allowed = permitted(upstream)
        note(scope, chat_type=allowed.chat_type, client_id=body.client_id, node=upstream.name)
        session = upstream.session()
        call = Call(
            surface=surface,
            body=raw,
            chat_id=new_id(),
            request_id=scope["state"]["request_id"],
            principal=caller.link_id(edge),
            stream=_streamed(scope, surface, body, upstream.snapshot),
            deadline=asyncio.get_running_loop().time() + edge.policy.request_timeout,
            max_tokens=allowed.max_tokens,
        )
        with edge.load.place():
            await admit(scope, edge, caller, Cost(allowed.reserve), call.chat_id)
            exchange = _Exchange(edge, caller, allowed, permitted, call, session, {upstream.name})
            await exchange.run(scope, receive, send)


def _streamed(scope: Scope, surface: Surface, body: AnyBody, node: NodeSnapshot | None) -> bool:
    if not surface.streams or body.stream is not None:
        return surface.streams and bool(body.stream)
    return wants_stream(scope, None, node is not None and node.streams(body.model, body.chat_type))


@dataclass(slots=True)
class _Exchange:
    """An admitted chat: opened on a node, relayed, and settled exactly once however it ends. ``permitted`` raises
    ApiError for a node that the caller may not ask this; ``asked`` are the names of such nodes, and of those that it
    was opened on; ``last`` is the part of a stream that left last."""

    edge: Services
    caller: Caller
    permit: Permit
    permitted: Callable[[Upstream], Permit]
    call: Call
    session: Session
    asked: set[str]
    last: bytes = b""

    async def run(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = asyncio.get_running_loop().time()
        outcome = ""
        chat: Chat | None = None
        try:
            async with Departure(receive) as interrupt:
                chat = Chat(
                    id=self.call.chat_id,
                    principal=self.call.principal,
                    session=self.session,
                    reply=self.session.open(self.call),
                    interrupt=interrupt,
                    streaming=self.call.stream,
                    revoked=functools.partial(self.caller.revoked, self.edge),
                    doubted=self._give_up,
                    drop=functools.partial(abort, scope),
                    deadline=self.call.deadline,
                    heard_at=began,
                )
                self.edge.chats.add(chat)
                await self._relay(chat, scope, send)
            outcome = chat.reply.end.outcome if chat.reply.end is not None else ""
        except ClientLeft:
            outcome = "cancelled"
        except ApiError as error:
            outcome = error.code
            if chat is None or not chat.started:
                raise error.outside_stream() from None
            scope["state"]["error"] = error
            if error.code != "slow_consumer":
                await _end_with(send, self.call, error, self.last)
        finally:
            if chat is not None:
                self.edge.chats.remove(chat)
            reply = chat.reply if chat is not None else None
            await self._settle(scope, reply, outcome or "failed")
            if reply is not None and reply.first_data_at is not None:
                self.edge.metrics.first_token.observe(reply.first_data_at - began)

    async def _relay(self, chat: Chat, scope: Scope, send: Send) -> None:
        """The node's answer, as it comes. Raises ApiError; before ``chat.started`` the caller can still get a
        status."""
        headers = self._headers(await self._head(chat, scope))
        reply = chat.reply
        if not self.call.stream:
            parts = []
            while part := await reply.read():
                parts.append(part)
                reply.passed_on(len(part))
            chat.started = True
            chat.writing_since = asyncio.get_running_loop().time()
            await send_bytes(send, 200, b"".join(parts), b"application/json", headers)
            return
        clock = asyncio.get_running_loop().time
        write = scope["state"]["write"]  # past the layers, which have nothing to do with an event
        chat.started = True
        content_type = (b"content-type", reply.headers.get("content-type", "text/event-stream").encode())
        streaming = [(b"cache-control", b"no-cache, no-transform"), (b"x-accel-buffering", b"no")]
        await send({"type": "http.response.start", "status": 200, "headers": [content_type, *streaming, *headers]})
        while part := await reply.read():
            more = not reply.at_end
            chat.heard_at = chat.writing_since = clock()
            await write({"type": "http.response.body", "body": part, "more_body": more})
            self.last = part
            chat.writing_since = None
            reply.passed_on(len(part))
            if not more:
                return
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _head(self, chat: Chat, scope: Scope) -> Mapping[str, str]:
        """The head of the first node that gives one: a node that is lost before it has cost the caller nothing but time
        (design §4)."""
        while True:
            try:
                return await chat.reply.head()
            except ApiError as error:
                another = self._another() if error.code in _ONLY_THERE else None
                if another is None:
                    raise
            self.asked.add(another.name)
            note(scope, node=another.name)
            chat.session = another.session()
            chat.reply = chat.session.open(self.call)

    def _another(self) -> Upstream | None:
        """The first node that could answer now, was not asked, and may be: each has models and a default of its
        own."""
        while (another := self.edge.upstreams.another(self.asked)) is not None:
            try:
                self.permitted(another)
                return another
            except ApiError:
                self.asked.add(another.name)
        return None

    def _give_up(self, chat: Chat) -> None:
        """Wait no longer for a node whose link is silent, if another one can answer; else it may still come back."""
        if self._another() is not None:
            chat.reply.cancel()
            chat.reply.lose("it is silent")

    def _headers(self, given: Mapping[str, str]) -> Headers:
        own = [
            (name.lower().encode(), value.encode("latin-1", "replace"))
            for name, value in given.items()
            if name.lower().startswith(_OWN_PREFIX)
        ]
        return [*own, (b"hearthlink-chat-id", self.call.chat_id.encode())]

    async def _settle(self, scope: Scope, reply: Reply | None, outcome: str) -> None:
        """Exactly once. A caller who left early waits for nothing here; the node's END says what was spent."""
        if reply is not None:
            reply.cancel()
            if not reply.closed:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_END_WITHIN):
                        await reply.ended()
        usage = self._usage(reply)
        await self.edge.store.settle(self.call.chat_id, usage)
        spent = usage or Usage()
        note(scope, outcome=outcome, prompt_tokens=spent.prompt_tokens, completion_tokens=spent.completion_tokens)
        self.edge.metrics.chat_ended(outcome, spent)

    def _usage(self, reply: Reply | None) -> Usage | None:
        """What was spent; None when nothing was. Where nobody counted the prompt, the estimate stands in."""
        if reply is None:
            return None
        if reply.end is not None:
            counted = reply.end.usage  # also of a whole answer that was left: its head would have come at the end
        elif reply.has_head:
            counted = read_usage(reply.error_usage)
        else:
            return None
        if counted is None:
            return Usage(self.permit.prompt_estimate, reply.relayed // _BYTES_PER_EVENT)
        if counted.prompt_tokens:
            return counted
        if not counted.completion_tokens and (reply.end is None or reply.end.outcome in _WITHOUT_ANSWER):
            return None
        return Usage(self.permit.prompt_estimate, counted.completion_tokens)


async def _end_with(send: Send, call: Call, error: ApiError, said: bytes) -> None:
    """The one error that ends a stream, framed as its surface does; none behind ``said`` where that has ended it well.
    A whole answer under way can only be cut."""
    surface = call.surface
    over = not call.stream or (isinstance(surface, Surface) and surface.ends(said))
    last = b"" if over else surface.frame_error(error, call.request_id)
    await send({"type": "http.response.body", "body": last, "more_body": False})
