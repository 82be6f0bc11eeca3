"""Several models in the embedded runtime, with the real llama.cpp: loaded, unloaded, swapped, and when that fails."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from node.models.models import Models
from node.runtime import Inference, LoadConfig, RuntimeStatus
from node.runtimes import embedded
from node.runtimes.embedded import EmbeddedRuntime
from node.runtimes.gguf import read_header
from node.runtimes.llama_order import Habits
from node.runtimes.llama_process import COMMAND, resident
from shared.contract.errors import ApiError
from shared.settings_models import ModelSettings
from tests.command_line import descendants
from tests.images import RED_SQUARE
from tests.logged import logged
from tests.model_files import write_projector
from tests.runtime_support import DEMO, REQUEST, ask, is_ready, is_unavailable, poll, read_all, running, said

MODELS = {"vectors": ModelSettings(pooling="mean"), "judge": ModelSettings(pooling="rank", context=256, slots=1)}
PLAIN = LoadConfig()
USAGE = re.compile(rb'"prompt_tokens":(\d+)')


@pytest.fixture(autouse=True)
def patient_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp's threads wait for each other spinning, and stand still when other tests want the cores too."""
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two models that chat, one that makes embeddings, one that ranks, and one whose last weights are cut."""
    for name in ("first", "second", "vectors", "judge"):
        (tmp_path / f"{name}.gguf").symlink_to(DEMO)
    (tmp_path / "cut.gguf").write_bytes(DEMO.read_bytes()[:-70_000])
    return tmp_path


@asynccontextmanager
async def loaded(folder: Path, **options: Any) -> AsyncIterator[EmbeddedRuntime]:
    """``first`` is in memory."""
    runtime = EmbeddedRuntime(folder / "first.gguf", folder=folder, habits=Habits(slots=2, models=MODELS), **options)
    async with running(runtime) as until:
        await until(is_ready)
        yield runtime


def states(runtime: EmbeddedRuntime) -> dict[str, str]:
    return {model.id: model.state for model in runtime.status().models if model.state != "available"}


def deaf(progress: float | None) -> None:
    """Who loads and does not want to know how far it is."""


def children() -> set[int]:
    """Processes that hold a model."""
    return {pid for pid, command in descendants(os.getpid()).items() if COMMAND[-1] in command}


async def refused(runtime: EmbeddedRuntime, model: str, config: LoadConfig = PLAIN) -> ApiError:
    with pytest.raises(ApiError) as error:
        await runtime.load(model, config, deaf)
    return error.value


async def test_the_folder_is_what_can_be_named_and_the_default_is_in_memory(folder: Path) -> None:
    async with loaded(folder) as runtime:
        status = runtime.status()
        assert [model.id for model in status.models] == ["first", "cut", "judge", "second", "vectors"]
        assert (status.default_model, states(runtime)) == ("first", {"first": "loaded"})
        assert {model.id: model.kind for model in status.models if model.kind != "chat"} == {
            "judge": "rerank",
            "vectors": "embedding",
        }
        judge = status.model("judge")
        assert judge is not None and (judge.context, judge.slots, judge.max_context) == (256, 1, 1024)
        assert status.apis == {"chat", "completions", "responses", "messages", "embeddings", "rerank"}
        assert runtime.can_load and not runtime.evicts


async def test_a_model_is_loaded_beside_another_and_both_answer(folder: Path) -> None:
    async with loaded(folder) as runtime:
        heard: list[float | None] = []
        assert (await runtime.load("second", LoadConfig(context_length=512), heard.append)).applied == (
            "context_length",
        )
        assert heard, "there is something to tell from the beginning"
        second = runtime.status().model("second")
        assert second is not None and second.context == 512
        assert states(runtime) == {"first": "loaded", "second": "loaded"}
        for model in ("first", "second"):
            raw = await read_all(runtime, ask(model, max_tokens=8, temperature=0.0))
            assert said(raw) and f'"model":"{model}"'.encode() in raw


async def test_what_is_unloaded_leaves_no_process_and_no_refusal(folder: Path) -> None:
    """The node stays ready: what is named is loaded. To ask for a model that is not in memory is a caller's mistake."""
    async with loaded(folder) as runtime:
        pid = runtime.pid
        assert pid is not None
        await runtime.unload("first")
        await runtime.unload("first")
        assert (runtime.pid, states(runtime), runtime.status().state) == (None, {}, "ready")
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
        with pytest.raises(ApiError) as error:
            await read_all(runtime, ask("first"))
        assert error.value.code == "model_loading"
        await runtime.load("first", PLAIN, deaf)
        assert b"[DONE]" in await read_all(runtime, ask("first", max_tokens=4))


