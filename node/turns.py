"""Whose turn is it: as many answers run as the runtime has slots, the rest wait in a bounded queue, first come first
served."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from shared.contract.errors import ApiError

OnPlace = Callable[[int, float | None], None]

# Weight of the newest answer in the running mean of how long one takes; about the last ten count.
_RECENT = 0.1


@dataclass(slots=True, eq=False)
class _Waiting:
    granted: asyncio.Future[None]
    on_place: OnPlace
    principal: str
    cost: int


class Turns:
    """``slots`` may change while requests run (``set_slots``); ``running`` may then exceed it until some end."""

    def __init__(self, slots: int, queue_limit: int, on_change: Callable[[], None] = lambda: None) -> None:
        self.slots = slots
        self.queue_limit = queue_limit
        self.running = 0
        self._queue: deque[_Waiting] = deque()
        self._on_change = on_change
        self._mean_seconds: float | None = None

    @property
    def queued(self) -> int:
        return len(self._queue)

    @property
    def would_queue(self) -> bool:
        """A request that came now would have to wait, and there is room to."""
        return not self._at_once and len(self._queue) < self.queue_limit

    @property
    def _at_once(self) -> bool:
        return self.running < self.slots and not self._queue

    def set_slots(self, slots: int) -> None:
        self.slots = max(1, slots)
        self._grant()

    @asynccontextmanager
    async def take(self, principal: str, cost: int, on_place: OnPlace) -> AsyncIterator[None]:
        """Hold one slot while the block runs. While waiting, ``on_place(position, eta_seconds)`` is called at once and
        whenever the place changes. Raises ApiError ``overloaded`` at once when the queue is full. Leaving early, also
        by cancellation while waiting, gives the place or slot back at once."""
        if self._at_once:
            self.running += 1
        else:
            await self._wait(_Waiting(asyncio.get_running_loop().create_future(), on_place, principal, cost))
        self._on_change()
        started = time.monotonic()
        try:
            yield
        finally:
            self._remember(time.monotonic() - started)
            self.running -= 1
            self._grant()
            self._on_change()

    async def _wait(self, waiting: _Waiting) -> None:
        if len(self._queue) >= self.queue_limit:
            message = f"All {self.slots} slots are busy and {len(self._queue)} requests wait already. Try again soon."
            raise ApiError("overloaded", message, retry_after=self._eta(len(self._queue)) or 2.0)
        self._queue.append(waiting)
        self._on_change()
        waiting.on_place(len(self._queue), self._eta(len(self._queue)))
        try:
            await waiting.granted
        except asyncio.CancelledError:
            if waiting.granted.done() and not waiting.granted.cancelled():
                self.running -= 1  # granted in the very tick in which the caller left
                self._grant()
            elif waiting in self._queue:  # else a slot fell free in that tick, and went to the next one
                self._queue.remove(waiting)
                self._tell_places()
            self._on_change()
            raise

    def _grant(self) -> None:
        moved = False
        while self._queue and self.running < self.slots:
            waiting = self._queue.popleft()
            moved = True
            if not waiting.granted.cancelled():  # its task was cancelled and has not run yet
                waiting.granted.set_result(None)
                self.running += 1
        if moved:
            self._tell_places()

    def _tell_places(self) -> None:
        for place, waiting in enumerate(self._queue, 1):
            waiting.on_place(place, self._eta(place))

    def _eta(self, place: int) -> float | None:
        """Seconds until ``place`` runs, from recent answers; None before the first has ended."""
        return None if self._mean_seconds is None else round(self._mean_seconds * place / self.slots, 1)

    def _remember(self, seconds: float) -> None:
        mean = self._mean_seconds
        self._mean_seconds = seconds if mean is None else mean + _RECENT * (seconds - mean)
