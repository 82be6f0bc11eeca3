"""All lanes of the node, and one bound on all who wait."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from node.turns.lane import Lane, OnPlace, Turn
from shared.contract.errors import ApiError

# One in so many places of the queue is kept for principals of whom nobody waits yet, so that one who floods the queue
# does not keep the others out of it.
_KEPT = 8
# Seconds until somebody who was refused should try again, before any answer has ended.
_RETRY = 2.0


class Turns:
    """A lane is a model with slots of its own, by its id; "" is all the others, which share the node's. Lives in one
    event loop."""

    def __init__(self, slots: int, queue_limit: int) -> None:
        self.queue_limit = queue_limit
        self._default = max(1, slots)
        self._own: dict[str, int] = {}
        self._expected: dict[str, int] = {}
        self._lanes: dict[str, Lane] = {}

    @property
    def slots(self) -> int:
        """Answers that may run at once: of the models that have slots of their own, else the node's."""
        return sum(self._own.values()) or self._default

    @property
    def running(self) -> int:
        return sum(lane.running for lane in self._lanes.values())

    @property
    def queued(self) -> int:
        return sum(len(lane.queue) for lane in self._lanes.values())

    def lanes(self) -> dict[str, tuple[int, int, int]]:
        """By lane, slots, running and queued of those that are known or in use."""
        names = {**dict.fromkeys(self._own), **dict.fromkeys(self._lanes)} or {"": None}
        idle = (0, 0)
        found = {}
        for name in names:
            lane = self._lanes.get(name)
            found[name] = (self._limit(name), *(idle if lane is None else (lane.running, len(lane.queue))))
        return found

    def would_queue(self, lane: str = "") -> bool:
        """A request that came now would have to wait, and there is room to."""
        found = self._lanes.get(lane)
        return found is not None and not found.free and self.queued < self.queue_limit

    def set_slots(
        self, default: int, lanes: Mapping[str, int] | None = None, expected: Mapping[str, int] | None = None
    ) -> None:
        """``default`` for the lane "", and how many each other lane has; ``expected`` are lanes that do not run now,
        for those who come to one. Lanes that are not named any more have ``default``, too, until nobody is in them."""
        self._default = max(1, default)
        self._own = {name: max(1, slots) for name, slots in (lanes or {}).items()}
        self._expected = {name: max(1, slots) for name, slots in (expected or {}).items()}
        for name, lane in list(self._lanes.items()):
            lane.set_limit(self._limit(name))
            self._tidy(name)

    def tick(self, now: float) -> None:
        """To be called every second: those who wait hear their place again every few seconds."""
        for lane in self._lanes.values():
            lane.tell_places()

    @asynccontextmanager
    async def take(
        self, principal: str, cost: int, on_place: OnPlace, *, lane: str = "", prefix: str = ""
    ) -> AsyncIterator[Turn]:
        """Hold one slot of ``lane`` while the block runs. ``cost`` is what it may take, in tokens. ``prefix`` is the
        chat type, a NUL, and the principal: what has the same is given the same slot where it can be.

        While waiting, ``on_place(position, eta_seconds)`` is called at once, whenever the place changes, and every few
        seconds. Raises ApiError ``overloaded`` at once when the queue is full. Leaving early, also by cancellation
        while waiting, gives the place or slot back at once.
        """
        found = self._lanes.get(lane)
        if found is None:
            found = self._lanes[lane] = Lane(self._limit(lane))
        if found.free:
            request, turn = found.begin(principal, cost, prefix)
        else:
            self._refuse_beyond(found, principal)
            request = waiting = found.enter(principal, cost, prefix, on_place)
            try:
                turn = await waiting.granted
            except asyncio.CancelledError:
                found.leave(waiting)
                self._tidy(lane)
                raise
        try:
            yield turn
        finally:
            found.end(request, turn)
            self._tidy(lane)

    def _limit(self, lane: str) -> int:
        return self._own.get(lane) or self._expected.get(lane, self._default)

    def _refuse_beyond(self, lane: Lane, principal: str) -> None:
        queued = self.queued
        kept = self.queue_limit // _KEPT if lane.queue.has_waiting(principal) else 0
        if queued < self.queue_limit - kept:
            return
        message = f"All {lane.limit} slots are busy and {queued} requests wait already. Try again soon."
        if kept and queued < self.queue_limit:
            message = f"Of {queued} requests that wait some are yours, and the last places are kept for others."
            message += " Try again when one of yours is done."
        raise ApiError("overloaded", message, retry_after=lane.eta(len(lane.queue)) or _RETRY)

    def _tidy(self, name: str) -> None:
        """A lane that is gone from the runtime ends with its last request."""
        if name and name not in self._own and (lane := self._lanes.get(name)) is not None and lane.idle:
            del self._lanes[name]
