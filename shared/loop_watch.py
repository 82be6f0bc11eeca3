"""Is the event loop blocked? Everybody waits for whoever blocks it, and nobody else can tell."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from loguru import logger

from shared.systemd import ALIVE, Notifier

# Seconds between two looks. A loop that is blocked for longer than BLOCKED is seen however the looks fall, and one that
# is blocked for less only when it lacks less than this.
_LOOK_EVERY = 0.025
# Seconds between two looks from which on the loop counts as blocked: a person notices a stream that halts this long.
BLOCKED = 0.25
# Seconds between two lines about it: a machine that is too small would write nothing else.
_QUIET = 60.0
# WATCHDOG_USEC is a limit, and half of it is what sd_watchdog_enabled(3) recommends.
_SHARE = 0.5


class LoopWatch:
    """Looks at the loop forty times a second. ``blocked`` is told each time it was blocked, and for how many seconds;
    while it is not, systemd's watchdog hears that it lives. ``run`` until cancelled."""

    def __init__(self, blocked: Callable[[float], None], notifier: Notifier) -> None:
        self._blocked = blocked
        self._notifier = notifier
        self._alive_every = None if notifier.watchdog is None else notifier.watchdog * _SHARE
        self._next_line = 0.0
        self._unsaid = 0

    async def run(self) -> None:
        clock = asyncio.get_running_loop().time
        looked = alive = clock()
        while True:
            await asyncio.sleep(_LOOK_EVERY)
            now = clock()
            if now - looked > BLOCKED:
                self._report(now, now - looked)
            looked = now
            if self._alive_every is not None and now - alive >= self._alive_every - _LOOK_EVERY:
                self._notifier.tell(ALIVE)
                alive = now

    def _report(self, now: float, seconds: float) -> None:
        self._blocked(seconds)
        if now < self._next_line:
            self._unsaid += 1
            return
        times = "1 more time" if self._unsaid == 1 else f"{self._unsaid} more times"
        more = f", and {times} since the last such line" if self._unsaid else ""
        logger.warning("the event loop stood still for {:.0f} ms{}: all callers waited", seconds * 1000, more)
        self._next_line, self._unsaid = now + _QUIET, 0