async def test_to_load_what_is_there_changes_nothing(folder: Path) -> None:
    """The same configuration, or none, leaves the process as it is; two loads at once make one process."""
    async with loaded(folder) as runtime:
        pid = runtime.pid
        await runtime.load("first", PLAIN, deaf)
        assert runtime.pid == pid
        await runtime.load("second", LoadConfig(context_length=512), deaf)
        second = runtime.instance("second").pid
        for config in (PLAIN, LoadConfig(context_length=512)):
            assert (await runtime.load("second", config, deaf)).ignored == ()
            assert runtime.instance("second").pid == second
        await runtime.unload("second")
        await asyncio.gather(*(runtime.load("second", PLAIN, deaf) for _ in range(3)))
        assert states(runtime)["second"] == "loaded"
        assert await asyncio.to_thread(children) == {runtime.pid, runtime.instance("second").pid}


async def test_another_configuration_loads_it_anew(folder: Path) -> None:
    async with loaded(folder) as runtime:
        pid = runtime.pid
        await runtime.load("first", LoadConfig(context_length=512), deaf)
        slots: Any = await runtime.query("/slots")
        assert runtime.pid != pid and [slot["n_ctx"] for slot in slots] == [512, 512]


async def test_while_one_model_makes_room_for_another_the_node_is_ready(folder: Path) -> None:
    """Those who queued are not refused, and edges need not look for another node."""
    runtime = EmbeddedRuntime(folder / "first.gguf", folder=folder)
    seen: list[RuntimeStatus] = []
    await runtime.start(lambda: seen.append(runtime.status()))
    try:
        await poll(lambda: runtime.status().state == "ready")
        seen.clear()
        await runtime.unload("first")
        await runtime.load("second", PLAIN, deaf)
        assert {status.state for status in seen} == {"ready"}
        assert ["loading"] in [[model.state for model in status.models if model.id == "second"] for status in seen]
        assert states(runtime) == {"second": "loaded"}
    finally:
        await runtime.close()


# -- what fails -------------------------------------------------------------------------------------------------------


async def test_a_load_that_fails_leaves_the_others(folder: Path) -> None:
    async with loaded(folder) as runtime:
        error = await refused(runtime, "cut")
        assert error.code == "runtime_error" and "bytes are missing" in error.message
        assert str(folder) not in error.message and "started again" not in error.message
        assert (await checked(runtime, "cut")).message == error.message, "known before anything makes room for it"
        assert (await refused(runtime, "none")).code == "model_not_found"
        assert states(runtime) == {"first": "loaded"}
        assert b"[DONE]" in await read_all(runtime, ask("first", max_tokens=4))


async def checked(runtime: EmbeddedRuntime, model: str) -> ApiError:
    with pytest.raises(ApiError) as error:
        await runtime.check(model)
    return error.value


async def test_a_file_that_became_none_is_refused_before_anything_stops(folder: Path) -> None:
    async with loaded(folder) as runtime:
        pid = runtime.pid
        (folder / "first.gguf").unlink()
        error = await refused(runtime, "first", LoadConfig(context_length=200))
        assert "There is no model file" in error.message and runtime.pid == pid
        assert b"[DONE]" in await read_all(runtime, ask("first", max_tokens=4))


# The real child, but one that cannot load a context of 200 tokens.
PICKY = """
import os, sys
from node.runtimes import llama_child
configure = llama_child.configure
def picky(params, order, batch):
    if order.context == 200:
        raise AttributeError("no 200")
    configure(params, order, batch)
llama_child.configure = picky
llama_child.main()
"""


async def test_a_model_that_cannot_be_loaded_anew_comes_back_as_it_was(folder: Path) -> None:
    async with loaded(folder, command=(COMMAND[0], "-c", PICKY)) as runtime:
        assert "no 200" in (await refused(runtime, "first", LoadConfig(context_length=200))).message
        assert states(runtime) == {"first": "loaded"}
        assert b"[DONE]" in await read_all(runtime, ask("first", max_tokens=4))
        slots: Any = await runtime.query("/slots")
        assert slots[0]["n_ctx"] == 1024


async def test_a_killed_model_comes_back_while_the_other_serves(folder: Path) -> None:
    async with loaded(folder) as runtime:
        await runtime.load("second", PLAIN, deaf)
        instance = runtime.instance("second")
        killed = instance.pid
        assert killed is not None
        os.kill(killed, signal.SIGKILL)
        await poll(lambda: instance.pid != killed)
        assert runtime.status().state == "ready"
        await runtime.load("second", PLAIN, deaf)
        assert states(runtime) == {"first": "loaded", "second": "loaded"}


