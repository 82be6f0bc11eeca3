"""End a block of code from outside with an error of one's choosing, as ``asyncio.timeout`` does with TimeoutError."""

from __future__ import annotations

import asyncio
from types import TracebackType


class Interrupt:
    """``async with Interrupt() as interrupt:``; ``interrupt.end_with(error)`` cancels the block at its next await and
    raises ``error`` from it. The first reason stays; a cancellation from elsewhere passes through untouched."""

    def __init__(self) -> None:
        self._why: Exception | None = None
        self._task: asyncio.Task[object] | None = None

    async def __aenter__(self) -> Interrupt:
        self._task = asyncio.current_task()
        return self

    def end_with(self, error: Exception) -> None:
        if self._why is None and self._task is not None:
            self._why = error
            self._task.cancel()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        task, self._task = self._task, None
        if self._why is None or task is None:
            return
        if task.uncancel() <= 0 and isinstance(error, asyncio.CancelledError):
            raise self._why from None
