"""How much this edge can carry: answers at once, and memory. What is over it is refused with 503 before it is asked of
anybody else, so that what runs goes on well."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from shared.contract.errors import ApiError
from shared.memory import Memory

# Of what the system lets this process have. Above it no more answers begin than had begun: what was freed is used again
# within the process long before the system sees it, so some room has to stay.
_FULL = 0.9
# Of the answers that ran when memory got short, so many may run until it is not short any more.
_KEPT = 0.9


class Load:
    """``most`` answers at once; it may be set at any time. ``memory`` is None where nothing bounds it. ``tick`` belongs
    in the process's ticker."""

    def __init__(self, most: int, memory: Memory | None) -> None:
        self.most = most
        self.running = 0
        self._memory = memory
        self._room: int | None = None  # answers at once while memory is short

    @property
    def short(self) -> bool:
        """Whether memory is."""
        return self._room is not None

    def tick(self, now: float) -> None:
        """Look how much memory is used."""
        used = self._memory.used_share() if self._memory is not None else None
        if used is None or used < _FULL:
            self._room = None
        elif self._room is None:
            self._room = max(1, int(self.running * _KEPT))

    def check(self) -> None:
        """Raises ApiError ``overloaded`` when one more answer is too much."""
        if self.running >= self.most:
            raise ApiError("overloaded", "As many answers run on this edge as it allows. Please try again in a moment.")
        if self._room is not None and self.running >= self._room:
            raise ApiError("overloaded", "This edge is short of memory. Please try again in a moment.")

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place for one answer, while the block runs. Raises as ``check``."""
        self.check()
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1
