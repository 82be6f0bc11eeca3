"""An event loop whose clock stands still while there is work and jumps to the next timer when there is none: hours of
waiting pass in milliseconds, and the same way every time."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


class _Selector(selectors.SelectSelector):
    """Where the loop would sleep, its clock moves."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "everything waits, and nothing will ever happen"
        self.now += timeout
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._clock = _Selector()
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now


def run_virtually(work: Coroutine[Any, Any, Result]) -> Result:
    """Run ``work`` to its end; ``loop.time()`` begins at 0. For tests that are no coroutines themselves."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(work)
