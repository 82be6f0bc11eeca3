"""A client of the node's /link that can say anything."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from shared.link import SUBPROTOCOL
from shared.link.frames import Kind, pack_json
from shared.state import StateDir
from tests.linked import EDGE_HELLO
from tests.pair import Pair
from tests.waiting import HANGS

HELLO = pack_json(0, Kind.HELLO, EDGE_HELLO.to_wire())


@asynccontextmanager
async def dial(pair: Pair, **changes: Any) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    """A WebSocket to the node's /link with the right token."""
    options: dict[str, Any] = {"protocols": (SUBPROTOCOL,), "max_msg_size": 0, "compress": 0} | changes
    token = options.pop("token", None) or token_of(pair)
    headers = {"Authorization": f"Bearer {token}"} | options.pop("headers", {})
    url = f"ws://127.0.0.1:{pair.node.listener.port}/link"
    async with pair.client.ws_connect(url, headers=headers, **options) as socket:
        yield socket


def token_of(pair: Pair) -> str:
    return StateDir(pair.state).node_token()


async def closing_code(socket: aiohttp.ClientWebSocketResponse) -> int | None:
    async with asyncio.timeout(HANGS):
        while True:
            message = await socket.receive()
            if message.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR):
                return socket.close_code
