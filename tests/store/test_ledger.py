"""The contract of ``ledger.Ledger``: rates, running answers, tokens, and what callers see of them."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.plans import Plan, built_in
from edge.principals import Principal
from edge.store.ledger import Allowance, Cost, Grant, duration
from edge.store.store import Store
from shared.contract.errors import ApiError
from shared.contract.usage import Usage
from tests.store.callers import IP, refused, used
from tests.store.kinds import KINDS, PER_IP, Clock

ANY = Principal("caller", "anonymous", "test", ("chat",), jti="j" * 22, expires_at=2_000_000_000)
FREE = Plan("free")


# Rates


async def test_a_minute_of_requests_may_come_at_once_and_no_more(store: Store, clock: Clock) -> None:
    plan = Plan("test", requests_per_minute=3)
    for left in (2, 1, 0):
        grant = await store.charge_request(IP, ANY, plan)
        assert grant.requests is not None and grant.requests.remaining == left
    error = await refused(store.charge_request(IP, ANY, plan))
    assert (error.code, error.status) == ("rate_limited", 429)
    assert error.retry_after == pytest.approx(20)
    clock.advance(19)
    assert (await refused(store.charge_request(IP, ANY, plan))).retry_after == pytest.approx(1)
    clock.advance(1)
    await store.charge_request(IP, ANY, plan)
    assert (await refused(store.admit(IP, ANY, plan, Cost(1), "a"))).code == "rate_limited"


@pytest.mark.parametrize("limit", [1, 7, 11, 13, 20, 49])
async def test_a_whole_burst_fits_whatever_its_size(store: Store, clock: Clock, limit: int) -> None:
    plan = Plan("test", requests_per_minute=limit)
    for _ in range(2):
        for _ in range(limit):
            await store.charge_request(IP, ANY, plan)
        assert (await refused(store.charge_request(IP, ANY, plan))).code == "rate_limited"
        clock.advance(60)


async def test_an_address_is_limited_over_all_its_callers(store: Store) -> None:
    plan = built_in()["anonymous"]
    for number in range(PER_IP):
        await store.charge_request(f"2001:db8:1:2::{number:x}", replace(ANY, id=f"p{number}"), plan)
    neighbour = replace(ANY, id="neighbour")
    error = await refused(store.charge_request("2001:db8:1:2:ffff::1", neighbour, plan))
    assert error.code == "rate_limited" and "address" in error.message
    assert dict(error.extra_headers)[b"x-ratelimit-remaining-requests"] == b"0"
    await store.charge_request("2001:db8:1:3::1", neighbour, plan)


async def test_a_plan_without_a_request_limit_has_none_by_address_either(store: Store) -> None:
    for number in range(3 * PER_IP):
        await store.admit(IP, ANY, FREE, Cost(1), str(number))
    await store.charge_request(IP, replace(ANY, id="other"), Plan("test", requests_per_minute=1))


async def test_a_refusal_takes_nothing(store: Store) -> None:
    plan = Plan("test", requests_per_minute=3, streams=1, tokens_per_day=100)
    await store.admit(IP, ANY, plan, Cost(60), "a")
    before = (await store.usage_today(ANY, plan))["requests"]
    for number in range(20):
        assert (await refused(store.admit(IP, ANY, plan, Cost(10), f"x{number}"))).code == "concurrency_limited"
        assert store.refusal(IP, ANY, plan) is not None
    await store.settle("a", None)
    for number in range(20):
        assert (await refused(store.admit(IP, ANY, plan, Cost(101), f"y{number}"))).code == "quota_exceeded"
        assert store.refusal(IP, ANY, plan) is None
    assert (await store.usage_today(ANY, plan))["requests"] == before
    assert await used(store, plan, ANY) == (0, 0)


@pytest.mark.parametrize(
    "plan", [Plan("test", requests_per_minute=0), Plan("test", streams=0), Plan("test", tokens_per_day=0)]
)
async def test_a_limit_of_nothing_allows_nothing_and_waiting_does_not_help(store: Store, plan: Plan) -> None:
    error = await refused(store.admit(IP, ANY, plan, Cost(1), "a"))
    for found in (error, store.refusal(IP, ANY, plan)):
        assert found is not None and (found.status, found.should_retry) == (429, False)
    assert (await store.usage_today(ANY, plan))["streams"]["running"] == 0


# Running answers


async def test_streams_are_counted_and_given_back(store: Store) -> None:
    plan = Plan("test", streams=2)
    await store.admit(IP, ANY, plan, Cost(1), "a")
    await store.admit(IP, ANY, plan, Cost(1), "b")
    error = await refused(store.admit(IP, ANY, plan, Cost(1), "c"))
    assert (error.code, error.status) == ("concurrency_limited", 429)
    assert error.retry_after and error.should_retry is not False
    early = store.refusal(IP, ANY, plan)
    assert early is not None and early.code == "concurrency_limited"
    await store.admit(IP, replace(ANY, id="other"), plan, Cost(1), "c")
    await store.settle("a", None)
    assert store.refusal(IP, ANY, plan) is None
    await store.admit(IP, ANY, plan, Cost(1), "d")
    assert (await store.usage_today(ANY, plan))["streams"] == {"limit": 2, "running": 2}


async def test_fifty_at_once_take_exactly_what_is_there(store: Store) -> None:
    plan = Plan("test", streams=7)
    results = await asyncio.gather(
        *(store.admit(IP, ANY, plan, Cost(1), str(number)) for number in range(50)), return_exceptions=True
    )
    assert sum(isinstance(result, Grant) for result in results) == 7
    assert {result.code for result in results if isinstance(result, ApiError)} == {"concurrency_limited"}


async def test_a_chat_id_is_admitted_once(store: Store) -> None:
    await store.admit(IP, ANY, FREE, Cost(1), "a")
    with pytest.raises(ValueError, match="already"):
        await store.admit(IP, ANY, FREE, Cost(1), "a")


# Tokens


async def test_tokens_are_reserved_then_settled_to_what_was_used(store: Store) -> None:
    plan = Plan("test", tokens_per_day=1000)
    grant = await store.admit(IP, ANY, plan, Cost(600), "a")
    assert grant.tokens == Allowance(1000, 400, 43_200)
    assert await used(store, plan, ANY) == (0, 600)
    assert await store.settle("a", Usage(20, 100)) is True
    assert await used(store, plan, ANY) == (120, 0)


async def test_settling_again_changes_nothing(store: Store) -> None:
    plan = Plan("test", streams=1, tokens_per_day=1000)
    await store.admit(IP, ANY, plan, Cost(600), "a")
    settled = await asyncio.gather(*(store.settle("a", Usage(1, number)) for number in range(50)))
    assert settled.count(True) == 1
    for usage in (Usage(500, 500), None):
        assert await store.settle("a", usage) is False
    total, reserved = await used(store, plan, ANY)
    assert total <= 50 and reserved == 0
    assert (await store.usage_today(ANY, plan))["streams"]["running"] == 0


async def test_settling_what_was_never_admitted_changes_nothing(store: Store) -> None:
    assert await store.settle("nobody", Usage(5, 5)) is False


async def test_nothing_spent_is_nothing_counted(store: Store) -> None:
    plan = Plan("test", tokens_per_day=1000)
    await store.admit(IP, ANY, plan, Cost(1000), "a")
    assert await store.settle("a", None) is True
    assert await used(store, plan, ANY) == (0, 0)
    await store.admit(IP, ANY, plan, Cost(1000), "b")


async def test_a_used_up_quota_says_when_it_starts_again(store: Store, clock: Clock) -> None:
    plan = Plan("test", tokens_per_day=1000)
    await store.admit(IP, ANY, plan, Cost(900), "a")
    await store.settle("a", Usage(0, 900))
    error = await refused(store.admit(IP, ANY, plan, Cost(101), "b"))
    assert (error.code, error.status, error.should_retry) == ("quota_exceeded", 429, False)
    assert error.retry_after == pytest.approx(43_200)
    assert "100 of 1000" in error.message and "max_tokens" in error.message
    assert store.refusal(IP, ANY, plan) is None  # a smaller request would do
    await store.admit(IP, ANY, plan, Cost(100), "c")
    await store.settle("c", Usage(0, 100))
    assert (await refused(store.admit(IP, ANY, plan, Cost(1), "d"))).code == "quota_exceeded"
    early = store.refusal(IP, ANY, plan)
    assert early is not None and (early.code, early.should_retry) == ("quota_exceeded", False)
    clock.advance(43_200)
    assert store.refusal(IP, ANY, plan) is None
    assert await used(store, plan, ANY) == (0, 0)


async def test_a_quota_held_by_running_answers_is_worth_waiting_for(store: Store) -> None:
    plan = Plan("test", tokens_per_day=1000)
    await store.admit(IP, ANY, plan, Cost(800), "a")
    error = await refused(store.admit(IP, ANY, plan, Cost(800), "b"))
    assert error.code == "quota_exceeded" and error.should_retry is not False
    assert error.retry_after is not None and error.retry_after < 10
    await store.settle("a", Usage(10, 10))
    await store.admit(IP, ANY, plan, Cost(800), "b")


async def test_an_answer_over_its_estimate_is_counted_in_full(store: Store) -> None:
    plan = Plan("test", tokens_per_day=100)
    await store.admit(IP, ANY, plan, Cost(100), "a")
    await store.settle("a", Usage(90, 60))
    assert await used(store, plan, ANY) == (150, 0)
    assert (await store.usage_today(ANY, plan))["tokens"]["remaining"] == 0
    assert (await refused(store.admit(IP, ANY, plan, Cost(1), "b"))).code == "quota_exceeded"


async def test_an_answer_over_midnight_belongs_to_the_day_it_began(store: Store, clock: Clock) -> None:
    plan = Plan("test", streams=1, tokens_per_day=1000)
    await store.admit(IP, ANY, plan, Cost(1000), "a")
    clock.advance(43_200)
    assert await used(store, plan, ANY) == (0, 0)
    assert (await refused(store.admit(IP, ANY, plan, Cost(1), "b"))).code == "concurrency_limited"
    await store.settle("a", Usage(0, 700))
    assert await used(store, plan, ANY) == (0, 0)
    grant = await store.admit(IP, ANY, plan, Cost(300), "b")
    assert grant.tokens == Allowance(1000, 700, 86_400)


@pytest.mark.case("E66")
async def test_a_clock_set_back_over_midnight_forgets_nothing(store: Store, clock: Clock) -> None:
    plan = Plan("test", tokens_per_day=1000)
    await store.admit(IP, ANY, plan, Cost(500), "a")
    await store.settle("a", Usage(0, 400))
    clock.unix += 86_400
    assert await used(store, plan, ANY) == (0, 0)
    clock.unix -= 86_400
    assert await used(store, plan, ANY) == (400, 0)
    await store.admit(IP, ANY, plan, Cost(600), "b")
    clock.unix += 86_400
    assert await used(store, plan, ANY) == (0, 0)
    clock.unix -= 86_400
    assert await used(store, plan, ANY) == (400, 600)
    assert (await refused(store.admit(IP, ANY, plan, Cost(1), "c"))).code == "quota_exceeded"
    await store.settle("b", Usage(0, 500))
    assert await used(store, plan, ANY) == (900, 0)


@pytest.mark.parametrize("tokens", [-5, 10**12, 10**30])
async def test_absurd_counts_break_nothing(store: Store, tokens: int) -> None:
    plan = Plan("test", tokens_per_day=1000)
    await store.admit(IP, ANY, plan, Cost(10), "a")
    assert await store.settle("a", Usage(tokens, 0)) is True
    total, reserved = await used(store, plan, ANY)
    assert total >= 0 and reserved == 0
    other = replace(ANY, id="other")
    await store.admit(IP, other, FREE, Cost(tokens), "b")
    assert await store.settle("b", Usage(1, 1)) is True


async def test_without_limits_tokens_are_still_counted(store: Store) -> None:
    grant = await store.admit(IP, ANY, FREE, Cost(10_000_000), "a")
    assert grant.headers() == []
    await store.settle("a", Usage(5, 6))
    assert await used(store, FREE, ANY) == (11, 0)
    assert (await store.usage_today(ANY, FREE))["tokens"]["remaining"] is None


# What happens, to whom or to which of the answers, and how many tokens.
OPERATIONS = st.lists(
    st.tuples(st.sampled_from("admit settle refund again".split()), st.integers(0, 5), st.integers(0, 400)), max_size=60
)


@pytest.mark.parametrize("kind", list(KINDS))
@settings(max_examples=25, deadline=None)
@given(operations=OPERATIONS)
def test_whatever_happens_the_sums_are_right(kind: str, operations: list[tuple[str, int, int]]) -> None:
    asyncio.run(check_sums(kind, operations))


async def check_sums(kind: str, operations: list[tuple[str, int, int]]) -> None:
    async with KINDS[kind]() as place:
        store = place.store()
        await store.open()
        try:
            await compare(store, operations)
        finally:
            await store.close()


async def compare(store: Store, operations: list[tuple[str, int, int]]) -> None:
    """Beside a model that is a few lines long: what runs, what was counted, what must be refused."""
    plan = Plan("test", streams=3, tokens_per_day=1000, tokens_per_day_together=1500)
    callers = [replace(ANY, id="ann"), replace(ANY, id="bob")]
    ids, running, ended = itertools.count(), dict[str, tuple[int, int]](), list[str]()
    total = [0, 0]

    def held(who: int) -> list[int]:
        return [tokens for caller, tokens in running.values() if caller == who]

    for operation, which, tokens in operations:
        if operation == "admit":
            chat_id, who = str(next(ids)), which % 2
            fits = (
                len(held(who)) < 3
                and total[who] + sum(held(who)) + tokens <= 1000
                and sum(total) + sum(held(0)) + sum(held(1)) + tokens <= 1500
            )
            try:
                await store.admit(IP, callers[who], plan, Cost(tokens), chat_id)
                assert fits
                running[chat_id] = (who, tokens)
            except ApiError:
                assert not fits
        elif operation == "again" and ended:
            assert await store.settle(ended[which % len(ended)], Usage(tokens, 0)) is False
        elif operation in ("settle", "refund") and running:
            chat_id = list(running)[which % len(running)]
            assert await store.settle(chat_id, Usage(0, tokens) if operation == "settle" else None) is True
            total[running.pop(chat_id)[0]] += tokens if operation == "settle" else 0
            ended.append(chat_id)
        for who, caller in enumerate(callers):
            assert await used(store, plan, caller) == (total[who], sum(held(who)))
            assert (await store.usage_today(caller, plan))["streams"]["running"] == len(held(who))


# Revocation


async def test_a_revoked_token_is_refused_everywhere(store: Store) -> None:
    plan = built_in()["member"]
    fresh = replace(ANY, jti="k" * 22)
    assert not store.revoked(ANY)
    await store.revoke(ANY)
    assert store.revoked(ANY) and not store.revoked(fresh)
    early = store.refusal(IP, ANY, plan)
    assert early is not None and (early.code, early.status) == ("token_revoked", 401)
    assert (await refused(store.admit(IP, ANY, plan, Cost(1), "a"))).code == "token_revoked"
    assert (await refused(store.charge_request(IP, ANY, plan))).code == "token_revoked"
    await store.admit(IP, fresh, plan, Cost(1), "a")


async def test_only_a_token_is_revoked_this_way(store: Store) -> None:
    with pytest.raises(ValueError, match="API key"):
        await store.revoke(Principal("key_0123456789ab", "key", "owner", ("chat",)))


# What the caller sees


async def test_the_headers_of_a_grant(store: Store) -> None:
    plan = Plan("test", requests_per_minute=20, tokens_per_day=20_000)
    grant = await store.admit(IP, ANY, plan, Cost(1500), "a")
    assert dict(grant.headers()) == {
        b"x-ratelimit-limit-requests": b"20",
        b"x-ratelimit-remaining-requests": b"19",
        b"x-ratelimit-reset-requests": b"3s",
        b"x-ratelimit-limit-tokens": b"20000",
        b"x-ratelimit-remaining-tokens": b"18500",
        b"x-ratelimit-reset-tokens": b"12h0m0s",
    }
    assert (await store.usage_today(ANY, plan))["requests"]["remaining"] == 19


async def test_what_me_shows(store: Store) -> None:
    plan = built_in()["anonymous"]
    await store.admit(IP, ANY, plan, Cost(1500), "a")
    assert await store.usage_today(ANY, plan) == {
        "requests": {"limit": 20, "remaining": 19, "reset": 3},
        "streams": {"limit": 2, "running": 1},
        "tokens": {"limit": 20_000, "used": 0, "reserved": 1500, "remaining": 18_500, "reset": 43_200},
        "tokens_per_request": 1024,
    }


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0s"), (0, "0s"), (0.0001, "1ms"), (0.12, "120ms"), (0.9999, "1s"), (1, "1s"), (2.2, "3s"), (59.5, "1m0s"),
     (360, "6m0s"), (3599.2, "1h0m0s"), (86_399, "23h59m59s")],
)  # fmt: skip
def test_durations_are_written_as_openai_writes_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text
