"""The connections of a ``Transport``: which are new, which are to be, and an end of them that every reader hears of."""

from __future__ import annotations

import asyncio
import weakref
from typing import Any

import aiohttp


class Connector(aiohttp.TCPConnector):
    """Remembers which tasks were given a new connection (aiohttp's tracing tells, too, and costs every request 3 %) and
    which connections are open. Tasks in ``dialling`` are given a new one."""

    dialled: set[asyncio.Task[Any] | None]
    dialling: set[asyncio.Task[Any] | None]
    open: weakref.WeakSet[Any]

    def __init__(self, *, limit: int, keepalive_timeout: float) -> None:
        super().__init__(limit=limit, keepalive_timeout=keepalive_timeout)
        self.dialled = set()
        self.dialling = set()
        self.open = weakref.WeakSet()

    def cut(self) -> bool:
        """Cut all connections; whether there were any."""
        transports = [protocol.transport for protocol in self.open if protocol.transport is not None]
        for transport in transports:
            transport.abort()
        return bool(transports)

    async def _get(self, *arguments: Any, **named: Any) -> Any:
        if asyncio.current_task() in self.dialling:
            return None
        return await super()._get(*arguments, **named)

    async def _create_connection(self, *arguments: Any, **named: Any) -> Any:
        self.dialled.add(asyncio.current_task())
        protocol = await super()._create_connection(*arguments, **named)
        self.open.add(protocol)
        return protocol
