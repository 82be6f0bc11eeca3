"""How a caller stands, as the server's scripts reply it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edge.plans import Plan
from edge.principals import SECONDS_PER_DAY
from edge.store.gcra import PERIOD_SECONDS
from edge.store.ledger import Allowance, Grant, usage_of

_MICROSECONDS = 1_000_000
# As in the scripts: what sums of 60 s / limit may drift by.
_MARGIN_SECONDS = 1e-4


@dataclass(frozen=True, slots=True)
class Counts:
    """At ``now`` (Unix seconds, the server's): seconds that the buckets of caller and address are ahead, tokens
    ``used`` and ``held`` today, answers ``running``."""

    now: float
    ahead: float
    address_ahead: float
    used: int
    held: int
    running: int

    @classmethod
    def of(cls, *numbers: str | int) -> Counts:
        """From the six numbers as scripts reply them, times in microseconds."""
        now, ahead, address_ahead, used, held, running = map(int, numbers)
        return cls(now / _MICROSECONDS, ahead / _MICROSECONDS, address_ahead / _MICROSECONDS, used, held, running)

    @property
    def until_tomorrow(self) -> float:
        return SECONDS_PER_DAY - self.now % SECONDS_PER_DAY

    def grant(self, plan: Plan, per_address: int | None) -> Grant:
        """``per_address`` is None for a caller whose address has no rate."""
        requests = self._requests(plan)
        if requests is not None and per_address is not None:
            left = _left(self.address_ahead, per_address)
            if left < requests.remaining:  # others at this address used it up
                requests = Allowance(requests.limit, left, self.address_ahead)
        limit = plan.tokens_per_day
        return Grant(requests, None if limit is None else self._tokens(limit))

    def wait(self, per_minute: int) -> float:
        """Seconds until the caller may send one more, 0.0 when it may now."""
        return _wait(self.ahead, per_minute)

    def address_wait(self, per_minute: int) -> float:
        return _wait(self.address_ahead, per_minute)

    def usage(self, plan: Plan) -> dict[str, Any]:
        """As ``Ledger.usage_today``."""
        limit = plan.tokens_per_day
        return usage_of(
            plan,
            self._requests(plan),
            None if limit is None else self._tokens(limit),
            running=self.running,
            used=self.used,
            held=self.held,
            reset=self.until_tomorrow,
        )

    def _requests(self, plan: Plan) -> Allowance | None:
        limit = plan.requests_per_minute
        return None if limit is None else Allowance(limit, _left(self.ahead, limit), self.ahead)

    def _tokens(self, limit: int) -> Allowance:
        return Allowance(limit, max(0, limit - self.used - self.held), self.until_tomorrow)


def _left(ahead: float, per_minute: int) -> int:
    return max(0, int((PERIOD_SECONDS - ahead + _MARGIN_SECONDS) * per_minute / PERIOD_SECONDS))


def _wait(ahead: float, per_minute: int) -> float:
    if per_minute == 0:
        return 0.0
    over = ahead - PERIOD_SECONDS + PERIOD_SECONDS / per_minute
    return over if over > _MARGIN_SECONDS else 0.0
