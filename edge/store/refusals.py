"""The sentences of a ledger's refusals: the same whichever store counts."""

from __future__ import annotations

from edge.plans import Plan
from edge.store.ledger import duration
from shared.contract.errors import ApiError

# When a stream of the caller ends is not known; one second keeps a waiting client quick and cheap.
_STREAM_RETRY_SECONDS = 1.0


def token_revoked() -> ApiError:
    return ApiError("token_revoked", "This token or key was revoked. Get a new one, or ask the owner of this edge.")


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
        return _closed("rate_limited", plan, "requests")
    return ApiError(
        "rate_limited",
        f"More than {limit} requests a minute on plan {plan.name!r}. Wait {duration(wait)}, then send fewer.",
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
        return _closed("concurrency_limited", plan, "answers")
    return ApiError(
        "concurrency_limited",
        f"{plan.streams} answers are running already, the most on plan {plan.name!r}. Wait for one to end or stop it.",
        retry_after=_STREAM_RETRY_SECONDS,
    )


def quota_exceeded(plan: Plan, used: int, tokens: int, reset: float) -> ApiError:
    """``tokens`` more do not fit beside the ``used`` ones of today, which ends in ``reset`` seconds."""
    left = max(0, (plan.tokens_per_day or 0) - used)
    advice = "Ask for a smaller max_tokens or a shorter prompt, or wait" if 0 < left < tokens else "Wait"
    return ApiError(
        "quota_exceeded",
        f"{left} of {plan.tokens_per_day} tokens are left today on plan {plan.name!r}; this request may need {tokens}. "
        f"{advice} {duration(reset)} for the quota to start again at 00:00 UTC.",
        retry_after=reset,
        should_retry=False,
    )


def quota_held(plan: Plan) -> ApiError:
    """The quota would do, but answers that are still running hold it until they end."""
    return ApiError(
        "quota_exceeded",
        f"Running answers hold what is left of {plan.tokens_per_day} tokens today on plan {plan.name!r}. "
        "Wait for one to end, or ask for a smaller max_tokens.",
        retry_after=_STREAM_RETRY_SECONDS,
    )


def _closed(code: str, plan: Plan, what: str) -> ApiError:
    message = f"Plan {plan.name!r} allows no {what}. Ask the owner of this edge for another plan."
    return ApiError(code, message, should_retry=False)
