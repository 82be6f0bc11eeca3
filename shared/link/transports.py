"""Message transports for the link: an accepted ASGI WebSocket, and one dialled with aiohttp. No compression, no pings
of their own (the session has its own), explicit size limits."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import aiohttp
from yarl import URL

from shared.link import SUBPROTOCOL, frames

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

# Seconds for TCP connect and the WebSocket handshake together. A tailnet path that needs longer is not up yet.
DIAL_WITHIN = 5.0


class AsgiTransport:
    """The server's end. The caller has accepted the WebSocket."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send

    async def send(self, message: bytes) -> None:
        await self._send({"type": "websocket.send", "bytes": message})

    async def receive(self) -> bytes | None:
        event = await self._receive()
        if event["type"] == "websocket.receive":
            return event.get("bytes") or b""  # text is not ours: an empty message is a protocol error
        return None

    async def close(self, code: int, reason: str) -> None:
        await self._send({"type": "websocket.close", "code": code, "reason": reason})


class DialRefused(Exception):
    """The other side answered the handshake with an HTTP status: 401 and 403 mean this edge is not admitted."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class DialledTransport:
    """The client's end. ``client`` stays the caller's; the WebSocket is closed by ``close``."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self.close_reason = ""  # what the other side said when it closed the connection

    @classmethod
    async def dial(
        cls,
        client: aiohttp.ClientSession,
        url: str,
        token: str,
        *,
        proxy: str | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> DialledTransport:
        """Connect to a node's ``/link``, through an HTTP ``proxy`` where one is given, with ``tls`` in place of what
        wss:// uses by itself. Raises DialRefused, aiohttp.ClientError, OSError or TimeoutError."""
        try:
            socket = await client.ws_connect(
                # A proxy is asked for http://; it does not know ws://, which is the same until the upgrade.
                URL(url) if proxy is None else URL(url.replace("ws", "http", 1)),
                proxy=proxy,
                ssl=tls if tls is not None else True,
                protocols=(SUBPROTOCOL,),
                headers={"Authorization": f"Bearer {token}"},
                compress=0,
                max_msg_size=frames.MAX_WIRE_BYTES,
                autoping=True,
                heartbeat=None,
                timeout=aiohttp.ClientWSTimeout(ws_close=1.0),  # pyright: ignore[reportCallIssue] - an attrs class
            )
        except aiohttp.WSServerHandshakeError as error:
            raise DialRefused(error.status, error.message) from None
        if socket.protocol != SUBPROTOCOL:
            await socket.close()
            raise DialRefused(200, f"the other side does not speak {SUBPROTOCOL}")
        return cls(socket)

    async def send(self, message: bytes) -> None:
        await self._socket.send_bytes(message)

    async def receive(self) -> bytes | None:
        message = await self._socket.receive()
        if message.type is aiohttp.WSMsgType.BINARY:
            return message.data
        if message.type is aiohttp.WSMsgType.TEXT:
            return b""
        if message.type is aiohttp.WSMsgType.CLOSE:
            self.close_reason = str(message.extra or "")
        return None

    @property
    def close_code(self) -> int | None:
        return self._socket.close_code

    async def close(self, code: int, reason: str) -> None:
        await self._socket.close(code=code, message=reason.encode())
