"""The sentences of a ledger's refusals: the same whichever store counts."""

from __future__ import annotations

from edge.plans import Plan
from edge.store.ledger import duration
from shared.contract.errors import ApiError

# When a stream of the caller ends is not known; one second keeps a waiting client quick and cheap.
_STREAM_RETRY_SECONDS = 1.0


def token_revoked() -> ApiError:
    return ApiError("token_revoked", "This token or key was revoked. Get a new one, or ask the owner of this edge.")


def token_exhausted(uses: int) -> ApiError:
    many = "one answer" if uses == 1 else f"{uses} answers"
    return ApiError("token_exhausted", f"This token was good for {many} and has started as many. Get a new one.")


def invite_not_valid() -> ApiError:
    """One answer for every invite that lets nobody in, so that a guess learns nothing."""
    return ApiError(
        "invalid_token",
        "This invite is not valid here. It may be mistyped, used up, expired or revoked. Ask whoever invited you for "
        "another one.",
        param="invite",
    )


def invite_tries(limit: int, wait: float) -> ApiError:
    return ApiError(
        "rate_limited",
        f"More than {limit} invites that are not valid, tried within a minute from this address. "
        f"Wait {duration(wait)}, then check the invite.",
        param="invite",
        retry_after=wait,
    )


def invites_busy() -> ApiError:
    return ApiError("overloaded", "The edge could not write down who came with this invite. Please try again.")


def caller_rate(plan: Plan, wait: float) -> ApiError:
    limit = plan.requests_per_minute
    if limit == 0:
        return _closed("rate_limited", plan, "requests_per_minute", "requests")
    return ApiError(
        "rate_limited",
        f"More than {limit} requests a minute {plan.by('requests_per_minute')}. "
        f"Wait {duration(wait)}, then send fewer.",
        retry_after=wait,
    )


def address_rate(limit: int, wait: float) -> ApiError:
    return ApiError(
        "rate_limited",
        f"More than {limit} requests a minute from this address. Wait {duration(wait)}, then send fewer.",
        retry_after=wait,
    )


def too_many_streams(plan: Plan) -> ApiError:
    if plan.streams == 0:
        return _closed("concurrency_limited", plan, "streams", "answers")
    return ApiError(
        "concurrency_limited",
        f"{plan.streams} answers are running already, the most {plan.by('streams')}. Wait for one to end or stop it.",
        retry_after=_STREAM_RETRY_SECONDS,
    )


def quota_exceeded(plan: Plan, used: int, tokens: int, reset: float) -> ApiError:
    """``tokens`` more do not fit beside the ``used`` ones of today, which ends in ``reset`` seconds."""
    left = max(0, (plan.tokens_per_day or 0) - used)
    advice = "Ask for a smaller max_tokens or a shorter prompt, or wait" if 0 < left < tokens else "Wait"
    return ApiError(
        "quota_exceeded",
        f"{left} of {plan.tokens_per_day} tokens are left today {plan.by('tokens_per_day')}; "
        f"this request may need {tokens}. {advice} {duration(reset)} for the quota to start again at 00:00 UTC.",
        retry_after=reset,
        should_retry=False,
    )


def quota_held(plan: Plan) -> ApiError:
    """The quota would do, but answers that are still running hold it until they end."""
    return ApiError(
        "quota_exceeded",
        f"Running answers hold what is left of {plan.tokens_per_day} tokens today {plan.by('tokens_per_day')}. "
        "Wait for one to end, or ask for a smaller max_tokens.",
        retry_after=_STREAM_RETRY_SECONDS,
    )


def plan_tokens_gone(plan: Plan, reset: float) -> ApiError:
    """The tokens of a day that all callers of the plan have together; the next day begins in ``reset`` seconds."""
    return ApiError(
        "overloaded",
        f"All callers on plan {plan.name!r} together have used up their {plan.tokens_per_day_together} tokens of today."
        f" Wait {duration(reset)} for 00:00 UTC, or ask the owner of this edge for an account.",
        retry_after=reset,
        should_retry=False,
    )


def plan_tokens_held(plan: Plan) -> ApiError:
    """Running answers of the plan hold what is left of them."""
    return ApiError(
        "overloaded",
        f"Running answers hold what is left of the {plan.tokens_per_day_together} tokens a day that all callers on plan"
        f" {plan.name!r} have together. Please try again in a moment.",
        retry_after=_STREAM_RETRY_SECONDS,
    )


def seats_taken(plan: Plan, wait: float | None) -> ApiError:
    """``wait`` are the seconds until the first seat is free, if nobody who has one comes back."""
    return ApiError(
        "overloaded",
        f"All {plan.seats} seats of plan {plan.name!r} are taken. A seat is free again a day after its caller's last"
        " request. Ask the owner of this edge for another plan.",
        retry_after=wait,
        should_retry=False,
    )


def _closed(code: str, plan: Plan, limit: str, what: str) -> ApiError:
    allowing, other = f"Plan {plan.name!r} allows", "another plan"
    if limit in plan.own:
        allowing, other = "Your own limits allow", "other ones"
    message = f"{allowing} no {what}. Ask the owner of this edge for {other}."
    return ApiError(code, message, should_retry=False)
