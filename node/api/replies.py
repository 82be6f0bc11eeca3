"""How an operation answers: one JSON object, or named events for whoever accepts a stream."""

from __future__ import annotations

import json
from typing import Any

from shared.contract import sse
from shared.contract.usage import Usage
from shared.link.call import End, Outlet

_JSON_TYPE = "application/json"
_SSE_TYPE = "text/event-stream; charset=utf-8"
DONE = End("stop", Usage())


async def reply(out: Outlet, payload: Any) -> End:
    """``payload`` as the whole answer."""
    return await reply_with(out, to_json(payload))


async def reply_with(out: Outlet, body: bytes) -> End:
    """``body``, which is JSON, as the whole answer."""
    out.head({"content-type": _JSON_TYPE})
    await out.data(body)
    return DONE


class EventStream:
    """Named events, each with a JSON object. The head leaves with the first, so that an error before it has a status;
    ``begin`` sends it at once."""

    def __init__(self, out: Outlet) -> None:
        self._out = out
        self._began = False

    def begin(self) -> None:
        if not self._began:
            self._began = True
            self._out.head({"content-type": _SSE_TYPE})

    def note(self, name: str, payload: Any) -> None:
        """For the few events that cannot wait for a slow reader."""
        self.begin()
        self._out.note(sse.encode(to_json(payload), name))

    async def send(self, name: str, payload: Any) -> None:
        """Waits while the reader is slow."""
        self.begin()
        await self._out.data(sse.encode(to_json(payload), name))

    async def end(self, name: str, payload: Any) -> End:
        """``send`` the last one."""
        await self.send(name, payload)
        return DONE


def to_json(payload: Any) -> bytes:
    return json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode()