async def test_a_default_that_cannot_be_loaded_makes_way_for_another(folder: Path) -> None:
    """Requests for the others need not wait for it, even before one of them is in memory."""
    runtime = EmbeddedRuntime(folder / "cut.gguf", folder=folder)
    async with running(runtime) as until:
        await until(is_ready)
        assert states(runtime) == {"cut": "loading"}, "it is tried again"
        await runtime.load("second", PLAIN, deaf)
        assert (runtime.status().state, states(runtime)) == ("ready", {"second": "loaded"})


async def test_a_model_that_died_stays_away_when_its_owner_unloads_it(folder: Path) -> None:
    """Between its end and its next start it is unloaded like any other."""
    async with loaded(folder) as runtime:
        models = Models(runtime)
        pid = runtime.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await poll(lambda: states(runtime) == {"first": "loading"})
        assert await models.unload("first") == ("first", True)
        assert (states(runtime), runtime.pid) == ({}, None)
        assert not await asyncio.to_thread(children)
        await models.close()


async def test_what_was_to_be_loaded_at_the_start_is_not_once_its_owner_took_the_gpu_back(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model's file comes after that."""
    monkeypatch.setattr(embedded, "SCAN_SECONDS", 0.05)
    monkeypatch.setattr(embedded, "FILE_POLL_SECONDS", 0.05)
    runtime = EmbeddedRuntime(folder / "late.gguf")
    async with running(runtime) as until:
        await until(is_unavailable)
        runtime.stand_down()
        (folder / "late.gguf").symlink_to(DEMO)
        await until(is_ready)
        assert (states(runtime), runtime.pid) == ({}, None)


async def test_a_model_that_was_pulled_this_moment_can_be_checked_and_named(folder: Path) -> None:
    async with loaded(folder) as runtime:
        (folder / "pulled.gguf").symlink_to(DEMO)
        await runtime.check("pulled")
        assert runtime.status().model("pulled") is not None
        assert (await checked(runtime, "none")).code == "model_not_found"


# -- what is in memory from the start, and what comes later -----------------------------------------------------------


async def test_nothing_but_what_was_wanted_is_loaded_at_the_start(folder: Path) -> None:
    async with loaded(folder, at_start=()) as runtime:
        assert (runtime.pid, states(runtime), runtime.status().default_model) == (None, {}, "first")
    async with loaded(folder, default_model="second") as runtime:
        assert states(runtime) == {"second": "loaded"}
    runtime = EmbeddedRuntime(None, folder=folder, at_start=("vectors", "gone"), habits=Habits(models=MODELS))
    async with running(runtime) as until:
        await until(lambda status: "loaded" in [model.state for model in status.models])
        assert states(runtime) == {"vectors": "loaded"}


async def test_a_model_that_is_pulled_later_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "SCAN_SECONDS", 0.05)
    monkeypatch.setattr(embedded, "FILE_POLL_SECONDS", 0.05)
    runtime = EmbeddedRuntime(None, folder=tmp_path / "models")
    async with running(runtime) as until:
        assert f"there is no folder {tmp_path / 'models'}" in (await until(is_unavailable)).reason
        (tmp_path / "models").mkdir()
        await until(lambda status: f"no GGUF file lies in {tmp_path / 'models'}" in status.reason)
        (tmp_path / "models" / "half.gguf").write_bytes(DEMO.read_bytes()[:1000])
        await until(lambda status: "half.gguf has a broken or cut header" in status.reason)
        assert "cut header" in (await refused(runtime, "half")).message
        (tmp_path / "models" / "late.gguf").symlink_to(DEMO)
        assert (await until(is_ready)).default_model == "late"
        (tmp_path / "models" / "later.gguf").symlink_to(DEMO)
        await until(lambda status: status.model("later") is not None)
        await until(lambda status: "loaded" in [model.state for model in status.models])


async def test_a_default_that_is_not_there_is_named_and_another_one_loaded(folder: Path) -> None:
    """Misspelt in the settings, or activated before the folder was another one."""
    (folder / "cut.gguf").unlink()
    runtime = EmbeddedRuntime(None, folder=folder, default_model="fisrt", at_start=("gone",), habits=Habits(slots=1))
    with logged() as lines:
        async with running(runtime) as until:
            await until(lambda status: "loaded" in [model.state for model in status.models])
            assert states(runtime) == {"first": "loaded"} and runtime.status().default_model == "first"
    told = [line for line in lines if "fisrt" in line]
    assert len(told) == 1 and "first answers" in told[0] and "second" in told[0]


