"""The contract of what callers share: seats and tokens of a plan, and the uses of one token."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from edge.plans import Plan
from edge.store.ledger import Cost, Grant
from edge.store.store import Store
from shared.contract.errors import ApiError
from shared.contract.usage import Usage
from tests.store.callers import IP, becomes, caller, refused, spend, used
from tests.store.kinds import SHARED_KINDS, Clock
from tests.waiting import wait_until

DAY = 86_400
MakeStore = Callable[..., Awaitable[Store]]
on_kinds_that_edges_share = pytest.mark.parametrize("place", SHARED_KINDS, indirect=True)


# Seats


async def test_a_plan_serves_as_many_callers_as_it_has_seats(store: Store) -> None:
    plan = Plan("beta", seats=2)
    await store.charge_request(IP, caller("ann"), plan)
    await store.admit(IP, caller("bob"), plan, Cost(1), "a")
    for call in (
        store.charge_request(IP, caller("cem"), plan),
        store.admit(IP, caller("cem"), plan, Cost(1), "b"),
    ):
        error = await refused(call)
        assert (error.code, error.status, error.should_retry) == ("overloaded", 503, False)
        assert "seats" in error.message and "'beta'" in error.message
    await store.charge_request(IP, caller("ann"), plan)
    await store.charge_request(IP, caller("cem"), Plan("other", seats=1))
    await store.charge_request(IP, caller("cem"), Plan("free"))
    assert (await used(store, plan, caller("cem"))) == (0, 0)


async def test_a_seat_is_free_a_day_after_its_callers_last_request(store: Store, clock: Clock) -> None:
    plan = Plan("beta", seats=1)
    await store.charge_request(IP, caller("ann"), plan)
    clock.advance(DAY - 60)
    await store.charge_request(IP, caller("ann"), plan)
    clock.advance(DAY - 1)
    assert (await refused(store.charge_request(IP, caller("bob"), plan))).code == "overloaded"
    clock.advance(2)
    await store.charge_request(IP, caller("bob"), plan)
    assert (await refused(store.charge_request(IP, caller("ann"), plan))).code == "overloaded"


async def test_the_seat_of_who_stayed_away_is_the_one_that_is_free(store: Store, clock: Clock) -> None:
    plan = Plan("beta", seats=2)
    await store.charge_request(IP, caller("ann"), plan)
    clock.advance(10)
    await store.charge_request(IP, caller("bob"), plan)
    clock.advance(10)
    await store.charge_request(IP, caller("ann"), plan)
    clock.advance(DAY - 5)
    await store.charge_request(IP, caller("cem"), plan)
    assert (await refused(store.charge_request(IP, caller("bob"), plan))).code == "overloaded"
    await store.charge_request(IP, caller("ann"), plan)


async def test_fifty_at_once_take_exactly_the_seats_there_are(store: Store) -> None:
    plan = Plan("beta", seats=7)
    results = await asyncio.gather(
        *(store.charge_request(IP, caller(f"caller{number}"), plan) for number in range(50)), return_exceptions=True
    )
    assert sum(isinstance(result, Grant) for result in results) == 7
    assert {result.code for result in results if isinstance(result, ApiError)} == {"overloaded"}


async def test_a_plan_without_a_seat_serves_nobody(store: Store) -> None:
    error = await refused(store.charge_request(IP, caller(), Plan("beta", seats=0)))
    assert (error.code, error.should_retry) == ("overloaded", False)


async def test_who_is_refused_for_another_reason_takes_no_seat(store: Store) -> None:
    plan = Plan("beta", streams=0, seats=1)
    assert (await refused(store.admit(IP, caller("ann"), plan, Cost(1), "a"))).code == "concurrency_limited"
    await store.charge_request(IP, caller("bob"), plan)


# Tokens of a day for all callers of a plan


async def test_callers_of_a_plan_share_its_tokens(store: Store, clock: Clock) -> None:
    plan = Plan("beta", tokens_per_day_together=1000)
    await spend(store, caller("ann"), plan, 600, "a")
    error = await refused(store.admit(IP, caller("bob"), plan, Cost(401), "b"))
    assert (error.code, error.status, error.should_retry) == ("overloaded", 503, False)
    assert error.retry_after == pytest.approx(DAY / 2) and "00:00 UTC" in error.message
    await spend(store, caller("bob"), plan, 400, "c")
    assert (await refused(store.admit(IP, caller("ann"), plan, Cost(1), "d"))).code == "overloaded"
    await spend(store, caller("ann"), Plan("other", tokens_per_day_together=10), 10, "e")
    assert await used(store, plan, caller("ann")) == (610, 0)
    clock.advance(DAY / 2)
    await spend(store, caller("ann"), plan, 1000, "f")


async def test_running_answers_hold_the_tokens_of_all(store: Store) -> None:
    plan = Plan("beta", tokens_per_day_together=1000)
    await store.admit(IP, caller("ann"), plan, Cost(900), "a")
    error = await refused(store.admit(IP, caller("bob"), plan, Cost(200), "b"))
    assert (error.code, error.should_retry) == ("overloaded", None) and error.retry_after == pytest.approx(1)
    await store.settle("a", None)
    await store.admit(IP, caller("bob"), plan, Cost(1000), "c")


async def test_an_answer_is_settled_for_its_caller_and_for_all(store: Store) -> None:
    plan = Plan("beta", tokens_per_day=600, tokens_per_day_together=1000)
    await store.admit(IP, caller("ann"), plan, Cost(600), "a")
    await store.settle("a", Usage(100, 0))
    assert await used(store, plan, caller("ann")) == (100, 0)
    assert (await refused(store.admit(IP, caller("ann"), plan, Cost(501), "b"))).code == "quota_exceeded"
    await spend(store, caller("ann"), plan, 500, "c")
    await spend(store, caller("bob"), plan, 400, "d")
    assert (await refused(store.admit(IP, caller("bob"), plan, Cost(1), "e"))).code == "overloaded"


async def test_an_answer_over_its_estimate_never_makes_more_of_them(store: Store) -> None:
    plan = Plan("beta", tokens_per_day_together=1000)
    await store.admit(IP, caller(), plan, Cost(10), "a")
    await store.settle("a", Usage(5000, 0))
    assert (await refused(store.admit(IP, caller(), plan, Cost(1), "b"))).code == "overloaded"


# Uses of one token


async def test_a_token_starts_as_many_answers_as_it_has_uses(store: Store) -> None:
    plan, token = Plan("test"), caller(uses=2)
    await spend(store, token, plan, 1, "a")
    await store.admit(IP, token, plan, Cost(1), "b")
    error = await refused(store.admit(IP, token, plan, Cost(1), "c"))
    assert (error.code, error.status) == ("token_exhausted", 401) and "2 answers" in error.message
    early = store.refusal(IP, token, plan)
    assert early is None or early.code == "token_exhausted"
    await store.charge_request(IP, token, plan)
    await spend(store, replace(token, jti="another"), plan, 1, "d")


async def test_fifty_at_once_have_exactly_the_uses_there_are(store: Store) -> None:
    token = caller(uses=7)
    results = await asyncio.gather(
        *(store.admit(IP, token, Plan("test"), Cost(1), str(number)) for number in range(50)), return_exceptions=True
    )
    assert sum(isinstance(result, Grant) for result in results) == 7
    assert {result.code for result in results if isinstance(result, ApiError)} == {"token_exhausted"}


async def test_a_refused_answer_spends_no_use(store: Store) -> None:
    token = caller(uses=1)
    assert (await refused(store.admit(IP, token, Plan("test", streams=0), Cost(1), "a"))).code == "concurrency_limited"
    await store.admit(IP, token, Plan("test"), Cost(1), "b")


# Edges on one store


@on_kinds_that_edges_share
async def test_two_edges_share_every_limit(store: Store, second: Store) -> None:
    token = caller(uses=30)
    plan = Plan("test", streams=7, seats=1, tokens_per_day=1000, tokens_per_day_together=1000)
    edges = [store, second]
    results = await asyncio.gather(
        *(edges[n % 2].admit(IP, token, plan, Cost(10), str(n)) for n in range(50)), return_exceptions=True
    )
    running = [str(n) for n, result in enumerate(results) if isinstance(result, Grant)]
    assert len(running) == 7
    assert {result.code for result in results if isinstance(result, ApiError)} == {"concurrency_limited"}
    for chat_id in running:
        assert await edges[int(chat_id) % 2].settle(chat_id, Usage(10, 0))
    for edge in edges:
        await becomes(lambda edge=edge: used(edge, plan, token), (70, 0))
        assert (await refused(edge.charge_request(IP, caller("other"), plan))).code == "overloaded"
        assert (await refused(edge.admit(IP, token, plan, Cost(931), "more"))).code == "quota_exceeded"


@on_kinds_that_edges_share
async def test_a_token_revoked_at_one_edge_is_revoked_at_the_other(store: Store, second: Store) -> None:
    await store.revoke(caller())
    await wait_until(lambda: second.revoked(caller()))


# What is shared outlives an edge


async def test_seats_tokens_and_uses_outlive_a_restart(make_store: MakeStore) -> None:
    plan, token = Plan("beta", seats=1, tokens_per_day_together=100), caller("ann", uses=2)
    first = await make_store()
    await spend(first, token, plan, 40, "settled")
    await first.admit(IP, token, plan, Cost(50), "running")
    await first.close()
    again = await make_store()
    assert (await refused(again.charge_request(IP, caller("bob"), plan))).code == "overloaded"
    assert (await refused(again.admit(IP, token, plan, Cost(1), "a"))).code == "token_exhausted"
    unlocked = replace(token, uses=None, jti="another")
    assert (await refused(again.admit(IP, unlocked, plan, Cost(11), "b"))).code == "overloaded"
    await again.admit(IP, unlocked, plan, Cost(10), "c")
