"""The contract of a Ledger: every implementation is opened by one function in ``LEDGERS`` and passes all of this."""

from __future__ import annotations

import asyncio
import itertools
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.plans import Plan, built_in
from edge.principals import Principal
from edge.store.ledger import Allowance, Cost, Grant, Ledger, duration
from edge.store.sqlite import SQLiteStore
from shared.contract.chat import Usage
from shared.contract.errors import ApiError

IP = "203.0.113.7"
PER_IP = 50
ANY = Principal("caller", "anonymous", "test", ("chat",), jti="j" * 22, expires_at=2_000_000_000)
FREE = Plan("free")


class Clock:
    """Wall and monotonic time, moved by hand; it starts at 12:00 UTC."""

    def __init__(self) -> None:
        self.unix = 20_000 * 86_400 + 43_200.0
        self.elapsed = 500.0

    def advance(self, seconds: float) -> None:
        self.unix += seconds
        self.elapsed += seconds


@asynccontextmanager
async def sqlite(clock: Clock) -> AsyncIterator[Ledger]:
    with tempfile.TemporaryDirectory() as folder:
        store = SQLiteStore(
            Path(folder) / "edge.db",
            requests_per_minute_per_ip=PER_IP,
            now=lambda: clock.unix,
            monotonic=lambda: clock.elapsed,
        )
        await store.open()
        try:
            yield store
        finally:
            await store.close()


LEDGERS: dict[str, Callable[[Clock], AbstractAsyncContextManager[Ledger]]] = {"sqlite": sqlite}


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=list(LEDGERS))
async def ledger(request: pytest.FixtureRequest, clock: Clock) -> AsyncIterator[Ledger]:
    async with LEDGERS[request.param](clock) as opened:
        yield opened


async def refused(call: object) -> ApiError:
    with pytest.raises(ApiError) as caught:
        await call  # type: ignore[misc]
    return caught.value


def used(ledger: Ledger, plan: Plan, principal: Principal = ANY) -> tuple[int, int]:
    tokens = ledger.usage_today(principal, plan)["tokens"]
    return tokens["used"], tokens["reserved"]


# Rates


async def test_a_minute_of_requests_may_come_at_once_and_no_more(ledger: Ledger, clock: Clock) -> None:
    plan = Plan("test", requests_per_minute=3)
    for left in (2, 1, 0):
        grant = await ledger.charge_request(IP, ANY, plan)
        assert grant.requests is not None and grant.requests.remaining == left
    error = await refused(ledger.charge_request(IP, ANY, plan))
    assert (error.code, error.status) == ("rate_limited", 429)
    assert error.retry_after == pytest.approx(20)
    clock.advance(19)
    assert (await refused(ledger.charge_request(IP, ANY, plan))).retry_after == pytest.approx(1)
    clock.advance(1)
    await ledger.charge_request(IP, ANY, plan)
    assert (await refused(ledger.admit(IP, ANY, plan, Cost(1), "a"))).code == "rate_limited"


@pytest.mark.parametrize("limit", [1, 7, 11, 13, 20, 49])
async def test_a_whole_burst_fits_whatever_its_size(ledger: Ledger, clock: Clock, limit: int) -> None:
    plan = Plan("test", requests_per_minute=limit)
    for _ in range(2):
        for _ in range(limit):
            await ledger.charge_request(IP, ANY, plan)
        assert (await refused(ledger.charge_request(IP, ANY, plan))).code == "rate_limited"
        clock.advance(60)


async def test_an_address_is_limited_over_all_its_callers(ledger: Ledger) -> None:
    plan = built_in()["anonymous"]
    for number in range(PER_IP):
        await ledger.charge_request(f"2001:db8:1:2::{number:x}", replace(ANY, id=f"p{number}"), plan)
    neighbour = replace(ANY, id="neighbour")
    error = await refused(ledger.charge_request("2001:db8:1:2:ffff::1", neighbour, plan))
    assert error.code == "rate_limited" and "address" in error.message
    grant = ledger.peek("2001:db8:1:2::1", neighbour, plan)
    assert grant.requests is not None and grant.requests.remaining == 0
    await ledger.charge_request("2001:db8:1:3::1", neighbour, plan)


async def test_a_plan_without_a_request_limit_has_none_by_address_either(ledger: Ledger) -> None:
    for number in range(3 * PER_IP):
        await ledger.admit(IP, ANY, FREE, Cost(1), str(number))
    await ledger.charge_request(IP, replace(ANY, id="other"), Plan("test", requests_per_minute=1))


