"""A TCP proxy that does to a connection what networks do: hold bytes back, lose them, cut it, or add some.

async with TcpProxy() as proxy:
    proxy.target = node.listener.port
    ...                                   # point an edge at proxy.port
    proxy.lose()                          # half-open: bytes vanish both ways, and nobody is told
"""

from __future__ import annotations

import asyncio
import socket
import struct
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, Self

_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close() sends RST
_READ = 65536


@dataclass(slots=True, eq=False)
class Carried:
    """One connection through the proxy, as a pair of sockets' writers."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    lost: bool = False
    open: asyncio.Event = field(default_factory=asyncio.Event)


class TcpProxy:
    """Listens on a free loopback port. ``target`` is the port it carries to; None closes what comes at once.

    ``accepted`` counts connections so far. Leaving the block cuts everything.
    """

    def __init__(self) -> None:
        self.target: int | None = None
        self.accepted = 0
        self.port = 0
        self.bytes_per_second: float | None = None
        self.latency = 0.0  # seconds, each way
        self.connections: list[Carried] = []
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/link"

    def hold(self) -> None:
        """Carry nothing for a while; what arrives waits in the kernel's buffers."""
        for carried in self.connections:
            carried.open.clear()

    def release(self) -> None:
        for carried in self.connections:
            carried.open.set()

    def lose(self) -> None:
        """From now on all bytes of the connections that exist vanish, FIN and RST too. New connections are well."""
        for carried in self.connections:
            carried.lost = True

    def cut(self) -> None:
        """RST both ways."""
        for carried in self.connections:
            for writer in (carried.client, carried.server):
                sock = writer.get_extra_info("socket")
                if sock is not None and sock.fileno() >= 0:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                writer.transport.abort()
        self.connections.clear()

    def inject(self, data: bytes, to: Literal["client", "server"]) -> None:
        """Put ``data`` into the stream of bytes to one side."""
        for carried in self.connections:
            (carried.client if to == "client" else carried.server).write(data)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        if self.target is None:
            writer.close()
            return
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.close()
            return
        carried = Carried(writer, far_writer)
        carried.open.set()
        self.connections.append(carried)
        for source, sink in ((reader, far_writer), (far_reader, writer)):
            task = asyncio.create_task(self._carry(carried, source, sink))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _carry(self, carried: Carried, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(_READ):
                if self.bytes_per_second is not None:
                    await asyncio.sleep(len(data) / self.bytes_per_second)
                if self.latency:
                    await asyncio.sleep(self.latency)
                await carried.open.wait()
                if not carried.lost:
                    sink.write(data)
                    await sink.drain()
        except OSError:
            pass
        if not carried.lost:
            sink.close()
