"""Two ends of a link joined: in memory, where a test can hold and read every message, or over a real WebSocket."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest

from shared.asgi.listener import Listener
from shared.asgi.protocol import Limits
from shared.asgi.server import serving
from shared.asgi.types import Receive, Scope, Send
from shared.contract.surface import SURFACES
from shared.link import SUBPROTOCOL, frames
from shared.link.call import Call, End, Outlet
from shared.link.frames import Kind, pack_json, unpack
from shared.link.hello import Hello
from shared.link.session import LinkClosed, Session, Transport
from shared.link.transports import AsgiTransport, DialledTransport
from shared.ticker import Ticker
from tests.waiting import HANGS

EDGE_HELLO = Hello("edge-id", "edge-boot", "1")
NODE_HELLO = Hello("node-id", "node-boot", "1")
# Messages of one direction that may wait in memory, so that a writer meets back pressure as on a socket.
_ROOM = 2

# For tests that must hold on both kinds of ``linked``.
BOTH = pytest.mark.parametrize("over", ["memory", "websocket"])

Frame = tuple[int, int, bytes]
Serve = Callable[[Call, Outlet], Awaitable[End]]


class MemoryTransport:
    """One end. ``sent`` are the messages this end has sent; while ``gate`` is clear, nothing more leaves."""

    def __init__(self, outgoing: asyncio.Queue[bytes | None], incoming: asyncio.Queue[bytes | None]) -> None:
        self._outgoing = outgoing
        self._incoming = incoming
        self.sent: list[bytes] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.closed_with: tuple[int, str] | None = None

    @classmethod
    def pair(cls) -> tuple[MemoryTransport, MemoryTransport]:
        there: asyncio.Queue[bytes | None] = asyncio.Queue(_ROOM)
        back: asyncio.Queue[bytes | None] = asyncio.Queue(_ROOM)
        return cls(there, back), cls(back, there)

    async def send(self, message: bytes) -> None:
        await self.gate.wait()
        await self._outgoing.put(message)
        self.sent.append(message)

    async def receive(self) -> bytes | None:
        return await self._incoming.get()

    async def close(self, code: int, reason: str) -> None:
        self.closed_with = (code, reason)
        while self._outgoing.full():  # a connection that is closed loses what nobody has read
            self._outgoing.get_nowait()
        self._outgoing.put_nowait(None)

    def frames(self, stream: int | None = None) -> list[Frame]:
        """What this end has sent, of one stream or of all."""
        found = [frame for message in self.sent for frame in unpack(message)]
        return [frame for frame in found if stream is None or frame[0] == stream]

    def kinds(self, stream: int) -> list[Kind]:
        return [Kind(kind) for _, kind, _ in self.frames(stream)]


class Peer:
    """The other side of a session under test, written by hand, frame by frame."""

    def __init__(self, transport: MemoryTransport) -> None:
        self.transport = transport
        self._frames: list[Frame] = []

    async def send(self, *packed: bytes) -> None:
        """One message of these frames."""
        await self.transport.send(b"".join(packed))

    async def hello(self, **changes: Any) -> None:
        await self.send(pack_json(0, Kind.HELLO, {**EDGE_HELLO.to_wire(), **changes}))

    async def frame(self, *kinds: Kind, within: float = HANGS) -> Frame:
        """The next frame of one of ``kinds``; others are passed over."""
        async with asyncio.timeout(within):
            while True:
                while self._frames:
                    frame = self._frames.pop(0)
                    if not kinds or frame[1] in kinds:
                        return frame
                message = await self.transport.receive()
                assert message is not None, "the session closed the link"
                self._frames += unpack(message)

    async def silence(self, *kinds: Kind, seconds: float = 0.05) -> None:
        """No frame of ``kinds`` arrives for a while."""
        with contextlib.suppress(TimeoutError):
            frame = await self.frame(*kinds, within=seconds)
            raise AssertionError(f"an unexpected {Kind(frame[1]).name}")


@dataclass(slots=True)
class Link:
    """Both sessions, running. ``ended`` of each is set once its ``run`` has returned."""

    edge: Session
    node: Session
    edge_transport: Transport
    node_transport: Transport
    snapshots: list[Mapping[str, Any]] = field(default_factory=list)
    edge_run: asyncio.Task[LinkClosed] | None = None
    node_run: asyncio.Task[LinkClosed] | None = None


def call(body: bytes = b"{}", *, chat_id: str = "chat", principal: str = "someone", seconds: float = 30.0) -> Call:
    deadline = asyncio.get_running_loop().time() + seconds
    return Call(SURFACES["chat"], body, chat_id, "request-id", principal, True, deadline)


async def refuse_all(call: Call, out: Outlet) -> End:
    raise AssertionError("nothing should be served here")


@asynccontextmanager
async def linked(
    kind: str, serve: Serve = refuse_all, on_stop: Callable[[str, str], bool] = lambda chat_id, principal: False
) -> AsyncIterator[Link]:
    """An edge's session and a node's, greeted. ``kind`` is "memory" or "websocket"."""
    async with contextlib.AsyncExitStack() as stack:
        if kind == "memory":
            edge_end, node_end = MemoryTransport.pair()
            node = Session(node_end, NODE_HELLO, serve=serve, on_stop=on_stop)
            node_run = asyncio.create_task(node.run())
        else:
            accepted: asyncio.Future[tuple[Session, asyncio.Task[LinkClosed], Transport]] = asyncio.Future()
            app = _node_app(serve, on_stop, accepted)
            ticker = Ticker()
            listening = await stack.enter_async_context(
                serving(app, [Listener("tailnet", "127.0.0.1", 0)], Limits(), ticker)
            )
            client = await stack.enter_async_context(aiohttp.ClientSession(trust_env=False))
            edge_end = await DialledTransport.dial(
                client, f"ws://127.0.0.1:{listening.listeners[0].port}/link", "token"
            )
            node, node_run, node_end = await accepted
        snapshots: list[Mapping[str, Any]] = []
        edge = Session(edge_end, EDGE_HELLO, on_snapshot=snapshots.append)
        edge_run = asyncio.create_task(edge.run())
        try:
            async with asyncio.timeout(HANGS):
                await asyncio.gather(edge.ready.wait(), node.ready.wait())
            yield Link(edge, node, edge_end, node_end, snapshots, edge_run, node_run)
        finally:
            for task in (edge_run, node_run):
                task.cancel()
            await asyncio.gather(edge_run, node_run, return_exceptions=True)


def _node_app(
    serve: Serve,
    on_stop: Callable[[str, str], bool],
    accepted: asyncio.Future[tuple[Session, asyncio.Task[LinkClosed], Transport]],
) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
    """As ``node.api.link``, without admission."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept", "subprotocol": SUBPROTOCOL})
        transport = AsgiTransport(receive, send)
        session = Session(transport, NODE_HELLO, serve=serve, on_stop=on_stop)
        run = asyncio.create_task(session.run())
        accepted.set_result((session, run, transport))
        await asyncio.wait({run})

    return app


