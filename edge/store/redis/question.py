"""One request to be counted: how it is put to the script ``admit``, and what its verdict means."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from edge.plans import Plan
from edge.principals import Principal
from edge.store import refusals
from edge.store.ledger import Grant
from edge.store.redis.counts import Counts
from edge.store.redis.remembered import Remembered
from shared.contract.errors import ApiError

# An answer of another edge may end at any moment, so this is asked again soon.
_STREAMS_SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class Question:
    """``tokens`` is None where no answer starts. ``block`` is the caller's address as it is counted; it and
    ``per_address`` (requests a minute) are None for a caller whose address has no rate."""

    principal: Principal
    plan: Plan
    tokens: int | None
    block: str | None
    per_address: int | None

    def arguments(self, now: float, edge: str, chat_id: str) -> Sequence[str | int]:
        """From the principal on; ``now`` in Unix seconds."""
        principal, plan = self.principal, self.plan
        ends_in = int(max(0.0, (principal.expires_at or now) - now) * 1_000_000)
        values = (
            principal.id, self.block, self.per_address,
            plan.requests_per_minute, plan.streams, plan.tokens_per_day, self.tokens or 0,
            plan.name, plan.tokens_per_day_together, plan.seats,
            principal.jti, principal.uses, ends_in,
        )  # fmt: skip
        return [*("" if value is None else value for value in values), edge, chat_id]

    def known(self, remembered: Remembered) -> ApiError | None:
        """The refusal that is remembered for it."""
        principal_id, plan = self.principal.id, self.plan
        if plan.requests_per_minute is not None:
            if self.block is not None and (error := remembered.find(("address", self.block))) is not None:
                return error
            if (error := remembered.find(("caller", principal_id, plan.requests_per_minute))) is not None:
                return error
        if self.tokens is None:
            return None
        return remembered.find(("streams", principal_id)) or remembered.find(
            ("quota", principal_id, plan.tokens_per_day)
        )

    def remember(self, remembered: Remembered, verdict: str, counts: Counts, grant: Grant) -> None:
        """Keep what ``counts`` say will be refused from now on, whatever this one's verdict."""
        principal_id, plan, limit = self.principal.id, self.plan, self.plan.requests_per_minute
        if self.block is not None and self.per_address and (wait := counts.address_wait(self.per_address)):
            error: Callable[[float], ApiError] = partial(refusals.address_rate, self.per_address)
            remembered.keep(("address", self.block), wait, error, grant)
        if limit and (wait := counts.wait(limit)):
            remembered.keep(("caller", principal_id, limit), wait, partial(refusals.caller_rate, plan), grant)
        quota = plan.tokens_per_day
        if quota is not None and counts.used >= quota:
            error = partial(refusals.quota_exceeded, plan, counts.used, max(1, self.tokens or 0))
            remembered.keep(("quota", principal_id, quota), counts.until_tomorrow, error, grant)
        if verdict == "streams":
            error = partial(_whenever, plan)
            remembered.keep(("streams", principal_id), _STREAMS_SECONDS, error, grant)

    def refusal(self, verdict: str, wait: float, counts: Counts, grant: Grant) -> ApiError:
        """What ``verdict``, which is not "ok", says to the caller; ``wait`` in seconds."""
        plan, tokens = self.plan, self.tokens or 0
        match verdict:
            case "address":
                error = refusals.address_rate(self.per_address or 0, wait)
            case "caller":
                error = refusals.caller_rate(plan, wait)
            case "seats":
                error = refusals.seats_taken(plan, wait or None)
            case "exhausted":
                error = refusals.token_exhausted(self.principal.uses or 0)
            case "streams":
                error = refusals.too_many_streams(plan)
            case "quota":
                error = refusals.quota_exceeded(plan, counts.used, tokens, counts.until_tomorrow)
            case "held":
                error = refusals.quota_held(plan)
            case "plan-quota":
                error = refusals.plan_tokens_gone(plan, counts.until_tomorrow)
            case _:
                error = refusals.plan_tokens_held(plan)
        if error.status == 429:
            error.extra_headers += grant.headers()
        return error


def _whenever(plan: Plan, _left: float) -> ApiError:
    return refusals.too_many_streams(plan)
