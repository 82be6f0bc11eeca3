"""A node on a member of the tailnet, played by the test's own process: it answers slowly, or not at all, as told.

async with StandIn(gpu) as node:
    node.status = 401                 # refuse every link from now on
    node.status = None
    node.pause = 0.1                  # seconds between two events of an answer
"""

from __future__ import annotations

import asyncio
import json
import socket
from types import TracebackType
from typing import Any, Self, cast

from aiohttp import web

from shared.addresses import NODE_PORT
from shared.contract.snapshot import ChatTypeInfo, ModelInfo, NodeSnapshot
from shared.contract.usage import Usage
from shared.link import SUBPROTOCOL
from shared.link.call import Call, End, Outlet
from shared.link.hello import Hello
from shared.link.session import Session
from shared.link.transports import DialledTransport
from tests.tailnet.member import Member

_MODEL = "stand-in"


class StandIn:
    """Listens on every address of its machine, so that it is still there when they change. ``calls`` are the addresses
    that links came from."""

    def __init__(self, member: Member, *, events: int = 3, pause: float = 0.0) -> None:
        self.member = member
        self.status: int | None = None
        self.events = events
        self.pause = pause
        self.calls: list[str] = []
        self._sessions: set[Session] = set()
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        listening = self.member.machine.socket(socket.AF_INET6)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listening.bind(("::", NODE_PORT))
        app = web.Application()
        app.router.add_get("/link", self._link)
        self._runner = web.AppRunner(app, shutdown_timeout=1.0)
        await self._runner.setup()
        await web.SockSite(self._runner, listening).start()

    async def stop(self) -> None:
        """Its process ends: links break, and nothing listens any more."""
        for session in self._sessions:
            session.close()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    @property
    def links(self) -> int:
        return len(self._sessions)

    async def _link(self, request: web.Request) -> web.StreamResponse:
        self.calls.append((request.remote or "").removeprefix("::ffff:"))
        if self.status is not None:
            return web.Response(status=self.status)
        link = web.WebSocketResponse(protocols=(SUBPROTOCOL,), compress=False)
        await link.prepare(request)
        # Both ends of aiohttp's WebSocket are used alike.
        session = Session(DialledTransport(cast(Any, link)), Hello(self.member.name, "boot", "1"), serve=self._answer)
        self._sessions.add(session)
        snapshot = NodeSnapshot(
            self.member.name,
            "boot",
            1,
            runtime_state="ready",
            default_model=_MODEL,
            models=(ModelInfo(_MODEL),),
            chat_types=(ChatTypeInfo("home"),),
        )
        session.send_snapshot(snapshot.to_wire())
        try:
            await session.run()
        finally:
            self._sessions.discard(session)
        return link

    async def _answer(self, call: Call, out: Outlet) -> End:
        out.head({"content-type": "text/event-stream"})
        number = 0
        while number < self.events:  # which may become fewer meanwhile
            if number:
                await asyncio.sleep(self.pause)
            delta = {"choices": [{"index": 0, "delta": {"content": f"{number} "}, "finish_reason": None}]}
            await out.data(b"data: " + json.dumps(delta).encode() + b"\n\n")
            number += 1
        await out.data(b"data: [DONE]\n\n")
        return End("stop", Usage(1, number))
