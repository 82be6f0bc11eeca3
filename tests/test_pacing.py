"""How much a server that does not say it is given, and what its metrics mean."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from node.runtimes.pacing import FULL, Load, Pacing, Standstill
from node.runtimes.prometheus_text import Samples

LOADS = st.builds(
    Load, st.integers(0, 1000), st.integers(0, 1000), st.floats(0, 1, allow_nan=False), st.integers(0, 3).map(float)
)


@given(st.integers(1, 300), st.integers(1, 300), st.lists(LOADS, max_size=30))
def test_slots_stay_between_one_and_the_most(first: int, most: int, loads: list[Load]) -> None:
    pacing = Pacing(first, most)
    for load in loads:
        before = pacing.slots
        after = pacing.saw(load)
        assert 1 <= after <= most
        assert not (load.waiting and after > before), "no more while somebody waits for room"
        assert not (load.memory >= FULL and after > before)
        assert after >= before // 2, "one look is no proof"


def test_a_server_with_room_is_soon_given_all_that_it_takes() -> None:
    pacing = Pacing(4, 256)
    looks = 0
    while pacing.slots < 256:
        pacing.saw(Load(running=pacing.slots))
        looks += 1
    assert looks < 24, "two minutes of looks"


def test_what_others_leave_of_it_comes_back() -> None:
    pacing = Pacing(16)
    assert [pacing.saw(Load(running=4, waiting=1)) for _ in range(3)] == [8, 4, 4]
    assert [pacing.saw(Load(running=pacing.slots)) for _ in range(4)] == [5, 6, 7, 8]


def test_a_standstill_is_waiting_without_any_movement() -> None:
    still = Standstill()
    stuck = Load(running=2, progress=7.0, queued=3)
    assert [still.seconds(stuck, now) for now in (0.0, 5.0, 10.0)] == [None, 0.0, 5.0]
    assert still.seconds(Load(2, 0, 0.0, 8.0, 3), 15.0) is None
    assert [still.seconds(Load(2, 0, 0.0, 8.0), now) for now in (20.0, 40.0)] == [None, None], "nobody waits"


def test_samples_are_found_by_their_whole_name_and_added_over_engines() -> None:
    samples = Samples(
        '# HELP a A help.\na{engine="0"} 1.0\na{engine="1"} 2\na_by_reason{reason="x"} 7\n'
        'info{text="quoted \\" , }",n="5"} 1\nbroken nothing\nalone\nb 1e3\n'
    )
    assert (samples.total("a"), samples.total("a", engine="1"), samples.total("b")) == (3.0, 2.0, 1000.0)
    assert samples.total("a_by_reason", reason="y") is None and samples.total("broken") is None
    assert samples.total("missing", "b") == 1000.0
    assert (samples.label("info", "n"), samples.label("info", "m"), samples.label("c", "n")) == ("5", "", "")


@given(st.text())
def test_whatever_a_server_says_is_read(text: str) -> None:
    assert isinstance(Samples(text).total("a") or 0.0, float)
