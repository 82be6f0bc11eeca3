"""Notice that the caller left, wherever the request is waiting."""

from __future__ import annotations

import asyncio
from types import TracebackType

from shared.asgi.body import ClientLeft
from shared.asgi.types import Receive
from shared.interrupt import Interrupt


class Departure(Interrupt):
    """Runs a watcher beside the block: when the caller disconnects, ClientLeft is raised from the block's next await.

    Enter it once the body has been read and before anything is asked of a node: callers leave while they wait, too.
    """

    def __init__(self, receive: Receive) -> None:
        super().__init__()
        self._receive = receive

    async def __aenter__(self) -> Departure:
        await super().__aenter__()
        self._watcher = asyncio.create_task(self._watch())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._watcher.cancel()
        await super().__aexit__(kind, error, trace)

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.end_with(ClientLeft())
