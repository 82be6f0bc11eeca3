"""Seats in memory, beside a model of them, through restarts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edge.plans import Plan
from edge.store.seats import HELD_SECONDS, Seats

PLAN = Plan("beta", seats=3)
# Who asks, how many seconds after the one before, and whether the edge was started again in between.
REQUESTS = st.lists(
    st.tuples(st.integers(0, 6), st.sampled_from([0, 1, 61, 3600, HELD_SECONDS // 2, HELD_SECONDS]), st.booleans()),
    max_size=60,
)


@given(requests=REQUESTS)
def test_a_seat_is_for_whoever_came_within_a_day(requests: list[tuple[int, int, bool]]) -> None:
    clock, kept, last = [1_800_000_000], dict[tuple[str, str], int](), dict[str, int]()

    def started() -> Seats:
        seats = Seats(lambda: clock[0], lambda plan, who, until: kept.update({(plan, who): until}))
        seats.load((plan, who, until) for (plan, who), until in kept.items() if until > clock[0])
        return seats

    seats = started()
    for number, pause, restart in requests:
        clock[0] += pause
        if restart:
            seats = started()
        who = f"caller{number}"
        # After a restart a seat may be free a minute too early, never too late.
        surely = [one for one, at in last.items() if one != who and clock[0] - at < HELD_SECONDS - 60]
        perhaps = [one for one, at in last.items() if one != who and clock[0] - at < HELD_SECONDS]
        sits = clock[0] - last.get(who, 0) < HELD_SECONDS - 60
        if seats.refusal(who, PLAN) is None:
            assert sits or len(surely) < 3
            seats.take(who, PLAN)
            last[who] = clock[0]
        else:
            assert not sits and len(perhaps) >= 3
