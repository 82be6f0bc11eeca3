"""Waiting for what another task, process or machine will do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

# Seconds after which what is waited for counts as never coming. What takes milliseconds by itself has them on a machine
# that others use as well; and a lost link, which nobody is told of, is given up after 12 s only.
HANGS = 10.0


async def wait_until(
    predicate: Callable[[], object], seconds: float = HANGS, *, what: Callable[[], object] | None = None
) -> None:
    """Return as soon as ``predicate()`` is true, looked at every 5 ms. Raises AssertionError after ``seconds``,
    with what ``what()`` says then."""
    try:
        async with asyncio.timeout(seconds):
            while not predicate():  # noqa: ASYNC110 - what is waited for has no event of its own
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"not within {seconds} s" + (f": {what()}" if what else "")) from None


class Stopwatch:
    """Seconds since it was made that are of this process's main thread: those in which it could have gone on, and the
    machine let somebody else run, are not counted. For what must be done at once, and is done by that thread alone, as
    between edge, node and runtime of a pair."""

    def __init__(self) -> None:
        self._began = self._own()

    @property
    def seconds(self) -> float:
        return self._own() - self._began

    @staticmethod
    def _own() -> float:
        return time.monotonic() - _held_up(Path("/proc/self/schedstat"))


def held_up(process: int) -> float:
    """Seconds in which threads of ``process`` could have gone on, and the machine let somebody else run."""
    return sum(map(_held_up, Path(f"/proc/{process}/task").glob("*/schedstat")))


def _held_up(counted: Path) -> float:
    try:
        return int(counted.read_text().split()[1]) / 1e9
    except (OSError, IndexError):  # no Linux, or one that does not count it
        return 0.0
