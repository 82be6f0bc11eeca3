"""Which model is in memory when: loads, swaps, failures, idle ones, and what is kept. Scripted loads, real rules."""

from __future__ import annotations

import asyncio
import contextlib
import json
import stat
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from node.models import memory
from node.models.kept import NAME, Kept, KeptFile
from node.models.models import Models
from node.runtime import LoadConfig
from shared.contract.errors import ApiError
from shared.contract.snapshot import ModelInfo
from shared.settings_models import ModelSettings
from tests.loadable import LoadableRuntime
from tests.logged import logged
from tests.waiting import wait_until

Progress = list[tuple[str, float | None]]


class Told:
    """Events as they were published."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def __call__(self, kind: str, **fields: Any) -> None:
        self.events.append({"kind": kind, **fields})

    def of(self, kind: str) -> list[tuple[Any, Any]]:
        return [(event.get("model"), event.get("by")) for event in self.events if event["kind"] == kind]


@asynccontextmanager
async def models_of(
    runtime: LoadableRuntime, settings: Mapping[str, Any] | None = None, *, told: Told | None = None, **more: Any
) -> AsyncIterator[Models]:
    parsed = {name: ModelSettings.model_validate(fields) for name, fields in (settings or {}).items()}
    models = Models(runtime, parsed, publish=told or Told(), **more)
    await models.start(models.changed)
    try:
        yield models
    finally:
        await models.close()


def unheard(model: str, progress: float | None) -> None:
    pass


class Holder:
    """A request that holds ``model`` until ``leave``."""

    def __init__(self, models: Models, model: str) -> None:
        self.heard: Progress = []
        self.has = asyncio.Event()
        self._done = asyncio.Event()
        self.task = asyncio.create_task(self._hold(models, model))

    async def _hold(self, models: Models, model: str) -> None:
        async with models.hold(model, lambda name, progress: self.heard.append((name, progress))):
            self.has.set()
            await self._done.wait()

    async def held(self) -> None:
        async with asyncio.timeout(5):
            await self.has.wait()

    async def leave(self) -> None:
        self._done.set()
        await self.task


async def steps() -> None:
    """Let everything happen that can happen now."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_model_in_memory_is_used_at_once_and_one_on_disk_after_its_load() -> None:
    runtime, told = LoadableRuntime("a", "b", loaded="a"), Told()
    async with models_of(runtime, told=told) as models:
        async with models.hold("a", unheard):
            assert runtime.log == []
        holder = Holder(models, "b")
        await holder.held()
        assert runtime.log == ["unload a", "load b"]
        assert holder.heard[0] == ("b", None) and ("b", 0.5) in holder.heard
        await holder.leave()
        assert told.of("load") == [("b", "request")] and told.of("loaded") == [("b", "request")]
        assert told.of("unloaded") == [("a", "request")]


async def test_a_model_makes_room_only_when_its_last_answer_has_ended() -> None:
    runtime = LoadableRuntime("a", "b", loaded="a")
    async with models_of(runtime) as models:
        first = Holder(models, "a")
        await first.held()
        other = Holder(models, "b")
        await steps()
        assert runtime.log == [] and not other.has.is_set()
        second = Holder(models, "a")  # within the patience
        await second.held()
        await first.leave()
        await steps()
        assert runtime.log == []
        await second.leave()
        await other.held()
        assert runtime.log == ["unload a", "load b"] and runtime.most == 1
        await other.leave()


async def test_after_a_while_new_requests_wait_behind_the_model_that_wants_the_place() -> None:
    runtime = LoadableRuntime("a", "b", loaded="a")
    with mock.patch.object(memory, "PATIENCE", 0.0):
        async with models_of(runtime) as models:
            first = Holder(models, "a")
            await first.held()
            other = Holder(models, "b")
            await steps()
            late = Holder(models, "a")
            await steps()
            assert not late.has.is_set(), "it went before the one that had waited longer than it may have to"
            await first.leave()
            await other.held()
            assert not late.has.is_set()
            await other.leave()
            await late.held()
            assert runtime.log == ["unload a", "load b", "unload b", "load a"]
            await late.leave()


