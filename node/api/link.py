"""``WS /link``: admit an edge, then serve its streams until the link ends."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Container
from urllib.parse import urlsplit

from loguru import logger

from node.admission import Admission
from node.api.answer import answer
from node.api.operations import operate
from node.api.snapshots import snapshot
from node.services import Services
from shared import __version__
from shared.asgi.front import SECURITY_HEADERS
from shared.asgi.request_id import request_id_of
from shared.asgi.types import Receive, Scope, Send, header
from shared.contract.errors import ApiError
from shared.contract.operation import Operation
from shared.link import SUBPROTOCOL
from shared.link.call import Call, End, Outlet
from shared.link.hello import Hello
from shared.link.session import CLOSE_DENIED, LinkClosed, Session
from shared.link.transports import AsgiTransport

# Seconds for the last errors to be written, and again for the links to close. With the drain's 20 s the process is
# gone within 30.
_ENDING_WITHIN = 2.0


class LinkEndpoint:
    """ASGI app for the route. ``sessions`` are the live links; ``push`` tells all of them the node's newest state.
    ``hosts`` are what callers may write for the node's address."""

    def __init__(self, node: Services, admission: Admission, hosts: Container[str]) -> None:
        self.sessions: set[Session] = set()
        self._node = node
        self._admission = admission
        self._hosts = hosts
        self._watching: set[asyncio.Task[object]] = set()  # streams that are no answers: nobody waits for their end
        self._seq = 0
        self._pending_push = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()  # websocket.connect
        try:
            await self._admit(scope)
        except ApiError as error:
            await _refuse(send, error, request_id_of(scope))
            return
        await send({"type": "websocket.accept", "subprotocol": SUBPROTOCOL})
        hello = Hello(self._node.node_id, self._node.boot_id, __version__)
        session = Session(
            AsgiTransport(receive, send),
            hello,
            serve=functools.partial(self._serve, scope),
            on_stop=self._node.running.stop,
        )
        session.send_snapshot(snapshot(self._node, self._seq).to_wire())
        self.sessions.add(session)
        try:
            async with self._admission.kept(scope, lambda error: _deny(session), lambda error: _hold(session, error)):
                ended = await session.run()
            logger.info("link to edge {} ended: {}", session.peer.get("id", "?"), ended.reason)
        finally:
            self.sessions.discard(session)

    async def _admit(self, scope: Scope) -> None:
        """In the order of design §3.8: browsers never, our own names only, the machine, then the bearer token."""
        refusal = self._admission.refusal
        if header(scope, b"origin") is not None:
            raise refusal(scope, "origin_not_allowed", "/link is for edges, not for browsers.")
        if _host_of(scope) not in self._hosts:
            raise refusal(scope, "address_not_allowed", "The Host header is none of the node's addresses.")
        await self._admission.admit(scope)
        if SUBPROTOCOL not in scope["subprotocols"]:
            raise refusal(scope, "invalid_request", f"/link speaks the WebSocket subprotocol {SUBPROTOCOL}.")
        if self._node.draining:
            raise ApiError("draining", "The node is restarting.")

    async def _serve(self, scope: Scope, call: Call, out: Outlet) -> End:
        if isinstance(call.surface, Operation):
            call.admin = await self._admission.has_role(scope, "admin")
            return await self._operate(call, out)
        return await answer(call, out, self._node)

    async def _operate(self, call: Call, out: Outlet) -> End:
        task = asyncio.current_task()
        if call.stream and task is not None:
            self._watching.add(task)
        try:
            return await operate(call, out, self._node)
        finally:
            if task is not None:
                self._watching.discard(task)

    def push(self) -> None:
        """Send a snapshot to every edge, once for all changes of this tick."""
        if not self._pending_push and self.sessions:
            self._pending_push = True
            asyncio.get_running_loop().call_soon(self._push)

    def _push(self) -> None:
        self._pending_push = False
        self._seq += 1
        wire = snapshot(self._node, self._seq).to_wire()
        for session in self.sessions:
            session.send_snapshot(wire)

    async def drain(self, seconds: float) -> None:
        """No new streams; wait for the running ones, then end them with ``server_draining``; close the links."""
        for session in self.sessions:
            session.go_away()
        for task in self._watching:
            task.cancel()
        if not await self._drained(seconds):
            error = ApiError("server_draining", "The node is restarting. Ask again in a moment.")
            for session in self.sessions:
                session.fail_streams(error)
            await self._drained(_ENDING_WITHIN)
        for session in self.sessions:
            session.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_ENDING_WITHIN):
                while self.sessions:  # noqa: ASYNC110 - once in a process's life
                    await asyncio.sleep(0.02)

    async def _drained(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await asyncio.gather(*(session.drained() for session in self.sessions))
        except TimeoutError:
            return False
        return True


def _host_of(scope: Scope) -> str:
    """What the caller wrote for the node: lower case, without brackets, and without the port, which is left out where
    it is the scheme's own."""
    try:
        return urlsplit(f"//{(header(scope, b'host') or b'').decode('latin-1')}").hostname or ""
    except ValueError:
        return ""


def _deny(session: Session) -> None:
    session.close(LinkClosed("the tailnet's policy does not let this machine call the node any more", CLOSE_DENIED))


def _hold(session: Session, error: ApiError | None) -> None:
    session.refusing = error


async def _refuse(send: Send, error: ApiError, request_id: str) -> None:
    body = error.envelope(request_id)
    headers = [
        *SECURITY_HEADERS,
        (b"content-type", b"application/json"),
        (b"x-request-id", request_id.encode()),
        *error.headers(),
    ]
    await send({"type": "websocket.http.response.start", "status": error.status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": body})
