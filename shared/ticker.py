"""One timer a process: whatever must look at the clock about once a second registers here, instead of a timer per
stream."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from loguru import logger

# Seconds. Every deadline checked here is several times longer.
TICK = 1.0


class Ticker:
    """Calls each registered function with the loop's time, once a second. Owned by the app; ``run`` until cancelled."""

    def __init__(self) -> None:
        self._calls: set[Callable[[float], None]] = set()

    def add(self, call: Callable[[float], None]) -> None:
        self._calls.add(call)

    def remove(self, call: Callable[[float], None]) -> None:
        self._calls.discard(call)

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(TICK)
            now = loop.time()
            for call in list(self._calls):
                try:
                    call(now)
                except Exception as error:  # one bad watcher must not stop the others
                    logger.opt(exception=error).error("a ticker call failed")
