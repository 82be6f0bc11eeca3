"""What a caller may still do, decided in memory: rates, running answers, tokens of the day. No I/O but the loader."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from edge.plans import Plan
from edge.principals import SECONDS_PER_DAY, address_block, day_of
from edge.store import refusals
from edge.store.accounts import Account, Accounts, Reservation
from edge.store.gcra import Gcra
from edge.store.ledger import Allowance, Grant, usage_of
from shared.contract.errors import ApiError


class Limits:
    """Limits of all callers of one process.

    ``per_ip`` requests a minute are an address's (IPv6: a /64's), over all its callers; None is no limit, and a plan
    without a request limit is free of this one too. ``load(principal_id, day)`` gives the tokens used so far,
    ``load_plan(plan, day)`` those of all its callers together. ``now`` gives Unix seconds and decides the day;
    ``monotonic`` gives seconds and decides rates, which a changed clock must not touch.
    """

    def __init__(
        self,
        per_ip: int | None,
        load: Callable[[str, int], int],
        load_plan: Callable[[str, int], int],
        now: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        self._per_ip = per_ip
        self._now = now
        self._monotonic = monotonic
        self._addresses = Gcra()
        self._callers = Gcra()
        self._accounts = Accounts(load, monotonic)
        self._plans = Accounts(load_plan, monotonic)

    def rate_refusal(self, ip: str | None, principal_id: str, plan: Plan) -> ApiError | None:
        limit = plan.requests_per_minute
        if limit is None:
            return None
        if limit == 0:
            return refusals.caller_rate(plan, 0.0)
        now = self._monotonic()
        if ip is not None and self._per_ip and (wait := self._addresses.wait(address_block(ip), self._per_ip, now)):
            return refusals.address_rate(self._per_ip, wait)
        if wait := self._callers.wait(principal_id, limit, now):
            return refusals.caller_rate(plan, wait)
        return None

    def load_refusal(self, principal_id: str, plan: Plan, tokens: int) -> ApiError | None:
        """Why one more answer of up to ``tokens`` is too much, or None."""
        return self._own_refusal(principal_id, plan, tokens) or self._together_refusal(plan, tokens)

    def _own_refusal(self, principal_id: str, plan: Plan, tokens: int) -> ApiError | None:
        limit = plan.tokens_per_day
        if limit is None and plan.streams is None:
            return None
        account = self._account(principal_id)
        if plan.streams is not None and account.streams >= plan.streams:
            return refusals.too_many_streams(plan)
        if limit is None or account.used + account.reserved + tokens <= limit:
            return None
        if account.used + tokens <= limit:
            return refusals.quota_held(plan)
        return refusals.quota_exceeded(plan, account.used, tokens, self._until_tomorrow())

    def _together_refusal(self, plan: Plan, tokens: int) -> ApiError | None:
        limit = plan.tokens_per_day_together
        if limit is None:
            return None
        account = self._plans.of(plan.name, day_of(self._now()))
        if account.used + account.reserved + tokens <= limit:
            return None
        if account.used + tokens <= limit:
            return refusals.plan_tokens_held(plan)
        return refusals.plan_tokens_gone(plan, self._until_tomorrow())

    def take_request(self, ip: str | None, principal_id: str, plan: Plan) -> None:
        if plan.requests_per_minute is not None:
            now = self._monotonic()
            if ip is not None and self._per_ip:
                self._addresses.take(address_block(ip), self._per_ip, now)
            self._callers.take(principal_id, plan.requests_per_minute, now)

    def reserve(self, principal_id: str, plan: Plan, tokens: int, lifetime: float) -> Reservation:
        """Take one stream and ``tokens`` of today, for ``lifetime`` seconds at most."""
        today = day_of(self._now())
        own = self._accounts.reserve(principal_id, today, tokens, lifetime)
        if plan.tokens_per_day_together is None:
            return own
        together = self._plans.reserve(plan.name, today, tokens, lifetime)
        return replace(own, together=together.account, plan=plan.name)

    def settle(self, reservation: Reservation, tokens: int) -> None:
        self._accounts.settle(reservation, tokens)
        if reservation.together is not None:
            self._plans.settle(replace(reservation, account=reservation.together), tokens)

    def forget_used(self, principal_id: str) -> None:
        """As if the caller had used nothing today and sent nothing this minute; its running answers go on."""
        self._accounts.forget_used(principal_id)
        self._callers.forget(principal_id)

    def abandoned(self, reservation: Reservation) -> bool:
        return reservation.deadline <= self._monotonic()

    def grant(self, ip: str | None, principal_id: str, plan: Plan) -> Grant:
        requests = self._requests(principal_id, plan)
        if requests is not None and ip is not None and self._per_ip:
            left, reset = self._addresses.standing(address_block(ip), self._per_ip, self._monotonic())
            if left < requests.remaining:  # others at this address used it up
                requests = Allowance(requests.limit, left, reset)
        tokens = None if plan.tokens_per_day is None else self._tokens(self._account(principal_id), plan.tokens_per_day)
        return Grant(requests, tokens)

    def usage_today(self, principal_id: str, plan: Plan) -> dict[str, Any]:
        account, limit = self._account(principal_id), plan.tokens_per_day
        return usage_of(
            plan,
            self._requests(principal_id, plan),
            None if limit is None else self._tokens(account, limit),
            running=account.streams,
            used=account.used,
            held=account.reserved,
            reset=self._until_tomorrow(),
        )

    def sweep(self) -> None:
        """Forget callers and addresses that are as if never seen."""
        now = self._monotonic()
        self._addresses.sweep(now)
        self._callers.sweep(now)
        self._accounts.sweep()
        self._plans.sweep()

    def _account(self, principal_id: str) -> Account:
        return self._accounts.of(principal_id, day_of(self._now()))

    def _requests(self, principal_id: str, plan: Plan) -> Allowance | None:
        limit = plan.requests_per_minute
        if limit is None:
            return None
        return Allowance(limit, *self._callers.standing(principal_id, limit, self._monotonic()))

    def _tokens(self, account: Account, limit: int) -> Allowance:
        return Allowance(limit, max(0, limit - account.used - account.reserved), self._until_tomorrow())

    def _until_tomorrow(self) -> float:
        return SECONDS_PER_DAY - self._now() % SECONDS_PER_DAY