async def test_a_refusal_takes_nothing(ledger: Ledger) -> None:
    plan = Plan("test", requests_per_minute=3, streams=1, tokens_per_day=100)
    await ledger.admit(IP, ANY, plan, Cost(60), "a")
    before = ledger.peek(IP, ANY, plan)
    for number in range(20):
        assert (await refused(ledger.admit(IP, ANY, plan, Cost(10), f"x{number}"))).code == "concurrency_limited"
        assert ledger.refusal(IP, ANY, plan) is not None
    await ledger.settle("a", None)
    for number in range(20):
        assert (await refused(ledger.admit(IP, ANY, plan, Cost(101), f"y{number}"))).code == "quota_exceeded"
        assert ledger.refusal(IP, ANY, plan) is None
    after = ledger.peek(IP, ANY, plan)
    assert before.requests == after.requests
    assert used(ledger, plan) == (0, 0)


@pytest.mark.parametrize(
    "plan", [Plan("test", requests_per_minute=0), Plan("test", streams=0), Plan("test", tokens_per_day=0)]
)
async def test_a_limit_of_nothing_allows_nothing_and_waiting_does_not_help(ledger: Ledger, plan: Plan) -> None:
    early = ledger.refusal(IP, ANY, plan)
    error = await refused(ledger.admit(IP, ANY, plan, Cost(1), "a"))
    for found in (early, error):
        assert found is not None and (found.status, found.should_retry) == (429, False)
    assert ledger.usage_today(ANY, plan)["streams"]["running"] == 0
    assert all(value for _, value in ledger.peek(IP, ANY, plan).headers())


# Running answers


async def test_streams_are_counted_and_given_back(ledger: Ledger) -> None:
    plan = Plan("test", streams=2)
    await ledger.admit(IP, ANY, plan, Cost(1), "a")
    await ledger.admit(IP, ANY, plan, Cost(1), "b")
    error = await refused(ledger.admit(IP, ANY, plan, Cost(1), "c"))
    assert (error.code, error.status) == ("concurrency_limited", 429)
    assert error.retry_after and error.should_retry is not False
    early = ledger.refusal(IP, ANY, plan)
    assert early is not None and early.code == "concurrency_limited"
    await ledger.admit(IP, replace(ANY, id="other"), plan, Cost(1), "c")
    await ledger.settle("a", None)
    assert ledger.refusal(IP, ANY, plan) is None
    await ledger.admit(IP, ANY, plan, Cost(1), "d")
    assert ledger.usage_today(ANY, plan)["streams"] == {"limit": 2, "running": 2}


async def test_fifty_at_once_take_exactly_what_is_there(ledger: Ledger) -> None:
    plan = Plan("test", streams=7)
    results = await asyncio.gather(
        *(ledger.admit(IP, ANY, plan, Cost(1), str(number)) for number in range(50)), return_exceptions=True
    )
    assert sum(isinstance(result, Grant) for result in results) == 7
    assert {result.code for result in results if isinstance(result, ApiError)} == {"concurrency_limited"}


async def test_a_chat_id_is_admitted_once(ledger: Ledger) -> None:
    await ledger.admit(IP, ANY, FREE, Cost(1), "a")
    with pytest.raises(ValueError, match="already"):
        await ledger.admit(IP, ANY, FREE, Cost(1), "a")


# Tokens


async def test_tokens_are_reserved_then_settled_to_what_was_used(ledger: Ledger) -> None:
    plan = Plan("test", tokens_per_day=1000)
    grant = await ledger.admit(IP, ANY, plan, Cost(600), "a")
    assert grant.tokens == Allowance(1000, 400, 43_200)
    assert used(ledger, plan) == (0, 600)
    assert await ledger.settle("a", Usage(20, 100)) is True
    assert used(ledger, plan) == (120, 0)


async def test_settling_again_changes_nothing(ledger: Ledger) -> None:
    plan = Plan("test", streams=1, tokens_per_day=1000)
    await ledger.admit(IP, ANY, plan, Cost(600), "a")
    settled = await asyncio.gather(*(ledger.settle("a", Usage(1, number)) for number in range(50)))
    assert settled.count(True) == 1
    for usage in (Usage(500, 500), None):
        assert await ledger.settle("a", usage) is False
    total, reserved = used(ledger, plan)
    assert total <= 50 and reserved == 0
    assert ledger.usage_today(ANY, plan)["streams"]["running"] == 0