@asynccontextmanager
async def node_session(
    serve: Serve = refuse_all,
    on_stop: Callable[[str, str], bool] = lambda chat_id, principal: False,
    *,
    greet: bool = True,
) -> AsyncIterator[tuple[Session, Peer, asyncio.Task[LinkClosed]]]:
    """A node's session whose edge is written by hand."""
    async with _against_peer(
        lambda transport: Session(transport, NODE_HELLO, serve=serve, on_stop=on_stop), greet
    ) as found:
        yield found


@asynccontextmanager
async def edge_session(
    on_snapshot: Callable[[Mapping[str, Any]], None] = lambda wire: None, *, greet: bool = True
) -> AsyncIterator[tuple[Session, Peer, asyncio.Task[LinkClosed]]]:
    """An edge's session whose node is written by hand."""
    async with _against_peer(lambda transport: Session(transport, EDGE_HELLO, on_snapshot=on_snapshot), greet) as found:
        yield found


@asynccontextmanager
async def _against_peer(
    make: Callable[[MemoryTransport], Session], greet: bool
) -> AsyncIterator[tuple[Session, Peer, asyncio.Task[LinkClosed]]]:
    ours, theirs = MemoryTransport.pair()
    session, peer = make(ours), Peer(theirs)
    run = asyncio.create_task(session.run())
    try:
        if greet:
            await peer.hello()
            await peer.frame(Kind.HELLO)
            await asyncio.wait_for(session.ready.wait(), HANGS)
        yield session, peer, run
    finally:
        run.cancel()
        await asyncio.gather(run, return_exceptions=True)


def pack_call(stream: int, of: Call) -> bytes:
    return frames.pack_open(stream, of.to_wire(asyncio.get_running_loop().time()), of.body)
