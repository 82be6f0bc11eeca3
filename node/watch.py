"""Deadlines of one answer, looked at once a second: the caller's own, the first token, the pause between two."""

from __future__ import annotations

import asyncio
from types import TracebackType

from shared.contract.errors import ApiError
from shared.interrupt import Interrupt
from shared.ticker import Ticker


class Watch:
    """``async with Watch(...) as watch:``; the block is ended with an ApiError when a deadline passes.

    ``since`` is loop time while the runtime is being read, else None: time spent on a slow reader is not the runtime's.
    ``first_token_at`` is loop time, too; whoever reads sets both.

    ``first_token`` and ``stall`` are seconds, ``deadline`` is loop time.
    """

    def __init__(self, ticker: Ticker, first_token: float, stall: float, deadline: float) -> None:
        self.interrupt = Interrupt()
        self.first_token_at: float | None = None
        self._ticker = ticker
        self._limits = (first_token, stall)
        self._deadline = deadline
        self._clock = asyncio.get_running_loop().time
        self.since: float | None = None
        self.entered_at = self._clock()

    async def __aenter__(self) -> Watch:
        await self.interrupt.__aenter__()
        self._ticker.add(self._tick)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ticker.remove(self._tick)
        await self.interrupt.__aexit__(kind, error, trace)

    def _tick(self, now: float) -> None:
        if now > self._deadline:
            text = "The answer took longer than the edge allows (edge.request_timeout). Ask for fewer tokens."
            self.interrupt.end_with(ApiError(self._code(), text))
            return
        limit = self._limits[self.first_token_at is not None]
        if self.since is not None and now - self.since > limit:
            text = f"The model runtime was silent for {limit:g} s. Please try again."
            self.interrupt.end_with(ApiError(self._code(), text))

    def _code(self) -> str:
        return "first_token_timeout" if self.first_token_at is None else "upstream_stalled"
