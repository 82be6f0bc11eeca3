"""Turns: as many at once as there are slots, first come first served, and nobody's leaving costs another the place."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from node.turns import Turns
from shared.contract.errors import ApiError


class Caller:
    """One request: takes a turn, holds it until ``finish``, and remembers the places it was told."""

    def __init__(self, turns: Turns) -> None:
        self.places: list[tuple[int, float | None]] = []
        self.has_turn = False
        self._finish = asyncio.Event()
        self.task = asyncio.create_task(self._run(turns))

    async def _run(self, turns: Turns) -> None:
        async with turns.take("somebody", 1, lambda place, eta: self.places.append((place, eta))):
            self.has_turn = True
            await self._finish.wait()

    async def finish(self) -> None:
        self._finish.set()
        await self.task

    async def leave(self) -> None:
        self.task.cancel()
        with suppress(asyncio.CancelledError):
            await self.task


async def callers(turns: Turns, count: int) -> list[Caller]:
    """In order of arrival."""
    made = []
    for _ in range(count):
        made.append(Caller(turns))
        await asyncio.sleep(0)
    return made


async def test_first_come_first_served() -> None:
    turns = Turns(1, 8)
    first, second, third = await callers(turns, 3)
    assert [caller.has_turn for caller in (first, second, third)] == [True, False, False]
    assert [place for place, _ in third.places] == [2]
    await first.finish()
    await asyncio.sleep(0)
    assert (second.has_turn, third.has_turn) == (True, False)
    assert [place for place, _ in third.places] == [2, 1]
    late = Caller(turns)
    await asyncio.sleep(0)
    await second.finish()
    await asyncio.sleep(0)
    assert (third.has_turn, late.has_turn) == (True, False)
    await third.finish()
    await late.finish()
    assert (turns.running, turns.queued) == (0, 0)


async def test_a_full_queue_refuses_at_once() -> None:
    turns = Turns(1, 1)
    running, waiting = await callers(turns, 2)
    with pytest.raises(ApiError) as refused:
        async with turns.take("somebody", 1, lambda place, eta: None):
            pass
    assert (refused.value.code, refused.value.status) == ("overloaded", 503)
    assert refused.value.retry_after
    await running.finish()
    await waiting.finish()


async def test_one_who_leaves_the_queue_moves_the_others_up() -> None:
    turns = Turns(1, 8)
    running, leaving, staying = await callers(turns, 3)
    await leaving.leave()
    assert turns.queued == 1
    assert [place for place, _ in staying.places] == [2, 1]
    await running.finish()
    await staying.finish()
    assert (turns.running, turns.queued) == (0, 0)


async def test_leaving_in_the_tick_in_which_a_slot_falls_free() -> None:
    """However the two meet, the next one gets the slot and nobody fails."""
    for order in ("leaves, then free", "free, then leaves", "granted, then leaves"):
        turns = Turns(1, 8)
        running, leaving, staying = await callers(turns, 3)
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
    made = await callers(turns, 4)
    turns.set_slots(3)
    await asyncio.sleep(0)
    assert [caller.has_turn for caller in made] == [True, True, True, False]
    turns.set_slots(1)  # the three go on; the next one waits for all of them
    for caller in made[:2]:
        await caller.finish()
    await asyncio.sleep(0)
    assert not made[3].has_turn
    await made[2].finish()
    await made[3].finish()
    assert turns.running == 0


async def test_the_wait_is_estimated_from_answers_that_ended() -> None:
    turns = Turns(1, 8)
    (first,) = await callers(turns, 1)
    await asyncio.sleep(0.2)
    await first.finish()
    running, waiting, last = await callers(turns, 3)
    assert waiting.places[0][0] == 1
    assert 0.1 <= (waiting.places[0][1] or 0) <= 5
    assert (last.places[0][1] or 0) >= 2 * (waiting.places[0][1] or 0) - 0.1
    for caller in (running, waiting, last):
        await caller.finish()
