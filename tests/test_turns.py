"""Turns: as many at once as there are slots, the least-served principal first, and nobody's leaving costs another the
place. Time is virtual: a test says how long answers take, and nothing waits."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.turns import Turns, lane
from shared.contract.errors import ApiError
from tests.fake_runtime import FakeRuntime
from tests.fake_scripts import stall_mid_stream
from tests.pair import question, running_pair
from tests.virtual_time import run_virtually


class Caller:
    """One request: takes a turn, holds it until ``finish``, and remembers the places it was told."""

    def __init__(self, turns: Turns, principal: str = "somebody", **where: str) -> None:
        self.places: list[tuple[int, float | None]] = []
        self.slot: int | None = None
        self.spent: int | None = None
        self._finish = asyncio.Event()
        self.task = asyncio.create_task(self._run(turns, principal, where))

    @property
    def has_turn(self) -> bool:
        return self.slot is not None

    async def _run(self, turns: Turns, principal: str, where: dict[str, str]) -> None:
        async with turns.take(principal, 100, lambda place, eta: self.places.append((place, eta)), **where) as turn:
            self.slot = turn.slot
            await self._finish.wait()
            turn.spent = self.spent

    async def finish(self, spent: int | None = None) -> None:
        """Returns when whoever is next has the turn."""
        self.spent = spent
        self._finish.set()
        await self.task
        await asyncio.sleep(0)

    async def leave(self) -> None:
        self.task.cancel()
        with suppress(asyncio.CancelledError):
            await self.task

    @property
    def refused(self) -> bool:
        return self.task.done() and isinstance(self.task.exception(), ApiError)


async def callers(turns: Turns, *principals: str) -> list[Caller]:
    """In order of arrival."""
    made = []
    for principal in principals:
        made.append(Caller(turns, principal))
        await asyncio.sleep(0)
    return made


async def test_one_principal_is_served_in_the_order_in_which_it_asks() -> None:
    turns = Turns(1, 8)
    first, second, third = await callers(turns, "a", "a", "a")
    assert [caller.has_turn for caller in (first, second, third)] == [True, False, False]
    assert [place for place, _ in third.places] == [2]
    await first.finish()
    assert (second.has_turn, third.has_turn) == (True, False)
    turns.tick(0)
    assert [place for place, _ in third.places] == [2, 1]
    (late,) = await callers(turns, "a")
    await second.finish()
    assert (third.has_turn, late.has_turn) == (True, False)
    await third.finish()
    await late.finish()
    assert (turns.running, turns.queued) == (0, 0)


async def test_the_one_who_was_served_least_goes_first() -> None:
    """Who floods is behind whoever comes, and the places told say so."""
    turns = Turns(1, 16)
    flood = await callers(turns, *"aaaa")
    (guest,) = await callers(turns, "b")
    assert guest.places[0][0] == 1
    await flood[0].finish()
    assert guest.has_turn and not flood[1].has_turn
    await guest.finish()
    assert flood[1].has_turn
    for caller in flood[1:]:
        await caller.finish()


async def test_what_an_answer_really_cost_counts() -> None:
    """Of two who had one answer each, the one whose answer was short goes first, though it asked last."""
    turns = Turns(3, 16)
    long, short, _ = made = await callers(turns, "long", "short", "third")
    again = await callers(turns, "long", "short")
    turns.set_slots(1)
    await long.finish(spent=90)
    await short.finish(spent=10)
    assert not any(caller.has_turn for caller in again)
    await made[2].finish()
    assert [caller.has_turn for caller in again] == [False, True]
    await again[1].finish()
    await again[0].finish()


async def test_a_full_queue_refuses_at_once() -> None:
    turns = Turns(1, 1)
    running, waiting = await callers(turns, "a", "b")
    with pytest.raises(ApiError) as refused:
        async with turns.take("c", 1, lambda place, eta: None):
            pass
    assert (refused.value.code, refused.value.status) == ("overloaded", 503)
    assert refused.value.retry_after
    await running.finish()
    await waiting.finish()


async def test_who_floods_does_not_fill_the_queue_for_others() -> None:
    """The last eighth of the places is for principals of whom nobody waits."""
    turns = Turns(1, 16)
    flood = await callers(turns, *"a" * 15)  # one runs, 14 wait
    with pytest.raises(ApiError, match="kept for others") as refused:
        async with turns.take("a", 1, lambda place, eta: None):
            pass
    assert refused.value.code == "overloaded"
    guests = await callers(turns, "b", "c")
    assert [guest.places[0][0] for guest in guests] == [1, 2]
    with pytest.raises(ApiError, match="All 1 slots are busy and 16 requests wait"):
        async with turns.take("d", 1, lambda place, eta: None):
            pass
    for caller in (*flood, *guests):
        await caller.leave()
    assert (turns.running, turns.queued) == (0, 0)


async def test_one_who_leaves_the_queue_moves_the_others_up() -> None:
    turns = Turns(1, 8)
    running, leaving, staying = await callers(turns, "a", "a", "a")
    await leaving.leave()
    assert turns.queued == 1
    turns.tick(0)
    assert [place for place, _ in staying.places] == [2, 1]
    await running.finish()
    await staying.finish()
    assert (turns.running, turns.queued) == (0, 0)


@pytest.mark.parametrize("order", ["leaves, then free", "free, then leaves", "granted, then leaves"])
async def test_leaving_in_the_tick_in_which_a_slot_falls_free(order: str) -> None:
    """However the two meet, the next one gets the slot and nobody fails."""
    turns = Turns(1, 8)
    running, leaving, staying = await callers(turns, "a", "a", "a")
    if order == "leaves, then free":
        leaving.task.cancel()
    running._finish.set()
    if order == "granted, then leaves":
        await asyncio.sleep(0)  # the one who was given the slot has not run yet
    leaving.task.cancel()
    await running.task
    await leaving.leave()
    await asyncio.sleep(0)
    assert not leaving.has_turn
    assert staying.has_turn
    await staying.finish()
    assert (turns.running, turns.queued) == (0, 0)


async def test_more_slots_let_waiting_ones_in() -> None:
    turns = Turns(1, 8)
    made = await callers(turns, *"aaaa")
    turns.set_slots(3)
    await asyncio.sleep(0)
    assert [caller.has_turn for caller in made] == [True, True, True, False]
    turns.set_slots(1)  # the three go on; the next one waits for all of them
    for caller in made[:2]:
        await caller.finish()
    assert not made[3].has_turn
    await made[2].finish()
    await made[3].finish()
    assert turns.running == 0


async def test_each_lane_has_slots_of_its_own_and_all_share_the_queue() -> None:
    turns = Turns(1, 2)
    turns.set_slots(1, {"small": 2})
    made = [Caller(turns, "a", lane=lane) for lane in ("small", "small", "", "small", "")]
    await asyncio.sleep(0)
    assert [caller.has_turn for caller in made] == [True, True, True, False, False]
    assert (turns.slots, turns.running, turns.queued) == (2, 3, 2)
    assert turns.lanes() == {"small": (2, 2, 1), "": (1, 1, 1)}
    with pytest.raises(ApiError, match="2 requests wait"):
        async with turns.take("b", 1, lambda place, eta: None, lane="small"):
            pass
    await made[2].finish()
    assert [caller.has_turn for caller in made[3:]] == [False, True]
    for caller in (made[0], made[1], made[3], made[4]):
        await caller.finish()
    assert turns.lanes() == {"small": (2, 0, 0), "": (1, 0, 0)}


async def test_a_lane_that_is_gone_ends_with_its_last_request() -> None:
    turns = Turns(1, 8)
    turns.set_slots(1, {"old": 2})
    running, other, waiting = [Caller(turns, "a", lane="old") for _ in range(3)]
    await asyncio.sleep(0)
    turns.set_slots(1, {"new": 2})
    assert turns.lanes() == {"new": (2, 0, 0), "old": (1, 2, 1)}
    await running.finish()
    await other.finish()
    await waiting.finish()
    assert turns.lanes() == {"new": (2, 0, 0)}
    await Caller(turns, "a", lane="new").finish()
    turns.set_slots(3)
    assert turns.lanes() == {"": (3, 0, 0)}


def test_the_wait_is_told_and_estimated_from_answers_that_ended() -> None:
    async def scene() -> list[list[tuple[int, float | None]]]:
        turns = Turns(1, 8)
        (first,) = await callers(turns, "a")
        await asyncio.sleep(4)
        await first.finish()
        _, waiting, last = await callers(turns, "a", "b", "c")
        for second in range(12):
            await asyncio.sleep(1)
            turns.tick(second)
        return [waiting.places, last.places]

    once = [(1, 4.0)], [(2, 8.0)]
    assert run_virtually(scene()) == [3 * place for place in once], "at once, and again every five seconds"


def test_a_long_queue_is_told_at_a_bounded_pace() -> None:
    """200 who wait are told at most five times a second, however fast the queue moves."""

    async def scene() -> int:
        turns = Turns(1, 1000)
        made = await callers(turns, *(f"p{number}" for number in range(201)))
        for caller in made[:100]:
            await asyncio.sleep(0.01)
            await caller.finish()
        return max(len(caller.places) for caller in made)

    assert run_virtually(scene()) <= 2 + 1.0 / 0.1


FLOOD = 50


def first_tokens(turns: Turns, seconds: float, *, flood: int) -> list[float]:
    """How long each of ten requests of a principal waited that asks one at a time, while another asks for ``flood``
    answers at once; each answer takes ``seconds``."""

    async def request(principal: str) -> float:
        loop = asyncio.get_running_loop()
        asked = loop.time()
        async with turns.take(principal, 512, lambda place, eta: None, prefix=f"\0{principal}") as turn:
            waited = loop.time() - asked
            await asyncio.sleep(seconds)
            turn.spent = 40
        return waited

    async def scene() -> list[float]:
        flooding = [asyncio.create_task(request("flood")) for _ in range(flood)]
        await asyncio.sleep(seconds / 3)
        waits = [await request("guest") for _ in range(10)]
        await asyncio.gather(*flooding)
        return waits

    return run_virtually(scene())


@pytest.mark.parametrize("slots", [1, 4])
def test_a_flood_of_50_costs_another_at_most_one_generation(slots: int) -> None:
    assert first_tokens(Turns(slots, 64), 6.0, flood=0) == [0.0] * 10
    waits = first_tokens(Turns(slots, 64), 6.0, flood=FLOOD)
    assert max(waits) <= 6.0


def jain(shares: list[int]) -> float:
    """1 when all are equal, 1/n when one has everything."""
    return sum(shares) ** 2 / (len(shares) * sum(share**2 for share in shares))


@settings(max_examples=25)
@given(
    st.integers(1, 4),
    st.lists(st.integers(1, 8), min_size=2, max_size=4),
    st.lists(st.integers(20, 400), min_size=20, max_size=20),
)
def test_principals_that_always_want_more_get_equal_shares(slots: int, eager: list[int], costs: list[int]) -> None:
    """However many requests each keeps waiting, and whatever they cost: tokens are shared to one answer each."""

    async def scene() -> Counter[str]:
        turns = Turns(slots, 1000)
        served: Counter[str] = Counter()

        async def ask(principal: str, number: int) -> None:
            while True:
                async with turns.take(principal, 512, lambda place, eta: None) as turn:
                    number += 1
                    turn.spent = costs[number % len(costs)]
                    await asyncio.sleep(turn.spent / 10)
                    served[principal] += turn.spent

        tasks = [
            asyncio.create_task(ask(f"p{index}", number))
            for index, wants in enumerate(eager)
            for number in range(wants)
        ]
        await asyncio.sleep(len(eager) * 800 / slots)  # some 8000 tokens for each
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert (turns.running, turns.queued) == (0, 0)
        return served

    served = run_virtually(scene())
    if all(wants >= slots for wants in eager):  # fewer cannot use a whole share
        assert jain([served[f"p{index}"] for index in range(len(eager))]) >= 0.95


def test_nobody_starves_behind_a_stream_of_newcomers() -> None:
    """A principal that was served much waits while somebody new asks every moment: credit brings it to the front."""

    async def scene() -> int:
        turns = Turns(1, 64)
        served = 0

        async def visit(name: str) -> None:
            nonlocal served
            async with turns.take(name, 100, lambda place, eta: None) as turn:
                await asyncio.sleep(1)
                turn.spent = 100
            served += 1

        heavy = asyncio.create_task(visit("heavy"))
        await asyncio.sleep(0)
        again = asyncio.create_task(visit("heavy"))
        visitors = []
        while not again.done():
            visitors.append(asyncio.create_task(visit(f"visitor {len(visitors)}")))
            await asyncio.sleep(0.5)  # twice as many as can be served
            assert served < 100, "it starves"
        for task in (heavy, *visitors):
            task.cancel()
        await asyncio.gather(heavy, *visitors, return_exceptions=True)
        return served

    assert run_virtually(scene()) <= 8


async def test_the_same_prefix_gets_the_same_slot() -> None:
    turns = Turns(3, 8)
    made = [Caller(turns, name, prefix=prefix) for name, prefix in (("a", "home\0a"), ("b", "home\0b"))]
    await asyncio.sleep(0)
    assert [caller.slot for caller in made] == [0, 1]
    await made[1].finish()
    await made[0].finish()
    again = [Caller(turns, name, prefix=prefix) for name, prefix in (("b", "home\0b"), ("a", "home\0a"))]
    await asyncio.sleep(0)
    assert [caller.slot for caller in again] == [1, 0], "where their prompts are, whoever comes first"
    for caller in again:
        await caller.finish()


async def test_without_its_own_slot_a_prefix_takes_the_one_that_costs_least() -> None:
    turns = Turns(4, 8)

    async def once(prefix: str) -> int | None:
        caller = Caller(turns, prefix, prefix=prefix)
        await asyncio.sleep(0)
        slot = caller.slot
        await caller.finish()
        return slot

    for slot, prefix in enumerate(("home\0a", "work\0b", "home\0c", "play\0d")):
        assert await once(prefix) == slot, "nobody's cache is lost"
    assert await once("work\0e") == 1, "the same chat type's, of the two that were free the longest"
    assert await once("play\0f") == 0, "the one longest free: play's was used just before"
    assert await once("\0g") == 2, "without a chat type nothing is shared"
    assert await once("\0h") == 3
    assert await once("work\0e") == 1, "its own"


@given(st.data())
def test_whatever_happens_no_slot_is_lost_or_held_twice(data: st.DataObject) -> None:
    """Any order of arrivals, ends, departures and changes of the slots: as many run as there are slots for, on slots
    that differ, and places are told from 1 up without a gap."""

    async def scene() -> None:
        turns = Turns(2, 8)
        here: list[Caller] = []
        slots = 2
        for _ in range(data.draw(st.integers(1, 40))):
            step = data.draw(st.sampled_from(("come", "come", "come", "finish", "leave", "slots")))
            if step == "come":
                principal = data.draw(st.sampled_from("abc"))
                here.append(Caller(turns, principal, prefix=f"\0{principal}"))
            elif step == "slots":
                slots = data.draw(st.integers(1, 4))
                turns.set_slots(slots)
            elif here:
                caller = here.pop(data.draw(st.integers(0, len(here) - 1)))
                await (caller.finish(data.draw(st.integers(0, 300))) if caller.has_turn else caller.leave())
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            here = [caller for caller in here if not caller.refused]
            running = [caller for caller in here if caller.has_turn]
            assert len({caller.slot for caller in running}) == len(running) == turns.running
            waiting = [caller for caller in here if not caller.has_turn]
            assert len(waiting) == turns.queued <= 8
            assert turns.running >= min(slots, len(here))
            turns.tick(0)
            assert sorted(caller.places[-1][0] for caller in waiting) == list(range(1, len(waiting) + 1))
        for caller in here:
            await caller.leave()
        assert (turns.running, turns.queued) == (0, 0)

    run_virtually(scene())


def test_little_is_remembered_of_those_who_went() -> None:
    async def scene() -> int:
        turns = Turns(1, 16)
        (first,) = await callers(turns, "always there")
        for number in range(3000):
            (one,) = await callers(turns, f"visitor {number}")
            (first_again,) = await callers(turns, "always there")
            await first.finish()
            first = first_again
            await one.leave()
        remembered = sum(lane.queue.accounts for lane in turns._lanes.values())
        await first.leave()
        assert sum(lane.queue.accounts for lane in turns._lanes.values()) == 0
        return remembered

    assert run_virtually(scene()) <= 1100


async def test_who_waits_hears_the_place_again_though_it_is_the_same(
    quick_ticks: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through edge and node: the stream's `event: queued` comes at once, and again and again."""
    monkeypatch.setattr(lane, "_TELL_AGAIN", 0.1)
    async with (
        FakeRuntime(script=stall_mid_stream(2)) as runtime,
        running_pair(runtime.url, state=tmp_path, node={"slots": 1}) as pair,
    ):
        ask = question("Whose turn is it?", stream=True)
        async with pair.post("/v1/chat", ask) as first:
            await first.content.readuntil(b"\n\n")
            async with pair.post("/v1/chat", ask) as second, asyncio.timeout(10):
                told = [await second.content.readuntil(b"\n\n") for _ in range(3)]
    assert told == [b'event: queued\ndata: {"position":1,"eta_seconds":null}\n\n'] * 3


async def test_a_lane_that_does_not_run_has_the_slots_that_are_expected_of_it() -> None:
    turns = Turns(4, 10)
    turns.set_slots(4, {"there": 2}, {"on disk": 1})
    assert turns.slots == 2, "what could be loaded answers nobody now"
    async with turns.take("a", 1, lambda place, eta: None, lane="on disk"):
        assert turns.would_queue("on disk")
    assert set(turns.lanes()) == {"there"}