async def test_requests_at_once_for_one_model_make_one_load() -> None:
    runtime = LoadableRuntime("a", "b", loaded="a")
    runtime.gate.clear()
    async with models_of(runtime) as models:
        holders = [Holder(models, "b") for _ in range(10)]
        await runtime.loading.wait()
        owner = asyncio.create_task(models.load("b", LoadConfig(), unheard))
        runtime.gate.set()
        for holder in holders:
            await holder.held()
        assert (await owner).status == "loaded"
        assert models.users("b") == 10
        assert runtime.log.count("load b") == 1
        for holder in holders:
            await holder.leave()
        assert models.users("b") == 0


async def test_two_owners_who_load_at_once_share_one_load_and_both_hear_of_it() -> None:
    runtime = LoadableRuntime("a", "b", loaded="a")
    runtime.gate.clear()
    async with models_of(runtime) as models:
        config = LoadConfig(context_length=512)
        loads = [asyncio.create_task(models.load("b", config, unheard)) for _ in range(2)]
        await runtime.loading.wait()
        runtime.gate.set()
        assert {(await load).status for load in loads} == {"loaded"}
        assert runtime.log == ["unload a", "load b"]
        assert (await models.load("b", config, unheard)).status == "already_loaded"
        assert runtime.log == ["unload a", "load b"]


async def test_a_load_with_another_configuration_waits_for_the_answers_and_loads_again() -> None:
    runtime = LoadableRuntime("a", loaded="a")
    async with models_of(runtime) as models:
        holder = Holder(models, "a")
        await holder.held()
        load = asyncio.create_task(models.load("a", LoadConfig(context_length=512, gpu_ratio=0.5), unheard))
        await steps()
        assert runtime.log == []
        await holder.leave()
        brought = await load
        assert brought.status == "loaded" and runtime.configs == [LoadConfig(context_length=512, gpu_ratio=0.5)]
        assert brought.loaded.applied == ("context_length",) and brought.loaded.ignored == ("gpu_ratio",)
        assert brought.loaded.workflow


async def test_a_load_that_fails_leaves_the_model_of_before_and_loses_no_request_for_it() -> None:
    runtime, told = LoadableRuntime("a", "b", loaded="a"), Told()
    runtime.broken.add("b")
    runtime.gate.clear()
    async with models_of(runtime, told=told) as models:
        load = asyncio.create_task(models.load("b", LoadConfig(), unheard))
        await runtime.loading.wait()
        waiting = Holder(models, "a")  # while it is away
        await steps()
        assert not waiting.has.is_set()
        runtime.gate.set()
        with pytest.raises(ApiError) as failed:
            await load
        assert failed.value.code == "runtime_error"
        await waiting.held()
        assert runtime.present == ["a"] and told.of("load_failed") == [("b", "owner")]
        await waiting.leave()


async def test_a_model_that_cannot_be_loaded_does_not_push_the_others_out_for_every_request() -> None:
    runtime = LoadableRuntime("a", "b", loaded="a")
    runtime.broken.add("b")
    async with models_of(runtime) as models:
        for _ in range(5):
            with pytest.raises(ApiError) as refused:
                async with models.hold("b", unheard):
                    pass
            assert refused.value.code == "runtime_error" and "broken" not in refused.value.message
        assert runtime.log.count("load b") == 1
        runtime.broken.clear()
        assert (await models.load("b", LoadConfig(), unheard)).status == "loaded"  # its owner may try


async def test_who_leaves_while_waiting_is_forgotten_and_the_model_stays() -> None:
    runtime = LoadableRuntime("a", "b", loaded="a")
    async with models_of(runtime) as models:
        first = Holder(models, "a")
        await first.held()
        other = Holder(models, "b")
        await steps()
        other.task.cancel()
        await asyncio.gather(other.task, return_exceptions=True)
        await first.leave()
        await steps()
        assert runtime.log == [] and runtime.present == ["a"]
        async with models.hold("a", unheard):
            pass


async def test_together_and_only_together_two_models_are_in_memory() -> None:
    runtime = LoadableRuntime("a", "b", "c", loaded="a")
    async with models_of(runtime, {"b": {"together": ["a"]}}) as models:
        async with models.hold("b", unheard):
            assert sorted(runtime.present) == ["a", "b"]
        async with models.hold("c", unheard):
            assert runtime.present == ["c"]
        async with models.hold("a", unheard):
            assert runtime.present == ["a"]