async def test_settling_what_was_never_admitted_changes_nothing(ledger: Ledger) -> None:
    assert await ledger.settle("nobody", Usage(5, 5)) is False


async def test_nothing_spent_is_nothing_counted(ledger: Ledger) -> None:
    plan = Plan("test", tokens_per_day=1000)
    await ledger.admit(IP, ANY, plan, Cost(1000), "a")
    assert await ledger.settle("a", None) is True
    assert used(ledger, plan) == (0, 0)
    await ledger.admit(IP, ANY, plan, Cost(1000), "b")


async def test_a_used_up_quota_says_when_it_starts_again(ledger: Ledger, clock: Clock) -> None:
    plan = Plan("test", tokens_per_day=1000)
    await ledger.admit(IP, ANY, plan, Cost(900), "a")
    await ledger.settle("a", Usage(0, 900))
    error = await refused(ledger.admit(IP, ANY, plan, Cost(101), "b"))
    assert (error.code, error.status, error.should_retry) == ("quota_exceeded", 429, False)
    assert error.retry_after == pytest.approx(43_200)
    assert "100 of 1000" in error.message and "max_tokens" in error.message
    assert ledger.refusal(IP, ANY, plan) is None  # a smaller request would do
    await ledger.admit(IP, ANY, plan, Cost(100), "c")
    await ledger.settle("c", Usage(0, 100))
    early = ledger.refusal(IP, ANY, plan)
    assert early is not None and (early.code, early.should_retry) == ("quota_exceeded", False)
    clock.advance(43_200)
    assert ledger.refusal(IP, ANY, plan) is None
    assert used(ledger, plan) == (0, 0)


async def test_a_quota_held_by_running_answers_is_worth_waiting_for(ledger: Ledger) -> None:
    plan = Plan("test", tokens_per_day=1000)
    await ledger.admit(IP, ANY, plan, Cost(800), "a")
    error = await refused(ledger.admit(IP, ANY, plan, Cost(800), "b"))
    assert error.code == "quota_exceeded" and error.should_retry is not False
    assert error.retry_after is not None and error.retry_after < 10
    await ledger.settle("a", Usage(10, 10))
    await ledger.admit(IP, ANY, plan, Cost(800), "b")


async def test_an_answer_over_its_estimate_is_counted_in_full(ledger: Ledger) -> None:
    plan = Plan("test", tokens_per_day=100)
    await ledger.admit(IP, ANY, plan, Cost(100), "a")
    await ledger.settle("a", Usage(90, 60))
    assert used(ledger, plan) == (150, 0)
    grant = ledger.peek(IP, ANY, plan)
    assert grant.tokens is not None and grant.tokens.remaining == 0
    assert (await refused(ledger.admit(IP, ANY, plan, Cost(1), "b"))).code == "quota_exceeded"


async def test_an_answer_over_midnight_belongs_to_the_day_it_began(ledger: Ledger, clock: Clock) -> None:
    plan = Plan("test", streams=1, tokens_per_day=1000)
    await ledger.admit(IP, ANY, plan, Cost(1000), "a")
    clock.advance(43_200)
    assert used(ledger, plan) == (0, 0)
    assert (await refused(ledger.admit(IP, ANY, plan, Cost(1), "b"))).code == "concurrency_limited"
    await ledger.settle("a", Usage(0, 700))
    assert used(ledger, plan) == (0, 0)
    grant = await ledger.admit(IP, ANY, plan, Cost(300), "b")
    assert grant.tokens == Allowance(1000, 700, 86_400)


async def test_a_clock_set_back_over_midnight_forgets_nothing(ledger: Ledger, clock: Clock) -> None:
    plan = Plan("test", tokens_per_day=1000)
    await ledger.admit(IP, ANY, plan, Cost(500), "a")
    await ledger.settle("a", Usage(0, 400))
    clock.unix += 86_400
    assert used(ledger, plan) == (0, 0)
    clock.unix -= 86_400
    assert used(ledger, plan) == (400, 0)


@pytest.mark.parametrize("tokens", [-5, 10**12, 10**30])
async def test_absurd_counts_break_nothing(ledger: Ledger, tokens: int) -> None:
    plan = Plan("test", tokens_per_day=1000)
    await ledger.admit(IP, ANY, plan, Cost(10), "a")
    assert await ledger.settle("a", Usage(tokens, 0)) is True
    total, reserved = used(ledger, plan)
    assert total >= 0 and reserved == 0
    other = replace(ANY, id="other")
    await ledger.admit(IP, other, FREE, Cost(tokens), "b")
    assert await ledger.settle("b", Usage(1, 1)) is True