async def test_a_model_in_memory_stays_when_its_file_goes(folder: Path) -> None:
    async with loaded(folder) as runtime:
        await runtime.load("second", PLAIN, deaf)
        (folder / "second.gguf").unlink()
        assert (await refused(runtime, "none")).code == "model_not_found", "looked for on disk"
        assert b"[DONE]" in await read_all(runtime, ask("second", max_tokens=4))
        await runtime.unload("second")
        assert (await refused(runtime, "none")).code == "model_not_found"
        assert (await refused(runtime, "second")).code == "model_not_found"


async def test_special_tokens_are_those_of_all_models(folder: Path) -> None:
    """A request is cleaned before it is known to which model it will go."""
    async with loaded(folder, at_start=()) as runtime:
        assert "<|im_start|>" in runtime.special_tokens


# -- models that do not chat ------------------------------------------------------------------------------------------


def embedding(model: str, *texts: str) -> Inference:
    return Inference("embeddings", model, {"input": list(texts)})


async def test_embeddings_and_ranking(folder: Path) -> None:
    async with loaded(folder, at_start=()) as runtime:
        await runtime.load("vectors", PLAIN, deaf)
        long = "hello " * 300  # 600 tokens: more than llama.cpp's own batch of 512
        answer = await runtime.ask(embedding("vectors", "hello", "hello", long), REQUEST)
        one, two, three = (item["embedding"] for item in answer["data"])
        assert one == two != three and answer["usage"]["prompt_tokens"] > 600
        await runtime.load("judge", PLAIN, deaf)
        query = Inference("rerank", "judge", {"query": "a", "documents": ["b", "c"]})
        results = (await runtime.ask(query, REQUEST))["results"]
        assert sorted(result["index"] for result in results) == [0, 1]


@pytest.mark.parametrize(
    ("model", "api"), [("first", "embeddings"), ("first", "rerank"), ("vectors", "chat"), ("judge", "embeddings")]
)
async def test_what_a_model_is_not_for_is_refused(folder: Path, model: str, api: Any) -> None:
    async with loaded(folder, at_start=()) as runtime:
        with pytest.raises(ApiError) as error:
            await runtime.ask(Inference(api, model, {"input": ["x"]}), REQUEST)
        assert error.value.code == "not_supported"


async def test_a_projector_beside_the_model_makes_it_see(tmp_path: Path) -> None:
    """An image of 28 x 28 in patches of 14 is four tokens."""
    (tmp_path / "sees.gguf").symlink_to(DEMO)
    write_projector(tmp_path / "mmproj-sees.gguf", read_header(DEMO).width)
    async with running(runtime := EmbeddedRuntime(tmp_path / "sees.gguf")) as until:
        assert [(model.id, model.vision) for model in (await until(is_ready)).models] == [("sees", True)]
        words: dict[str, Any] = {"type": "text", "text": "Look!"}
        image: dict[str, Any] = {"type": "image_url", "image_url": {"url": RED_SQUARE}}
        counts: list[int] = []
        for content in ([words], [words, image]):
            inference = Inference("chat", "sees", {"messages": [{"role": "user", "content": content}]}, 1)
            usage = USAGE.search(await read_all(runtime, inference))
            assert usage is not None
            counts.append(int(usage[1]))
        assert counts[1] - counts[0] >= 4


# -- progress ---------------------------------------------------------------------------------------------------------


def test_what_of_a_file_is_in_memory(tmp_path: Path) -> None:
    """As proc_pid_smaps(5) shows it, names with spaces too."""
    smaps = tmp_path / "smaps"
    smaps.write_text(
        "7f00-7f10 r--s 00000000 08:01 42     /models/my model.gguf\nSize: 64 kB\nRss:   12 kB\nPss: 1 kB\n"
        "7f10-7f20 r--p 00000000 08:01 43     /lib/other.so\nRss:   100 kB\n"
        "7f20-7f30 rw-p 00000000 00:00 0\nRss:   100 kB\n"
        "7f30-7f40 r--s 00000000 08:01 44     /models/2.gguf\nRss:   3 kB\n"
    )
    assert resident(smaps, {"/models/my model.gguf", "/models/2.gguf"}) == 15 * 1024
    assert resident(tmp_path / "none", {"/models/2.gguf"}) is None