async def test_a_runtime_that_makes_room_itself_is_told_to_unload_nothing() -> None:
    runtime = LoadableRuntime("a", "b", loaded="a", evicts=True)
    async with models_of(runtime) as models, models.hold("a", unheard), models.hold("b", unheard):
        assert runtime.log == ["load b"]


async def test_without_a_way_to_load_requests_go_on_and_owners_learn_what_to_do() -> None:
    runtime = LoadableRuntime("a", "b", loaded="a", can_load=False)
    async with models_of(runtime) as models:
        async with models.hold("b", unheard):
            assert runtime.log == []
        brought = await models.load("b", LoadConfig(context_length=512), unheard)
        assert brought.status == "activated"
        assert brought.loaded.ignored == ("context_length",) and "b" in brought.loaded.workflow[0]
        assert (await models.load("a", LoadConfig(), unheard)).status == "already_loaded"
        with pytest.raises(ApiError) as refused:
            await models.unload("a")
        assert refused.value.code == "not_supported"


async def test_unload_waits_for_answers_and_who_comes_meanwhile_has_it_loaded_again() -> None:
    runtime, told = LoadableRuntime("a", loaded="a"), Told()
    async with models_of(runtime, told=told) as models:
        holder = Holder(models, "a")
        await holder.held()
        unload = asyncio.create_task(models.unload("a"))
        await steps()
        late = Holder(models, "a")
        await steps()
        assert runtime.log == [] and not late.has.is_set()
        await holder.leave()
        assert await unload == ("a", True)
        await late.held()
        assert runtime.log == ["unload a", "load a"] and told.of("unloaded") == [("a", "owner")]
        await late.leave()
        await models.unload("a")
        assert await models.unload("a") == ("a", False)


async def test_what_nobody_used_for_its_time_is_unloaded_and_what_is_used_stays() -> None:
    runtime, told = LoadableRuntime("a", "b", loaded="a"), Told()
    settings = {"a": {"idle_unload": 10.0, "together": ["b"]}}
    async with models_of(runtime, settings, told=told, idle_unload=100.0) as models:
        async with models.hold("b", unheard), models.hold("a", unheard):
            models.tick(0.0)
            models.tick(1000.0)
            await steps()
            assert sorted(runtime.present) == ["a", "b"]
        now = asyncio.get_running_loop().time()
        models.tick(now + 9)
        await steps()
        assert sorted(runtime.present) == ["a", "b"]
        models.tick(now + 11)
        await wait_until(lambda: runtime.present == ["b"])
        models.tick(now + 101)
        await wait_until(lambda: runtime.present == [])
        assert told.of("unloaded") == [("a", "idle"), ("b", "idle")]


async def test_a_model_under_another_name_and_its_adapter_keep_it_in_memory() -> None:
    """LM Studio lists a model that was loaded under a name of its own twice, vLLM an adapter beside its base."""
    for other in (ModelInfo("other", alias_of="a"), ModelInfo("other", part_of="a")):
        runtime, told = LoadableRuntime("a", "b", loaded="a", also=[other]), Told()
        async with models_of(runtime, told=told, idle_unload=10.0) as models:
            holder = Holder(models, "other")
            await holder.held()
            assert (models.users("a"), models.users("other")) == (1, 1)
            swap = Holder(models, "b")
            models.tick(asyncio.get_running_loop().time() + 1000)
            await steps()
            assert runtime.log == [], "it was in use"
            await holder.leave()
            await swap.held()
            assert runtime.log == ["unload a", "load b"] and told.of("unloaded") == [("a", "request")]
            await swap.leave()
            assert models.users("a") == 0


async def test_the_use_of_an_adapter_is_the_use_of_its_base() -> None:
    runtime = LoadableRuntime("a", loaded="a", also=[ModelInfo("adapter", part_of="a")])
    async with models_of(runtime, idle_unload=10.0) as models:
        clock = asyncio.get_running_loop().time
        models.tick(clock() - 60)
        async with models.hold("adapter", unheard):
            pass
        models.tick(clock() + 5)
        await steps()
        assert runtime.log == [], "the adapter has answered a moment ago"
        models.tick(clock() + 20)
        await wait_until(lambda: runtime.log == ["unload a"])
        async with models.hold("adapter", unheard):
            assert runtime.log == ["unload a", "load a"]


