"""Seats of plans: how many different callers each of them serves, in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from edge.plans import Plan
from edge.principals import SECONDS_PER_DAY
from edge.store import refusals
from shared.contract.errors import ApiError

# How long after its caller's last request a seat is free again.
HELD_SECONDS = SECONDS_PER_DAY
# A seat is kept anew when its end has moved this far, so that not every request costs a write. After a restart it may
# be free that much too early.
_KEEP_STEP_SECONDS = 60


class Seats:
    """Who sits where. ``now`` gives Unix seconds; ``keep(plan, principal_id, until)`` writes one seat down."""

    def __init__(self, now: Callable[[], float], keep: Callable[[str, str, int], None]) -> None:
        self._now = now
        self._keep = keep
        # Plan -> principal id -> (free again at, as it was written down). Who came longest ago is the first.
        self._taken: dict[str, dict[str, tuple[int, int]]] = {}

    def load(self, seats: Iterable[tuple[str, str, int]]) -> None:
        """What was written down: plan, principal id, free again at."""
        for plan, principal_id, until in sorted(seats, key=lambda seat: seat[2]):
            self._taken.setdefault(plan, {})[principal_id] = (until, until)

    def refusal(self, principal_id: str, plan: Plan) -> ApiError | None:
        if plan.seats is None:
            return None
        now, taken = self._now(), self._taken.get(plan.name, {})
        for sitter, (until, _) in list(taken.items()) if len(taken) >= plan.seats else ():
            if until > now:
                break
            del taken[sitter]
        if principal_id in taken or len(taken) < plan.seats:
            return None
        return refusals.seats_taken(plan, next(iter(taken.values()))[0] - now if taken else None)

    def take(self, principal_id: str, plan: Plan) -> None:
        """Take a seat, or have it for longer."""
        if plan.seats is None:
            return
        until = int(self._now()) + HELD_SECONDS
        taken = self._taken.setdefault(plan.name, {})
        kept = taken.pop(principal_id, (0, 0))[1]
        if until - kept >= _KEEP_STEP_SECONDS:
            self._keep(plan.name, principal_id, until)
            kept = until
        taken[principal_id] = (until, kept)
