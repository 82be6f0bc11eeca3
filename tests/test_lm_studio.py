"""LM Studio: what is read from its lists, and that its loads, which it never checks itself, make one instance."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from node.runtime import Inference, LoadConfig, ModelInfo
from node.runtimes.lms import Lms
from node.runtimes.server import ServerRuntime
from shared.contract.errors import ApiError
from tests.fake_lm_studio import FakeLMStudio
from tests.fake_scripts import event, text
from tests.pair import Pair, question, running_pair
from tests.runtime_support import REQUEST, ask, is_ready, is_unavailable, read_all, running, said
from tests.waiting import wait_until


def unheard(_: float | None) -> None:
    """For loads whose progress nobody watches."""


@pytest.fixture(autouse=True)
def no_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test finds the command of the machine it runs on."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("HOME", str(tmp_path))


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def put_command(folder: Path, script: str = "") -> Path:
    """A command ``lms`` where LM Studio installs it, which writes down how it was called."""
    place = folder / ".lmstudio" / "bin" / "lms"
    place.parent.mkdir(parents=True)
    place.write_text(f'#!/bin/sh\necho "$@" >> {folder}/called\n{script}\n')
    place.chmod(0o755)
    return folder / "called"


async def test_its_models_are_named_by_their_keys_with_what_it_tells_of_them() -> None:
    async with FakeLMStudio("qwen", "gemma", embedding=["embed"], seeing=["gemma"]) as studio:
        studio.open("gemma", context=8192, parallel=3)
        async with running(ServerRuntime(studio.url)) as until:
            status = await until(is_ready)
    assert status.default_model == "gemma"
    assert status.model("gemma") == ModelInfo(
        "gemma", 8192, state="loaded", slots=3, vision=True, max_context=32768, size=1000
    )
    assert status.model("qwen") == ModelInfo("qwen", 0, state="available", slots=4, max_context=32768, size=1000)
    embed = status.model("embed")
    assert embed is not None and embed.kind == "embedding"


async def test_a_model_loaded_under_another_name_answers_to_its_key_too() -> None:
    """The key keeps its meaning: named as it is, LM Studio would load it once more."""
    async with FakeLMStudio("qwen", "gemma") as studio:
        studio.open("qwen", identifier="mine", context=2048)
        async with running(runtime := ServerRuntime(studio.url)) as until:
            status = await until(is_ready)
            assert [(model.id, model.alias_of) for model in status.models if model.state == "loaded"] == [
                ("qwen", ""),
                ("mine", "qwen"),
            ]
            for name in ("qwen", "mine"):
                assert said(await read_all(runtime, ask(name))) == text(3)
    assert [exchange.json["model"] for exchange in studio.chats] == ["mine", "mine"]
    assert studio.of("qwen") == ["mine"]


async def test_with_nothing_loaded_it_is_not_ready_and_a_load_mends_that() -> None:
    async with FakeLMStudio("qwen", "gemma") as studio, running(runtime := ServerRuntime(studio.url)) as until:
        status = await until(is_unavailable)
        assert "hearthlink model load qwen" in status.reason and status.model("gemma") is not None
        await runtime.load("gemma", LoadConfig(), unheard)
        assert runtime.status().default_model == "gemma"


async def test_what_the_owner_named_is_loaded_when_it_is_asked_for() -> None:
    async with (
        FakeLMStudio("qwen", "gemma") as studio,
        running(runtime := ServerRuntime(studio.url, default_model="gemma")) as until,
    ):
        assert (await until(is_ready)).default_model == "gemma" and studio.of("gemma") == []
        assert said(await read_all(runtime, ask("gemma"))) == text(3)
        assert studio.of("gemma") == ["gemma"]


async def test_the_default_stays_when_it_was_unloaded_for_idling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.runtimes.server.READY_POLL_SECONDS", 0.05)
    async with FakeLMStudio("gemma", "qwen", loaded=["qwen"]) as studio, running(ServerRuntime(studio.url)) as until:
        await until(is_ready)
        studio.eject("qwen")
        status = await until(lambda status: all(model.state == "available" for model in status.models))
        assert (status.state, status.default_model) == ("ready", "qwen")


async def test_a_load_gets_the_context_and_says_what_there_is_no_way_for() -> None:
    async with FakeLMStudio("qwen", loaded=["qwen"]) as studio, running(runtime := ServerRuntime(studio.url)) as until:
        await until(is_ready)
        config = LoadConfig(context_length=8192, gpu_ratio=0.5, cpu_threads=4)
        loaded = await runtime.load("qwen", config, unheard)
        assert loaded.applied == ("context_length",)
        assert loaded.ignored == ("gpu_ratio", "cpu_threads")
        assert "My Models" in loaded.workflow[0] and "lms" in loaded.workflow[-1]
        found = runtime.status().model("qwen")
        assert found is not None and found.context == 8192
    assert studio.of("qwen") == ["qwen"] and [body["model"] for body in studio.loads] == ["qwen"]


async def test_a_model_that_is_there_as_asked_for_stays_as_it_is() -> None:
    async with FakeLMStudio("qwen", loaded=["qwen"]) as studio, running(runtime := ServerRuntime(studio.url)) as until:
        await until(is_ready)
        for config in (LoadConfig(), LoadConfig(context_length=4096)):
            await runtime.load("qwen", config, unheard)
    assert studio.loads == [] and studio.of("qwen") == ["qwen"]


async def test_two_loads_at_once_make_one_instance() -> None:
    """runtimes §1.3: LM Studio itself would make two."""
    async with FakeLMStudio("qwen", "gemma", loaded=["gemma"]) as studio:
        async with running(runtime := ServerRuntime(studio.url)) as until:
            await until(is_ready)
            studio.gate.clear()
            both = [asyncio.create_task(runtime.load("qwen", LoadConfig(), unheard)) for _ in range(2)]
            await studio.until(lambda: bool(studio.loads))
            studio.gate.set()
            await asyncio.gather(*both)
        assert studio.of("qwen") == ["qwen"] and len(studio.loads) == 1


async def test_first_requests_for_a_model_that_is_not_there_make_one_instance() -> None:
    """runtimes §1.3: with just-in-time loading each of them would have its own."""
    async with FakeLMStudio("qwen", "gemma", loaded=["gemma"]) as studio:
        async with running(runtime := ServerRuntime(studio.url)) as until:
            await until(is_ready)
            studio.gate.clear()
            answers = [asyncio.create_task(read_all(runtime, ask("qwen"))) for _ in range(3)]
            await studio.until(lambda: bool(studio.loads))
            studio.gate.set()
            assert {said(answer) for answer in await asyncio.gather(*answers)} == {text(3)}
        assert studio.of("qwen") == ["qwen"]


async def test_a_load_that_fails_brings_back_what_had_to_leave() -> None:
    async with FakeLMStudio("qwen") as studio, running(runtime := ServerRuntime(studio.url)) as until:
        studio.open("qwen", context=2048)
        await until(is_ready)
        studio.refused = 1
        with pytest.raises(ApiError, match="no room in memory") as caught:
            await runtime.load("qwen", LoadConfig(context_length=32768), unheard)
        assert caught.value.code == "runtime_error"
        assert studio.instances["qwen"].context == 2048
        assert is_ready(runtime.status()) and said(await read_all(runtime, ask("qwen"))) == text(3)


async def test_unloading_a_model_takes_all_its_instances_and_a_name_one() -> None:
    async with (
        FakeLMStudio("qwen", "gemma", loaded=["qwen", "qwen", "qwen", "gemma"]) as studio,
        running(runtime := ServerRuntime(studio.url)) as until,
    ):
        await until(is_ready)
        await runtime.unload("qwen:2")
        assert studio.of("qwen") == ["qwen", "qwen:3"]
        await runtime.unload("qwen")
        assert studio.of("qwen") == []
        await runtime.unload("qwen")  # no mistake
        found = runtime.status().model("qwen")
        assert found is not None and found.state == "available"


async def test_what_the_person_does_in_the_app_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.runtimes.server.READY_POLL_SECONDS", 0.05)
    async with FakeLMStudio("qwen", "gemma", loaded=["qwen"]) as studio, running(ServerRuntime(studio.url)) as until:
        await until(is_ready)
        studio.eject("qwen")
        studio.open("gemma", context=1024)

        def seen(status: Any) -> bool:
            return [model.id for model in status.models if model.state == "loaded"] == ["gemma"]

        assert (await until(seen)).model("gemma").context == 1024


async def test_an_answer_of_another_model_is_no_answer() -> None:
    """runtimes §1.4: a name that matches nothing is served by whatever is loaded; here it left between look and
    question."""
    async with (
        FakeLMStudio("qwen", "gemma", loaded=["gemma", "qwen"]) as studio,
        running(runtime := ServerRuntime(studio.url)) as until,
    ):
        await until(is_ready)
        studio.jit = False
        studio.leaving = "qwen"
        with pytest.raises(ApiError) as caught:
            await read_all(runtime, ask("qwen"))
        assert caught.value.code == "model_not_found"
        await studio.idle()


async def test_a_model_whose_name_it_shortens_is_heard() -> None:
    async def shortened(exchange: Any) -> None:
        await exchange.start_stream()
        for size in (7, 1000):  # the name is split over two pieces
            whole = event({"model": "gemma-3", "choices": [{"index": 0, "delta": {"content": "hi"}}]})
            await exchange.send(whole[:size] if size == 7 else whole[7:])
        await exchange.end_stream()

    async with FakeLMStudio("google/gemma-3@q4", "qwen", loaded=["google/gemma-3@q4", "qwen"]) as studio:
        studio.script = shortened
        async with running(runtime := ServerRuntime(studio.url)) as until:
            await until(is_ready)
            assert said(await read_all(runtime, ask("google/gemma-3@q4"))) == "hi"


async def test_a_format_that_it_does_not_know_is_put_in_its_own_words() -> None:
    """runtimes §0.2: JSON with a schema only."""
    async with FakeLMStudio("qwen", loaded=["qwen"]) as studio, running(runtime := ServerRuntime(studio.url)) as until:
        await until(is_ready)
        await read_all(runtime, ask("qwen", response_format={"type": "json_object"}))
    assert studio.chats[0].json["response_format"]["type"] == "json_schema"


async def test_embeddings_have_their_model_loaded_first() -> None:
    async with FakeLMStudio("qwen", loaded=["qwen"], embedding=["embed"]) as studio:
        async with running(runtime := ServerRuntime(studio.url)) as until:
            await until(is_ready)
            answer = await runtime.ask(Inference("embeddings", "embed", {"input": ["a"]}), REQUEST)
            assert answer["data"][0]["embedding"] == [0.5, 0.25]
        assert studio.of("embed") == ["embed"]


async def test_its_key_is_asked_for_in_a_sentence() -> None:
    async with FakeLMStudio("qwen", key="secret") as studio, running(ServerRuntime(studio.url)) as until:
        assert "node.runtime.key" in (await until(is_unavailable)).reason


# -- through edge and node --------------------------------------------------------------------------------------------


async def test_loads_and_requests_of_many_callers_make_one_instance() -> None:
    async with FakeLMStudio("qwen", "gemma", loaded=["gemma"]) as studio, running_pair(studio.url) as pair:
        key = await pair.new_key(scopes=("chat", "admin"))
        order = {"modelKey": "qwen", "loadConfig": {"contextLength": 8192, "gpu": {"layers": 20}}}

        async def load() -> dict[str, Any]:
            async with pair.post("/admin/models/load", order, key=key) as response:
                assert response.status == 200, await response.text()
                return await response.json()

        async def chat() -> str:
            body = {"model": "qwen", "messages": [{"role": "user", "content": "hi"}]}
            async with pair.post("/v1/chat/completions", body) as response:
                return (await response.json())["choices"][0]["message"]["content"]

        studio.gate.clear()
        tasks: list[asyncio.Task[Any]] = [asyncio.create_task(load()) for _ in range(2)]
        await studio.until(lambda: bool(studio.loads))
        tasks += [asyncio.create_task(chat()) for _ in range(3)]
        studio.gate.set()
        first, second, *said_there = await asyncio.gather(*tasks)
        assert said_there == [text(3)] * 3
        assert studio.of("qwen") == ["qwen"] and len(studio.loads) == 1
        for answer in (first, second):
            assert (answer["applied"], answer["ignored"]) == (["contextLength"], ["gpu.layers"])
            assert "My Models" in answer["workflow"]["step1"]
        await pair.idle()


async def chat_with(pair: Pair, model: str) -> int:
    async with pair.post("/v1/chat/completions", question(model=model)) as response:
        await response.read()
        return response.status


async def test_a_model_that_left_is_loaded_once_for_all_who_come_then() -> None:
    """Ejected, or its time is over, a moment ago: runtimes §1.3, each of the first requests would have its own."""
    async with FakeLMStudio("qwen", loaded=["qwen"]) as studio, running_pair(studio.url) as pair:
        studio.eject("qwen")
        studio.gate.clear()
        answers = [asyncio.create_task(chat_with(pair, "qwen")) for _ in range(4)]
        await studio.until(lambda: bool(studio.loads))
        studio.gate.set()
        assert await asyncio.gather(*answers) == [200] * 4
        assert studio.of("qwen") == ["qwen"] and len(studio.loads) == 1


async def test_a_name_that_left_answers_from_its_model() -> None:
    async with FakeLMStudio("qwen", "gemma", loaded=["gemma"]) as studio:
        studio.open("qwen", identifier="mine")
        async with running_pair(studio.url) as pair:
            studio.eject("mine")
            assert await chat_with(pair, "mine") == 200
            assert studio.of("qwen") == ["qwen"]


async def test_a_swap_waits_for_answers_under_the_other_name_and_both_share_its_slots() -> None:
    async with FakeLMStudio("qwen", "gemma") as studio:
        studio.open("qwen", identifier="mine", parallel=2)
        async with running_pair(studio.url) as pair:
            turns = pair.node.services.turns
            assert turns.lanes() == {"qwen": (2, 0, 0)} and turns.slots == 2
            studio.silent = True
            answers = [asyncio.create_task(chat_with(pair, name)) for name in ("mine", "qwen", "mine")]
            await wait_until(lambda: turns.lanes() == {"qwen": (2, 2, 1)})
            swap = asyncio.create_task(chat_with(pair, "gemma"))
            await wait_until(lambda: turns.running == 3)
            studio.speak()
            assert await asyncio.gather(*answers, swap) == [200] * 4
            assert len(studio.instances) == 1


async def test_who_names_a_model_on_disk_waits_in_its_own_lane() -> None:
    """Else a second one opens beside it once it is in memory, and more run at once than it has slots."""
    async with FakeLMStudio("qwen", "gemma", loaded=["gemma"]) as studio, running_pair(studio.url) as pair:
        turns = pair.node.services.turns
        studio.gate.clear()
        answers = [asyncio.create_task(chat_with(pair, "qwen")) for _ in range(6)]
        await wait_until(lambda: (turns.running, turns.queued) == (4, 2))
        assert turns.lanes()["qwen"] == (4, 4, 2) and "" not in turns.lanes()
        studio.gate.set()
        assert await asyncio.gather(*answers) == [200] * 6


# -- the command ------------------------------------------------------------------------------------------------------


async def test_the_share_on_the_gpu_is_set_by_the_command(tmp_path: Path) -> None:
    go = tmp_path / "go"
    os.mkfifo(go)
    called = put_command(tmp_path, f"read line < {go}")
    async with (
        FakeLMStudio("qwen", "gemma", loaded=["gemma"]) as studio,
        running(runtime := ServerRuntime(studio.url)) as until,
    ):
        await until(is_ready)
        loading = asyncio.create_task(runtime.load("qwen", LoadConfig(context_length=512, gpu_ratio=0.5), unheard))
        await wait_until(called.exists)
        studio.open("qwen", context=512)  # what the command does, which cannot reach the fake
        await asyncio.to_thread(go.write_text, "\n")
        loaded = await loading
        assert (loaded.applied, loaded.ignored) == (("context_length", "gpu_ratio"), ())
        again = await runtime.load("qwen", LoadConfig(gpu_ratio=0.5), unheard)
        assert again.applied == ("gpu_ratio",)
    assert called.read_text() == "load qwen --gpu 0.5 --context-length 512 --identifier qwen --yes\n"
    assert studio.loads == []


async def test_a_command_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    put_command(tmp_path, "exit 3")
    async with FakeLMStudio("qwen", loaded=["qwen"]) as studio, running(runtime := ServerRuntime(studio.url)) as until:
        await until(is_ready)
        with pytest.raises(ApiError, match="exit status 3"):
            await runtime.load("qwen", LoadConfig(gpu_ratio=1.0), unheard)
        assert studio.of("qwen") == ["qwen"]


async def test_a_command_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "lms"
    place.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 60\n")
    place.chmod(0o755)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    task = asyncio.create_task(Lms(place).load("qwen", None, 0.5, 60.0))
    await wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    pid = int((tmp_path / "pid").read_text())
    await wait_until(lambda: not is_running(pid))  # cancelled in the moment of its start it ends a moment later


@pytest.mark.parametrize("url", ["http://192.168.1.4:1234", "http://studio.tailnet.ts.net:1234"])
def test_the_command_is_of_no_use_for_another_machine(url: str, tmp_path: Path) -> None:
    put_command(tmp_path)
    assert Lms.beside(url) is None
    assert Lms.beside("http://127.0.0.1:1234") is not None
