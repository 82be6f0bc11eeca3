"""What a process does with the signals that stop it or make it read its settings again, from its first moment on."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable

from loguru import logger


class StoppedEarly(Exception):
    """Asked to stop before it served. ``number`` is the signal's."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number.name)
        self.number = number


class Signals:
    """Takes SIGTERM, SIGINT and SIGHUP of the process once it is made; on the event loop. The first that asks to stop
    before ``serve`` is told to ``early``."""

    def __init__(self, early: Callable[[StoppedEarly], None]) -> None:
        self._early = early
        self._first, self._second = asyncio.Event(), asyncio.Event()
        self._reload: Callable[[], None] | None = None
        self._to_reload = False
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, self._asked_to_reload)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._asked_to_stop, number)

    async def serve(self, drain: Callable[[], Awaitable[None]], reload: Callable[[], None]) -> None:
        """Call ``reload`` at each SIGHUP. Wait for SIGTERM or SIGINT, then run ``drain``; a second one cuts it
        short."""
        self._reload = reload
        if self._to_reload:
            reload()
        await self._first.wait()
        logger.info("stopping: no new requests, running ones may finish")
        waiting = (asyncio.ensure_future(drain()), asyncio.ensure_future(self._second.wait()))
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    def _asked_to_stop(self, number: signal.Signals) -> None:
        if self._reload is None:
            self._early(StoppedEarly(number))
        else:
            (self._second if self._first.is_set() else self._first).set()

    def _asked_to_reload(self) -> None:
        if self._reload is None:
            self._to_reload = True  # what it starts with may be older
        else:
            self._reload()
