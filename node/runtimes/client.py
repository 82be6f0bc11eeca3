"""One server that is spoken to over HTTP: where it is and what it wants to be shown, with short questions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from node.runtimes.transport import Reply, Transport


class Client:
    """``base`` is the URL that ends in the API's version, ``root`` the server's own. ``seconds`` bounds each question.
    The transport stays its maker's."""

    def __init__(self, transport: Transport, base: str, headers: Mapping[str, str], seconds: float) -> None:
        self.transport = transport
        self.base = base
        self.root = base.rsplit("/", 1)[0]
        self.headers = headers
        self.seconds = seconds

    async def ask(self, url: str, body: object = None, seconds: float | None = None) -> Reply:
        """GET ``url``, or POST ``body`` as JSON. Raises OSError or TimeoutError when there is no whole answer."""
        return await self.transport.ask(url, self.headers, seconds or self.seconds, body)

    async def json(self, path: str, body: object = None) -> Mapping[str, Any]:
        """One of the server's own routes, below ``root``: its JSON object, or {} when it has none there."""
        reply = await self.ask(self.root + path, body)
        return reply.payload if reply.status == 200 and isinstance(reply.payload, dict) else {}

    async def text(self, path: str) -> str:
        """One of the server's own routes: its text, or "" when it has none there. Raises as ``ask``."""
        return await self.transport.text(self.root + path, self.headers, self.seconds)