async def test_without_limits_tokens_are_still_counted(ledger: Ledger) -> None:
    grant = await ledger.admit(IP, ANY, FREE, Cost(10_000_000), "a")
    assert grant.headers() == []
    await ledger.settle("a", Usage(5, 6))
    assert used(ledger, FREE) == (11, 0)
    assert ledger.usage_today(ANY, FREE)["tokens"]["remaining"] is None


OPERATIONS = st.lists(
    st.tuples(st.sampled_from("admit settle refund again".split()), st.integers(0, 5), st.integers(0, 400)), max_size=60
)


@pytest.mark.parametrize("name", list(LEDGERS))
@settings(max_examples=25, deadline=None)
@given(operations=OPERATIONS)
def test_whatever_happens_the_sums_are_right(name: str, operations: list[tuple[str, int, int]]) -> None:
    asyncio.run(check_sums(name, operations))


async def check_sums(name: str, operations: list[tuple[str, int, int]]) -> None:
    """Beside a model that is three lines long: what runs, what was counted, what must be refused."""
    plan = Plan("test", streams=3, tokens_per_day=1000)
    ids, running, ended, total = itertools.count(), dict[str, int](), list[str](), 0
    async with LEDGERS[name](Clock()) as ledger:
        for operation, which, tokens in operations:
            if operation == "admit":
                chat_id = str(next(ids))
                fits = len(running) < 3 and total + sum(running.values()) + tokens <= 1000
                try:
                    await ledger.admit(IP, ANY, plan, Cost(tokens), chat_id)
                    assert fits
                    running[chat_id] = tokens
                except ApiError:
                    assert not fits
            elif operation == "again" and ended:
                assert await ledger.settle(ended[which % len(ended)], Usage(tokens, 0)) is False
            elif operation in ("settle", "refund") and running:
                chat_id = list(running)[which % len(running)]
                assert await ledger.settle(chat_id, Usage(0, tokens) if operation == "settle" else None) is True
                total += tokens if operation == "settle" else 0
                del running[chat_id]
                ended.append(chat_id)
            assert used(ledger, plan) == (total, sum(running.values()))
            assert ledger.usage_today(ANY, plan)["streams"]["running"] == len(running)


# Revocation


async def test_a_revoked_token_is_refused_everywhere(ledger: Ledger) -> None:
    plan = built_in()["member"]
    fresh = replace(ANY, jti="k" * 22)
    assert not ledger.revoked(ANY)
    await ledger.revoke(ANY)
    assert ledger.revoked(ANY) and not ledger.revoked(fresh)
    early = ledger.refusal(IP, ANY, plan)
    assert early is not None and (early.code, early.status) == ("token_revoked", 401)
    assert (await refused(ledger.admit(IP, ANY, plan, Cost(1), "a"))).code == "token_revoked"
    assert (await refused(ledger.charge_request(IP, ANY, plan))).code == "token_revoked"
    await ledger.admit(IP, fresh, plan, Cost(1), "a")


async def test_only_a_token_is_revoked_this_way(ledger: Ledger) -> None:
    with pytest.raises(ValueError, match="API key"):
        await ledger.revoke(Principal("key_0123456789ab", "key", "owner", ("chat",)))


# What the caller sees


async def test_the_headers_of_a_grant(ledger: Ledger) -> None:
    plan = Plan("test", requests_per_minute=20, tokens_per_day=20_000)
    grant = await ledger.admit(IP, ANY, plan, Cost(1500), "a")
    assert dict(grant.headers()) == {
        b"x-ratelimit-limit-requests": b"20",
        b"x-ratelimit-remaining-requests": b"19",
        b"x-ratelimit-reset-requests": b"3s",
        b"x-ratelimit-limit-tokens": b"20000",
        b"x-ratelimit-remaining-tokens": b"18500",
        b"x-ratelimit-reset-tokens": b"12h0m0s",
    }
    assert ledger.peek(IP, ANY, plan) == grant


async def test_what_me_shows(ledger: Ledger) -> None:
    plan = built_in()["anonymous"]
    await ledger.admit(IP, ANY, plan, Cost(1500), "a")
    assert ledger.usage_today(ANY, plan) == {
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
