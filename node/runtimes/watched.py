"""What a runtime keeps while it runs: a pool of connections, and the task that watches over it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from node.runtimes.transport import Transport


class Watched:
    """Base of the runtimes that are spoken to over HTTP. ``_transport`` is there from ``_begin`` to ``close``."""

    def __init__(self) -> None:
        self._transport: Transport | None = None
        self._task: asyncio.Task[None] | None = None

    def _begin(self, watch: Callable[[Transport], Coroutine[Any, Any, None]], name: str) -> None:
        self._transport = Transport()
        self._task = asyncio.create_task(watch(self._transport), name=name)

    async def close(self) -> None:
        """End the task, then the connections; idempotent. Running streams break. Raises what the task ended with, if it
        failed; the connections are closed all the same."""
        task, self._task = self._task, None
        try:
            if task is not None:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
        finally:
            if self._transport is not None:
                await self._transport.close()
                self._transport = None
