"""What an edge does while its store does not answer: it counts for itself, carefully, or says that it cannot."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from edge.plans import Plan
from edge.principals import Principal, day_of
from edge.store.accounts import Reservation
from edge.store.ledger import Grant
from edge.store.limits import Limits
from shared.contract.errors import ApiError

# What each edge lets through alone, of a rate that they share: with two of them no more than together.
_SHARE = 2
# The server is looked for twice a second, and it may be a start of several seconds.
_RETRY_SECONDS = 5.0
# About 10 MB. Whoever comes past it is refused, because forgetting one would give it a whole quota again.
_MOST_COUNTED = 100_000

WithoutStore = Literal["refuse", "count"]


def cannot_count() -> ApiError:
    """What needs the store, which does not answer, is refused."""
    return ApiError(
        "overloaded",
        "This edge cannot look up or count right now, because its store does not answer. Please try again in a moment.",
        retry_after=_RETRY_SECONDS,
    )


class Alone:
    """Limits of this process. Every answer's reservation is here too, so that they begin with what is running.

    ``per_ip`` requests a minute are an address's. With ``without_store`` "refuse", plans with a quota are refused.
    ``now`` gives Unix seconds, ``monotonic`` seconds.
    """

    def __init__(
        self,
        per_ip: int | None,
        without_store: WithoutStore,
        now: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        careful = None if per_ip is None else _part(per_ip)
        self._now = now
        self._used = _Today()
        self._used_together = _Today()
        self._limits = Limits(careful, self._used.tokens, self._used_together.tokens, now, monotonic)
        self._counts = without_store == "count"

    def refusal(self, ip: str | None, principal: Principal, plan: Plan, tokens: int | None) -> ApiError | None:
        """Why a request is refused while the store is away; with ``tokens`` one that starts an answer of that many."""
        if tokens is not None and (principal.uses is not None or (_has_quota(plan) and not self._counts)):
            return cannot_count()
        if tokens is not None and _has_quota(plan) and not self._used.room(principal.id, day_of(self._now())):
            return cannot_count()
        careful = _careful(plan)
        error = self._limits.rate_refusal(ip, principal.id, careful)
        if error is None and tokens is not None:
            error = self._limits.load_refusal(principal.id, careful, tokens)
        if error is not None and error.status == 429:
            error.extra_headers += self._limits.grant(ip, principal.id, careful).headers()
        return error

    def take_request(self, ip: str | None, principal: Principal, plan: Plan) -> Grant:
        careful = _careful(plan)
        self._limits.take_request(ip, principal.id, careful)
        return self._limits.grant(ip, principal.id, careful)

    def sure_refusal(self, principal_id: str, plan: Plan) -> ApiError | None:
        """Why one more answer is too much whatever the store says: the plan allows none today, or all that it allows at
        once run in this process."""
        nothing = 0 if plan.tokens_per_day == 0 else None
        if plan.streams is None and nothing is None:
            return None
        sure = Plan(plan.name, streams=plan.streams, tokens_per_day=nothing)
        return self._limits.load_refusal(principal_id, sure, 1)

    def reserve(self, principal_id: str, plan: Plan, tokens: int, lifetime: float) -> Reservation:
        return self._limits.reserve(principal_id, plan, tokens, lifetime)

    def settle(self, reservation: Reservation, tokens: int) -> None:
        self._limits.settle(reservation, tokens)
        if self._counts and tokens:
            self._used.add(reservation.principal_id, reservation.day, tokens)
            if reservation.plan is not None:
                self._used_together.add(reservation.plan, reservation.day, tokens)

    def abandoned(self, reservation: Reservation) -> bool:
        return self._limits.abandoned(reservation)

    def sweep(self) -> None:
        self._limits.sweep()


class _Today:
    """Tokens that this process counted on the last day that it counted any, by principal id or plan."""

    def __init__(self) -> None:
        self._day = 0
        self._tokens: dict[str, int] = {}

    def tokens(self, whose: str, day: int) -> int:
        return self._tokens.get(whose, 0) if day == self._day else 0

    def room(self, whose: str, day: int) -> bool:
        return day != self._day or whose in self._tokens or len(self._tokens) < _MOST_COUNTED

    def add(self, whose: str, day: int, tokens: int) -> None:
        if day > self._day:
            self._day = day
            self._tokens.clear()
        if self.room(whose, day):
            self._tokens[whose] = self.tokens(whose, day) + tokens


def _has_quota(plan: Plan) -> bool:
    """Whether a plan bounds what its callers cost; without the store nobody knows what is left of that."""
    return plan.tokens_per_day is not None or plan.tokens_per_day_together is not None or plan.seats is not None


def _careful(plan: Plan) -> Plan:
    limit = plan.requests_per_minute
    return plan if not limit else replace(plan, requests_per_minute=_part(limit))


def _part(limit: int) -> int:
    return max(1, limit // _SHARE)
