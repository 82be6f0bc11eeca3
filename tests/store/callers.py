"""Callers of the stores under test, and what they are told."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from edge.plans import Plan
from edge.principals import Principal
from edge.store.ledger import Cost
from edge.store.store import Store
from shared.contract.errors import ApiError
from shared.contract.usage import Usage
from tests.waiting import HANGS

IP = "203.0.113.7"


def caller(name: str = "caller", **changes: Any) -> Principal:
    """Somebody with a token."""
    fields = {"jti": f"jti-of-{name}", "issued_at": 1_000_000_000, "expires_at": 4_000_000_000, **changes}
    return Principal(name, "token", "test", ("chat",), **fields)


async def refused(call: Awaitable[object]) -> ApiError:
    with pytest.raises(ApiError) as caught:
        await call
    return caught.value


async def becomes(ask: Callable[[], Awaitable[object]], expected: object) -> None:
    """Wait until ``ask()`` gives what is expected. A second is promised; this machine may have other work."""
    found: object = None
    try:
        async with asyncio.timeout(HANGS):
            while (found := await ask()) != expected:  # noqa: ASYNC110 - another process's state has no event
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"{found} is not {expected}") from None


async def spend(store: Store, principal: Principal, plan: Plan, tokens: int, chat_id: str) -> None:
    """One answer from its beginning to its end."""
    await store.admit(IP, principal, plan, Cost(tokens), chat_id)
    assert await store.settle(chat_id, Usage(tokens, 0))


async def used(store: Store, plan: Plan, principal: Principal) -> tuple[int, int]:
    """Tokens of today: used, and reserved."""
    tokens = (await store.usage_today(principal, plan))["tokens"]
    return tokens["used"], tokens["reserved"]
