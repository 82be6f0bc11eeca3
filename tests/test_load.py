"""An edge that is short of memory begins no more answers before the system kills it, and begins again when it has some.

The control group is files in a folder: which one this process is in is not a test's to change.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from edge.load import Load
from shared.contract.errors import ApiError
from shared.memory import Memory
from tests.fake_runtime import FakeRuntime
from tests.pair import question, running_pair
from tests.waiting import wait_until

MIB = 1 << 20


class Group:
    """A control group of 100 MiB at ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.limit("104857600")
        self.use(10)

    def limit(self, text: str) -> None:
        (self.folder / "memory.max").write_text(f"{text}\n")

    def use(self, mebibytes: int, files: int = 0) -> None:
        (self.folder / "memory.current").write_text(f"{mebibytes * MIB}\n")
        (self.folder / "memory.stat").write_text(f"anon 1\ninactive_anon 5\ninactive_file {files * MIB}\nslab 7\n")


@pytest.fixture
def group(tmp_path: Path) -> Group:
    return Group(tmp_path / "system.slice" / "hearthlink-edge.service")


@pytest.fixture
def memory(group: Group, tmp_path: Path) -> Memory:
    own = tmp_path / "cgroup"
    own.write_text("1:name=systemd:/\n0::/system.slice/hearthlink-edge.service\n")
    found = Memory.of_this_process(own, tmp_path)
    assert found is not None
    return found


def test_what_is_used_is_told_without_files_that_can_be_let_go(group: Group, memory: Memory) -> None:
    group.use(50, files=20)
    assert memory.used_share() == pytest.approx(0.3)
    (group.folder / "memory.stat").unlink()
    assert memory.used_share() == pytest.approx(0.5)
    (group.folder / "memory.current").unlink()
    assert memory.used_share() is None


def test_the_fullest_group_counts(group: Group, tmp_path: Path) -> None:
    """A service's own, its slice's, in which others are as well, or the whole container's."""
    own = tmp_path / "own"
    own.write_text("0::/system.slice/hearthlink-edge.service\n")
    around = Group(group.folder.parent), Group(tmp_path)
    for one in around:
        one.limit(str(400 * MIB))
    found = Memory.of_this_process(own, tmp_path)
    assert found is not None and found.used_share() == pytest.approx(0.1)
    for mebibytes, one in enumerate(around, 200):
        one.use(mebibytes)
        assert found.used_share() == pytest.approx(mebibytes / 400)
    group.use(90)
    assert found.used_share() == pytest.approx(0.9)


def test_without_a_limit_there_is_nothing_to_watch(group: Group, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("0::/system.slice/hearthlink-edge.service\n")
    group.limit("max")
    assert Memory.of_this_process(own, tmp_path) is None
    own.write_text("4:memory:/docker/1\n1:name=systemd:/\n")  # the older kind of control groups
    assert Memory.of_this_process(own, tmp_path) is None
    assert Memory.of_this_process(tmp_path / "nothing", tmp_path) is None
    load = Load(2, None)
    load.tick(0.0)
    load.check()
    assert not load.short


def refused(call: Callable[[], None]) -> str | None:
    try:
        call()
    except ApiError as error:
        assert error.code == "overloaded" and error.retry_after
        return error.message
    return None


def test_places_are_given_back() -> None:
    load = Load(2, None)
    with load.place(), load.place():
        assert refused(load.check) is not None
        with pytest.raises(ApiError), load.place():
            raise AssertionError("there are two")
    assert refused(load.check) is None
    with pytest.raises(OSError), load.place():
        raise OSError
    assert load.running == 0


@pytest.mark.case("E69")
def test_short_of_memory_answers_grow_no_more_and_do_not_stop_for_ever(group: Group, memory: Memory) -> None:
    """Python gives little back to the system: what ended answers leave is used again by new ones."""
    load = Load(1000, memory)
    with ExitStack() as running:
        for _ in range(20):
            running.enter_context(load.place())
        group.use(91)
        load.tick(0.0)
        assert load.short and "memory" in (refused(load.check) or "")
    assert load.running == 0
    load.tick(1.0)
    with ExitStack() as running:
        for _ in range(18):  # nine in ten of those that ran when it got short
            running.enter_context(load.place())
        assert refused(load.check) is not None
    group.use(89)
    load.tick(2.0)
    assert not load.short and refused(load.check) is None


def test_short_of_memory_one_answer_goes_on_always(group: Group, memory: Memory) -> None:
    load = Load(1000, memory)
    group.use(99)
    load.tick(0.0)
    with load.place():
        assert refused(load.check) is not None
    assert refused(load.check) is None


@pytest.mark.case("E69")
async def test_an_edge_at_nine_tenths_of_its_memory_refuses_answers_and_serves_all_else(
    tmp_path: Path, group: Group, memory: Memory, monkeypatch: pytest.MonkeyPatch, quick_ticks: None
) -> None:
    monkeypatch.setattr(Memory, "of_this_process", lambda: memory)
    async with FakeRuntime("stall_mid_stream") as runtime, running_pair(runtime.url, state=tmp_path) as pair:
        load = pair.edge.services.load
        async with pair.post("/v1/chat", question(stream=True)) as running:
            assert running.status == 200
            group.use(95)
            await wait_until(lambda: load.short)
            async with pair.post("/v1/chat", question(stream=True)) as response:
                assert (response.status, (await response.json())["error"]["code"]) == (503, "overloaded")
                assert int(response.headers["retry-after"]) >= 1
            for path in ("/v1/me", "/healthz", "/v1/models"):
                async with pair.get(path) as response:
                    assert response.status == 200
            assert await pair.token()
            async with pair.client.get(pair.ops_url + "/metrics") as response:
                assert "hearthlink_edge_memory_short 1.0" in await response.text()
            group.use(20)
            await wait_until(lambda: not load.short)
            async with pair.post("/v1/chat", question(stream=True)) as response:
                assert response.status == 200
