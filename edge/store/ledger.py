"""The interface to what has to be counted: rates, running streams, token quotas, revocations.

    refusal   local and free, before the body is read: what admit would surely refuse
    admit     once per chat: takes one request, one stream and the estimated tokens, or refuses and takes nothing
    settle    once per chat, whatever its ending: gives the stream back, counts the real tokens instead of the estimate

A chat that is never settled (its edge died) is settled by the ledger at its estimate. What an answer takes beyond its
estimate is counted when it ends: a quota may be overrun by as much, once for each of the caller's running answers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

from edge.plans import Plan
from edge.principals import Principal
from shared.contract.errors import ApiError
from shared.contract.usage import Usage


@dataclass(frozen=True, slots=True)
class Cost:
    """What a chat may spend at most, in tokens: the prompt's estimate plus the longest answer."""

    tokens: int


@dataclass(frozen=True, slots=True)
class Allowance:
    """One limit as it stands: ``remaining`` of ``limit``, whole again in ``reset`` seconds."""

    limit: int
    remaining: int
    reset: float


@dataclass(frozen=True, slots=True)
class Grant:
    """How a caller's limits stand after a request was counted; None where there is no limit."""

    requests: Allowance | None = None
    tokens: Allowance | None = None

    def headers(self) -> list[tuple[bytes, bytes]]:
        """The ``x-ratelimit-*`` response headers, named as OpenAI names them."""
        found: list[tuple[bytes, bytes]] = []
        for unit, allowance in ((b"requests", self.requests), (b"tokens", self.tokens)):
            if allowance is not None:
                found += (
                    (b"x-ratelimit-limit-" + unit, b"%d" % allowance.limit),
                    (b"x-ratelimit-remaining-" + unit, b"%d" % allowance.remaining),
                    (b"x-ratelimit-reset-" + unit, duration(allowance.reset).encode()),
                )
        return found


# No answer of any model is longer. Keeps an absurd count of a broken runtime from adding up, or overflowing a column.
_MAX_TOKENS = 100_000_000


def bounded(tokens: int) -> int:
    """``tokens`` as every store counts them."""
    return max(0, min(tokens, _MAX_TOKENS))


def revocable(principal: Principal) -> tuple[str, int]:
    """Id and end (Unix seconds) of the token that ``principal`` came in with. Raises ValueError for a credential that
    is none."""
    if principal.jti is None or principal.expires_at is None:
        raise ValueError("Only a token is revoked this way; an API key is revoked by its name.")
    return principal.jti, principal.expires_at


def usage_of(
    plan: Plan,
    requests: Allowance | None,
    tokens: Allowance | None,
    *,
    running: int,
    used: int,
    held: int,
    reset: float,
) -> dict[str, Any]:
    """What ``Ledger.usage_today`` gives: each limit, what is used of it and what is left. ``running`` answers hold
    ``held`` tokens beside the ``used`` ones of a day that ends in ``reset`` seconds; resets in whole seconds."""
    return {
        "requests": {
            "limit": plan.requests_per_minute,
            "remaining": requests.remaining if requests else None,
            "reset": round(requests.reset) if requests else None,
        },
        "streams": {"limit": plan.streams, "running": running},
        "tokens": {
            "limit": plan.tokens_per_day,
            "used": used,
            "reserved": held,
            "remaining": tokens.remaining if tokens else None,
            "reset": round(reset),
        },
        "tokens_per_request": plan.tokens_per_request,
    }


class Ledger(Protocol):
    """Counts for all edges that share it. Safe to call from one event loop; nothing here blocks it for long.

    ``ip`` is the caller's address, None for one whose address has no rate of its own. Every refusal of status 429 has
    the ``x-ratelimit-*`` headers in its ``extra_headers``, where they are known. Where the counts are not to be had,
    ``admit`` and ``charge_request`` may raise ApiError ``overloaded``.
    """

    def refusal(self, ip: str | None, principal: Principal, plan: Plan) -> ApiError | None:
        """What ``admit`` would refuse for rate, running streams, revocation or a quota that is used up, without taking
        anything; None when the request may go on. Synchronous and local: it costs microseconds."""
        ...

    async def admit(self, ip: str | None, principal: Principal, plan: Plan, cost: Cost, chat_id: str) -> Grant:
        """Take one request, one stream and ``cost`` for ``chat_id``, which must be new, all or nothing.

        Takes a use of a token that is locked to so many, and a seat of the plan. The caller owes exactly one
        ``settle``. Raises ApiError ``token_revoked``, ``token_exhausted``, ``rate_limited``, ``concurrency_limited`` or
        ``quota_exceeded``, and ``overloaded`` where the plan's seats or its tokens for all are gone; then nothing was
        taken.
        """
        ...

    async def settle(self, chat_id: str, usage: Usage | None) -> bool:
        """End ``chat_id``: give its stream back and count ``usage`` in place of the estimate; None counts nothing,
        because nothing was spent. True the first time, False for any other; a second usage is not counted."""
        ...

    async def charge_request(self, ip: str | None, principal: Principal, plan: Plan) -> Grant:
        """Take one request, for routes that start no answer. Raises ApiError ``token_revoked`` or ``rate_limited``, and
        ``overloaded`` where the plan's seats are gone."""
        ...

    def revoked(self, principal: Principal) -> bool:
        """Whether the principal's token or key was revoked. Synchronous and local: for running streams to ask."""
        ...

    async def revoke(self, principal: Principal) -> None:
        """Revoke the token that ``principal`` came in with, until it expires by itself.

        Raises ValueError for a credential that is no token: an API key is revoked by its name.
        """
        ...

    async def usage_today(self, principal: Principal, plan: Plan) -> dict[str, Any]:
        """Limits, what was used and what is left, for ``GET /v1/me``. Raises ApiError ``overloaded``."""
        ...


def duration(seconds: float) -> str:
    """``seconds`` the way OpenAI writes a reset: "120ms", "6s", "6m0s", "23h59m59s"; rounded up."""
    if seconds <= 0:
        return "0s"
    if seconds < 1:
        milliseconds = math.ceil(seconds * 1000)
        return f"{milliseconds}ms" if milliseconds < 1000 else "1s"
    minutes, rest = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m{rest}s"
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