async def test_an_owner_who_loads_another_name_means_the_model(tmp_path: Path) -> None:
    """Other names are gone after a restart of the runtime, their model is not."""
    file = tmp_path / NAME
    runtime = LoadableRuntime("a", "b", loaded="a", also=[ModelInfo("other", alias_of="a")])
    async with models_of(runtime, kept=file) as models:
        assert (await models.load("other", LoadConfig(), unheard)).status == "already_loaded"
    runtime = LoadableRuntime("a", "b", loaded="b")
    async with models_of(runtime, kept=file):
        await wait_until(lambda: runtime.present == ["a"])


async def test_a_model_that_sleeps_wakes_by_itself_and_is_not_loaded() -> None:
    runtime, told = LoadableRuntime("a", "b", loaded="a"), Told()
    async with models_of(runtime, told=told) as models:
        runtime.set("a", "sleeping")
        async with models.hold("a", unheard):
            assert runtime.log == [] and told.of("load") == []
        async with models.hold("b", unheard):
            assert runtime.log == ["unload a", "load b"], "its place is taken while it sleeps"


async def test_what_is_done_outside_is_told_and_what_is_done_here_is_not_told_twice() -> None:
    runtime, told = LoadableRuntime("a", "b", "c", loaded="a"), Told()
    async with models_of(runtime, {"b": {"together": ["a"]}}, told=told) as models:
        models.changed()
        async with models.hold("b", unheard):
            pass
        assert [by for _, by in told.of("loaded")] == ["request"]
        runtime.set("a", "available")
        runtime.set("c", "loaded")
        assert told.of("unloaded") == [("a", "outside")]
        assert told.of("loaded") == [("b", "request"), ("c", "outside")]


async def test_names_mean_models_and_aliases_are_listed_beside_them() -> None:
    runtime = LoadableRuntime("a", "b", loaded="a")
    async with models_of(runtime, {"b": {"aliases": ["fast", "a"]}}) as models:
        assert [models.named(name) for name in (None, "default", "fast", "b", "a", "nobody")] == [
            "a", "a", "b", "b", "a", "nobody",
        ]  # fmt: skip
        listed = {model.id: model.alias_of for model in models.status().models}
        assert listed == {"a": "", "b": "", "fast": "b"}, "an alias never hides a model"


SEVEN = {
    "temperature": 0.5, "maxTokens": 99, "topP": 0.8, "topK": 5, "repeatPenalty": 1.1, "stopStrings": ["END"],
    "stream": True,
}  # fmt: skip


async def test_the_active_models_seven_parameters_go_before_the_settings_and_only_to_it(tmp_path: Path) -> None:
    runtime = LoadableRuntime("a", "b", loaded="a")
    settings = {
        "a": {"temperature": 0.1},
        "b": {"temperature": 0.1, "seed": None, "force": {"top_k": 7}, "strip": ["maxTokens", "seed"]},
    }
    settings["b"].pop("seed")
    async with models_of(runtime, settings, kept=tmp_path / NAME) as models:
        assert await models.activate("b", SEVEN) == "b"
        assert models.named(None) == "b" and models.status().models[0].id == "b"
        found = models.defaults("b")
        assert found.added == {
            "temperature": 0.5, "max_tokens": 99, "top_p": 0.8, "top_k": 5, "repeat_penalty": 1.1, "stop": ["END"],
        }  # fmt: skip
        assert found.forced == {"top_k": 7} and found.stripped == {"max_tokens", "seed"} and found.stream is True
        assert models.defaults("a").added == {"temperature": 0.1} and models.defaults("a").stream is None
        await models.activate("b", None)
        assert models.inference == SEVEN, "without new ones the parameters stay"
        with pytest.raises(ApiError) as unknown:
            await models.activate("nobody", None)
        assert unknown.value.code == "model_not_found"


