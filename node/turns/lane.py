"""The slots of one lane: who holds them, who waits, and what those are told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from node.turns.queue import FairQueue
from node.turns.slots import Slots

# Place in the queue from 1, and the seconds until its turn as far as they can be guessed. Called from the loop.
OnPlace = Callable[[int, float | None], None]

# Weight of the newest answer in the running means; about the last ten count.
_RECENT = 0.1
# Seconds after which one who waits is told the place again, though it is the same.
_TELL_AGAIN = 5.0
# Seconds that telling one place may take on average: a queue of 64 is told anew every 64 ms at most, one of 10,000
# every 10 s.
_TELLING = 0.001


@dataclass(slots=True, eq=False)
class Turn:
    """A slot while it is held. ``slot`` is its number in its lane, ``waited`` the seconds spent in the queue. ``spent``
    is set to what the turn cost once that is known, in tokens; until then it counts for what was expected."""

    slot: int
    waited: float = 0.0
    spent: int | None = None


@dataclass(slots=True, eq=False)
class Request:
    """From its arrival to the end of its turn."""

    principal: str
    charge: float
    prefix: str
    came_at: float


@dataclass(slots=True, eq=False)
class Waiting(Request):
    """One that came when there was no free slot."""

    on_place: OnPlace
    granted: asyncio.Future[Turn]
    told_place: int = 0
    told_at: float = field(default=float("-inf"))


class Lane:
    """``limit`` may change while requests run; ``running`` may then exceed it until some end."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.running = 0
        self.queue: FairQueue[Waiting] = FairQueue(_now)
        self._slots = Slots(limit)
        self._mean_seconds: float | None = None
        self._mean_tokens: float | None = None
        self._telling: asyncio.TimerHandle | None = None
        self._told_all_at = float("-inf")

    @property
    def free(self) -> bool:
        """A request that came now would run at once."""
        return self.running < self.limit and not self.queue

    @property
    def idle(self) -> bool:
        return not self.running and not self.queue

    def set_limit(self, limit: int) -> None:
        if limit != self.limit:
            self.limit = limit
            self._slots.set_limit(limit)
            self._grant()

    def begin(self, principal: str, cost: int, prefix: str) -> tuple[Request, Turn]:
        """A turn at once, which the caller ends with ``end``. Only while the lane is ``free``."""
        request = Request(principal, self._charge(cost), prefix, _now())
        self.queue.start(request)
        self.running += 1
        return request, Turn(self._slots.take(prefix))

    def enter(self, principal: str, cost: int, prefix: str, on_place: OnPlace) -> Waiting:
        """``granted`` has the turn as soon as there is a slot; meanwhile its place is told. The caller ends it with
        ``leave`` or ``end``, whichever fits then."""
        granted: asyncio.Future[Turn] = asyncio.get_running_loop().create_future()
        waiting = Waiting(principal, self._charge(cost), prefix, _now(), on_place, granted)
        self.queue.push(waiting)
        self._grant()
        if not granted.done():
            self._tell(waiting, self.queue.place(waiting), _now())
            self._tell_soon()
        return waiting

    def _charge(self, cost: int) -> float:
        charge = float(max(1, cost))
        if self._mean_tokens is None:
            return charge
        return min(charge, max(1.0, self._mean_tokens))  # answers are far shorter than they may be

    def leave(self, waiting: Waiting) -> None:
        """It goes before its turn began."""
        if waiting.granted.done() and not waiting.granted.cancelled():  # granted in the very tick in which it went
            self._release(waiting, waiting.granted.result().slot, 0.0)
        elif self.queue.remove(waiting):  # else a slot fell free in that tick, and went to the next one
            self._tell_soon()

    def end(self, request: Request, turn: Turn) -> None:
        """Its turn is over."""
        seconds = _now() - request.came_at - turn.waited
        self._mean_seconds = _mean(self._mean_seconds, seconds)
        if turn.spent is not None:
            self._mean_tokens = _mean(self._mean_tokens, turn.spent)
        self._release(request, turn.slot, request.charge if turn.spent is None else turn.spent)

    def eta(self, place: int) -> float | None:
        """Seconds until ``place`` runs, from recent answers; None before the first has ended."""
        return None if self._mean_seconds is None else round(self._mean_seconds * place / self.limit, 1)

    def tell_places(self) -> None:
        """Tell everyone whose place has changed, or who has not heard for a while."""
        if self._telling is not None:
            self._telling.cancel()
            self._telling = None
        self._told_all_at = now = _now()
        for place, waiting in enumerate(self.queue.order(), 1):
            if place != waiting.told_place or now - waiting.told_at >= _TELL_AGAIN:
                self._tell(waiting, place, now)

    def _tell(self, waiting: Waiting, place: int, now: float) -> None:
        waiting.told_place, waiting.told_at = place, now
        waiting.on_place(place, self.eta(place))

    def _tell_soon(self) -> None:
        """At once where the last time is long enough ago for so many, else then."""
        if self._telling is not None or not self.queue:
            return
        pause = self._told_all_at + len(self.queue) * _TELLING - _now()
        if pause <= 0:
            self.tell_places()
        else:
            self._telling = asyncio.get_running_loop().call_later(pause, self.tell_places)

    def _release(self, request: Request, slot: int, spent: float) -> None:
        self.running -= 1
        self._slots.give_back(slot, request.prefix)
        self.queue.settle(request, spent)
        if self.queue:
            self._grant()

    def _grant(self) -> None:
        moved = False
        while self.queue and self.running < self.limit:
            waiting = self.queue.pop()
            moved = True
            if waiting.granted.cancelled():  # its task was cancelled and has not run yet
                self.queue.settle(waiting, 0.0)
                continue
            self.running += 1
            waiting.granted.set_result(Turn(self._slots.take(waiting.prefix), _now() - waiting.came_at))
        if moved:
            self._tell_soon()


def _now() -> float:
    return asyncio.get_running_loop().time()


def _mean(mean: float | None, newest: float) -> float:
    return newest if mean is None else mean + _RECENT * (newest - mean)