async def test_a_restart_keeps_what_was_activated_loaded_and_configured(tmp_path: Path) -> None:
    file = tmp_path / NAME
    async with models_of(LoadableRuntime("a", "b", loaded="a"), kept=file) as models:
        await models.load("b", LoadConfig(context_length=512), unheard)
        await models.activate("b", {"temperature": 0.5})
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    runtime = LoadableRuntime("a", "b", loaded="a")
    async with models_of(runtime, kept=file) as models:
        await wait_until(lambda: runtime.present == ["b"])
        assert models.named(None) == "b" and models.defaults("b").added == {"temperature": 0.5}
        assert runtime.configs == [LoadConfig(context_length=512)]
        await models.unload("b")
    runtime = LoadableRuntime("a", "b", loaded="a")
    async with models_of(runtime, kept=file) as models:
        assert models.named(None) == "b"
        await steps()
        assert runtime.log == [], "what was unloaded is not loaded by a restart"


async def test_a_restart_loads_also_what_is_there_as_its_owner_had_it(tmp_path: Path) -> None:
    """Ollama forgets nothing that is in memory, but the node says with each request how it was loaded."""
    config = LoadConfig(cpu_threads=8)
    async with models_of(LoadableRuntime("a", loaded="a"), kept=tmp_path / NAME) as models:
        await models.load("a", config, unheard)
    runtime = LoadableRuntime("a", loaded="a")
    async with models_of(runtime, kept=tmp_path / NAME):
        await wait_until(lambda: runtime.configs == [config])


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"configs": 3}', b'{"inference": {"top": 1}}', b"\xff"])
async def test_a_spoilt_file_costs_what_it_held_and_no_start(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / NAME
    file.write_bytes(content)
    async with models_of(LoadableRuntime("a", loaded="a"), kept=file) as models:
        assert models.named(None) == "a"
        await models.activate("a", {})
    assert json.loads(file.read_text())["active"] == "a"


async def nothing() -> None:
    pass


async def test_yield_frees_memory_refuses_requests_and_resume_brings_both_back(tmp_path: Path) -> None:
    runtime, told = LoadableRuntime("a", "b", loaded="a"), Told()
    async with models_of(runtime, told=told, kept=tmp_path / NAME) as models:
        waiting = Holder(models, "b")
        await waiting.held()
        await waiting.leave()
        assert await models.give_up(nothing) == ["b"]
        assert runtime.present == [] and models.status().state == "unavailable"
        with pytest.raises(ApiError) as refused:
            async with models.hold("b", unheard):
                pass
        assert refused.value.code == "node_unavailable"
        with pytest.raises(ApiError, match="resume"):
            await models.load("a", LoadConfig(), unheard)
        assert await models.give_up(nothing) == []  # again is no mistake
        assert await models.resume(unheard) == ["b"]
        assert runtime.present == ["b"] and models.status().state == "ready"
        assert [event["kind"] for event in told.events if event["kind"] in ("yielded", "resumed")] == [
            "yielded", "resumed",
        ]  # fmt: skip


async def test_yield_ends_loads_under_way_and_tells_those_who_wait() -> None:
    runtime = LoadableRuntime("a", "b", loaded="a")
    runtime.gate.clear()
    async with models_of(runtime) as models:
        waiting = Holder(models, "b")
        await runtime.loading.wait()
        await models.give_up(nothing)
        with pytest.raises(ApiError) as refused:
            await waiting.task
        assert refused.value.code == "node_unavailable" and runtime.present == []


async def test_a_yielded_node_starts_without_touching_its_runtime(tmp_path: Path) -> None:
    async with models_of(LoadableRuntime("a", loaded="a"), kept=tmp_path / NAME) as models:
        await models.give_up(nothing)
    runtime = LoadableRuntime("a", "b", loaded="b")
    async with models_of(runtime, kept=tmp_path / NAME) as models:
        assert models.yielded and not runtime.started
        assert await models.resume(unheard) == ["a"]
        assert runtime.started
        await wait_until(lambda: runtime.present == ["a"])


async def test_nothing_comes_back_while_yielded_that_was_to_come_back_after_a_restart(tmp_path: Path) -> None:
    """The runtime was not there yet when its owner took the GPU back."""
    KeptFile(tmp_path / NAME).write(Kept(loaded=("b",)))
    runtime = LoadableRuntime("a", "b")
    come = runtime.go("unavailable")
    async with models_of(runtime, kept=tmp_path / NAME) as models:
        await steps()
        await models.give_up(nothing)
        assert runtime.stood_down, "nor what a runtime loads by itself"
        come()
        await steps()
        assert runtime.log == []
        assert await models.resume(unheard) == ["b"]


async def test_a_resume_that_waits_for_the_runtime_ends_with_the_next_yield() -> None:
    runtime = LoadableRuntime("a", "b", loaded="a")
    async with models_of(runtime) as models:
        await models.give_up(nothing)
        come = runtime.go("starting")
        resume = asyncio.create_task(models.resume(unheard))
        await steps()
        await models.give_up(nothing)
        come()
        with pytest.raises(ApiError) as refused:
            await resume
        assert refused.value.code == "node_unavailable" and runtime.log == ["unload a"]


async def test_an_owner_who_waits_to_load_it_otherwise_does_not_once_it_is_yielded() -> None:
    runtime = LoadableRuntime("a", "b")
    runtime.gate.clear()
    async with models_of(runtime) as models:
        loads = [
            asyncio.create_task(models.load("b", LoadConfig(context_length=tokens), unheard)) for tokens in (512, 1024)
        ]
        await runtime.loading.wait()
        await steps()
        await models.give_up(nothing)
        runtime.gate.set()
        ends = await asyncio.gather(*loads, return_exceptions=True)
        assert [isinstance(end, ApiError) and end.code for end in ends] == ["node_unavailable"] * 2
        assert runtime.log == ["load b"] and runtime.present == []


async def test_a_model_that_cannot_be_unloaded_keeps_no_other_in_memory() -> None:
    runtime = LoadableRuntime("a", "b", loaded="a")
    runtime.set("b", "loaded")
    runtime.stuck.add("a")
    async with models_of(runtime, {"a": {"together": ["b"]}}) as models:
        with pytest.raises(ApiError, match="unloaded"):
            await models.give_up(nothing)
        assert runtime.present == ["a"] and models.yielded


async def test_a_model_that_cannot_be_loaded_again_keeps_no_other_from_it(tmp_path: Path) -> None:
    KeptFile(tmp_path / NAME).write(Kept(loaded=("a", "b")))
    runtime = LoadableRuntime("a", "b", "c")
    runtime.broken.add("a")
    async with models_of(runtime, {"a": {"together": ["b"]}}, kept=tmp_path / NAME) as models:
        await wait_until(lambda: runtime.present == ["b"])
        await models.give_up(nothing)
        runtime.set("b", "available")
    async with models_of(runtime, {"a": {"together": ["b"]}}) as models:
        runtime.broken.clear()
        await models.load("a", LoadConfig(), unheard)
        await models.load("b", LoadConfig(), unheard)
        await models.give_up(nothing)
        runtime.broken.add("a")
        with pytest.raises(ApiError):
            await models.resume(unheard)
        assert runtime.present == ["b"]


async def test_what_shows_before_the_load_makes_nobody_leave() -> None:
    runtime, told = LoadableRuntime("a", "b", loaded="a"), Told()
    runtime.spoilt.add("b")
    async with models_of(runtime, told=told) as models:
        with pytest.raises(ApiError) as refused:
            async with models.hold("b", unheard):
                pass
        assert refused.value.code == "runtime_error" and "whole" not in refused.value.message
        assert runtime.log == [] and told.of("load_failed") == [("b", "request")]


async def test_what_an_owner_tried_in_vain_says_nothing_of_how_requests_load_it() -> None:
    runtime = LoadableRuntime("a", "b", loaded="a")
    runtime.broken.add("b")
    async with models_of(runtime) as models:
        with pytest.raises(ApiError):
            await models.load("b", LoadConfig(context_length=1_000_000), unheard)
        runtime.broken.clear()
        async with models.hold("b", unheard):
            assert runtime.present == ["b"]


async def test_who_asks_for_a_model_that_failed_joins_its_owners_next_try() -> None:
    runtime = LoadableRuntime("a", "b", loaded="a")
    runtime.broken.add("b")
    async with models_of(runtime) as models:
        with pytest.raises(ApiError):
            async with models.hold("b", unheard):
                pass
        runtime.broken.clear()
        runtime.gate.clear()
        runtime.loading.clear()
        owner = asyncio.create_task(models.load("b", LoadConfig(), unheard))
        await runtime.loading.wait()
        holder = Holder(models, "b")
        await steps()
        runtime.gate.set()
        await holder.held()
        await owner
        await holder.leave()


async def test_what_made_room_comes_back_when_the_next_one_does_not_leave() -> None:
    runtime, told = LoadableRuntime("a", "b", "c", loaded="a"), Told()
    runtime.set("b", "loaded")
    runtime.stuck.add("b")
    async with models_of(runtime, {"a": {"together": ["b"]}}, told=told) as models:
        with pytest.raises(ApiError):
            async with models.hold("c", unheard):
                pass
        assert sorted(runtime.present) == ["a", "b"] and told.of("loaded") == [("a", "request")]


async def test_an_unloaded_default_model_stays_out_after_a_restart_and_the_others_come_back(tmp_path: Path) -> None:
    file = KeptFile(tmp_path / NAME)
    runtime = LoadableRuntime("a", "b", loaded="a")
    async with models_of(runtime, {"a": {"together": ["b"]}}, kept=tmp_path / NAME) as models:
        async with models.hold("b", unheard):
            pass
        await models.unload("b")
        assert file.read().loaded == ("a",)
        await models.unload("a")
        assert file.read().loaded == () and file.read().at_start == (), "not the default either"


async def test_a_model_that_was_pulled_this_moment_is_looked_for() -> None:
    runtime = LoadableRuntime("a", loaded="a")
    runtime.pulled.add("b")
    async with models_of(runtime) as models:
        assert (await models.load("b", LoadConfig(), unheard)).status == "loaded"


class Disk:
    """What is kept is written once ``go`` is set; ``writing`` says that it wants to be."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.writing = threading.Event()
        self.go = threading.Event()
        write = KeptFile.write

        def slowly(file: KeptFile, kept: Kept) -> None:
            self.writing.set()
            assert self.go.wait(10)
            write(file, kept)

        monkeypatch.setattr(KeptFile, "write", slowly)


async def test_an_act_goes_on_when_its_caller_leaves_while_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = KeptFile(tmp_path / NAME)
    file.write(Kept(loaded=("a",), yielded=True))
    runtime = LoadableRuntime("a", "b")
    async with models_of(runtime, kept=tmp_path / NAME) as models:
        disk = Disk(monkeypatch)
        resume = asyncio.create_task(models.resume(unheard))
        await asyncio.to_thread(disk.writing.wait, 10)
        resume.cancel()
        disk.go.set()
        await wait_until(lambda: runtime.started)
        assert not file.read().yielded and not models.yielded


async def test_a_load_that_ends_while_its_node_is_yielded_loses_nothing_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = LoadableRuntime("a", "b", loaded="a")
    runtime.gate.clear()
    async with models_of(runtime, {"a": {"together": ["b"]}}, kept=tmp_path / NAME) as models:
        load = asyncio.create_task(models.load("b", LoadConfig(), unheard))
        await runtime.loading.wait()
        disk = Disk(monkeypatch)
        giving = asyncio.create_task(models.give_up(nothing))
        await asyncio.to_thread(disk.writing.wait, 10)
        runtime.gate.set()
        await steps()
        disk.go.set()
        await giving
        await asyncio.gather(load, return_exceptions=True)
        assert runtime.present == [] and KeptFile(tmp_path / NAME).read().loaded == ("a", "b")


async def test_a_load_that_a_yield_ended_is_done_by_resume(tmp_path: Path) -> None:
    """Its owner wanted it there, and loaded so."""
    config = LoadConfig(context_length=512)
    runtime = LoadableRuntime("a", "b", loaded="a")
    runtime.gate.clear()
    async with models_of(runtime, kept=tmp_path / NAME) as models:
        load = asyncio.create_task(models.load("b", config, unheard))
        await runtime.loading.wait()
        await models.give_up(nothing)
        with pytest.raises(ApiError):
            await load
        runtime.gate.set()
        assert await models.resume(unheard) == ["b"]
        assert runtime.present == ["b"] and runtime.configs[-1] == config


async def test_of_a_load_that_failed_nothing_is_kept(tmp_path: Path) -> None:
    runtime = LoadableRuntime("a", "b", loaded="a")
    runtime.broken.add("b")
    async with models_of(runtime, kept=tmp_path / NAME) as models:
        with pytest.raises(ApiError):
            await models.load("b", LoadConfig(context_length=512), unheard)
        assert KeptFile(tmp_path / NAME).read() == Kept()


async def test_where_all_that_was_loaded_is_gone_the_default_comes_in_its_place(tmp_path: Path) -> None:
    KeptFile(tmp_path / NAME).write(Kept(active="demo", loaded=("demo", "old")))
    runtime = LoadableRuntime("alpha", "beta")
    with logged() as lines:
        async with models_of(runtime, kept=tmp_path / NAME) as models:
            runtime.set("beta", "available")  # its first look
            await wait_until(lambda: runtime.present == ["alpha"])
            assert models.named(None) == "alpha"
            assert len(lines) == 1 and "demo, old" in lines[0] and "alpha" in lines[0]
            await models.unload("alpha")
            assert KeptFile(tmp_path / NAME).read().loaded == ()


async def test_what_is_left_of_what_was_loaded_comes_back_and_the_rest_is_named(tmp_path: Path) -> None:
    KeptFile(tmp_path / NAME).write(Kept(loaded=("b", "demo")))
    runtime = LoadableRuntime("a", "b")
    with logged() as lines:
        async with models_of(runtime, kept=tmp_path / NAME):
            runtime.set("a", "available")
            await wait_until(lambda: runtime.present == ["b"])
    assert runtime.log == ["load b"] and len(lines) == 1 and "demo" in lines[0]


async def test_names_in_the_settings_that_are_no_models_are_told_once_the_models_are_known() -> None:
    runtime = LoadableRuntime("alpha", "beta", loaded="alpha")
    settings = {"alhpa": {"temperature": 0.5}, "beta": {"together": ["alpha", "gamma"]}}
    with logged() as lines:
        come = runtime.go("starting")
        async with models_of(runtime, settings) as models:
            models.changed()
            assert lines == [], "what there is is not known yet"
            come()
            models.changed()
        async with models_of(LoadableRuntime("alpha", "beta"), {"beta": {"together": ["alpha"]}}) as models:
            models.changed()
    assert len(lines) == 1, lines
    assert all(name in lines[0] for name in ("[node.models.alhpa]", "gamma", "alpha, beta"))


async def test_a_context_that_the_model_does_not_have_is_not_promised() -> None:
    runtime = LoadableRuntime("a", also=[ModelInfo("b", 2048, state="available", max_context=4096)])
    async with models_of(runtime) as models:
        await models.load("b", LoadConfig(context_length=1_000_000), unheard)
        runtime.set("b", "available")
        assert [model.context for model in models.status().models if model.id == "b"] == [4096]


async def test_why_a_file_is_no_model_is_told_its_owner() -> None:
    runtime = LoadableRuntime("a", loaded="a")
    runtime.spoilt.add("half")
    async with models_of(runtime) as models:
        with pytest.raises(ApiError, match="not whole"):
            await models.load("half", LoadConfig(), unheard)


async def test_a_hundred_requests_for_three_models_are_all_served_and_two_are_never_in_memory() -> None:
    runtime = LoadableRuntime("a", "b", "c", loaded="a")
    served = []
    with mock.patch.object(memory, "PATIENCE", 0.001):
        async with models_of(runtime) as models:

            async def request(index: int) -> None:
                model = "abc"[index % 3]
                async with models.hold(model, unheard):
                    assert runtime.present == [model]
                    await asyncio.sleep(0)
                    assert runtime.present == [model]
                served.append(index)

            async with asyncio.timeout(10):
                await asyncio.gather(*(request(index) for index in range(100)))
    assert sorted(served) == list(range(100)) and runtime.most == 1


async def test_leaving_in_the_moment_of_the_load_leaves_nobody_behind() -> None:
    """Cancelled at every step of its way in turn, a request never stays counted as one that uses the model."""
    for step in range(12):
        runtime = LoadableRuntime("a", "b", loaded="a")
        async with models_of(runtime) as models:
            holder = Holder(models, "b")
            for _ in range(step):
                await asyncio.sleep(0)
            holder.task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await holder.task
            await steps()
            assert models.users("b") == 0
            async with asyncio.timeout(5), models.hold("a", unheard):
                pass
