"""Models loaded, swapped, freed and brought back under requests: the whole pair with the real llama.cpp."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from node.models import memory
from shared.contract.sse import Event
from tests.pair import Pair, events_of, question, running_pair
from tests.runtime_support import DEMO
from tests.waiting import wait_until

LOAD = "/admin/models/load"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two models that chat, and one whose last weights are cut."""
    folder = tmp_path / "models"
    folder.mkdir()
    for name in ("first", "second"):
        (folder / f"{name}.gguf").symlink_to(DEMO)
    (folder / "cut.gguf").write_bytes(DEMO.read_bytes()[:-70_000])
    return folder


@pytest.fixture
def state(tmp_path: Path) -> Path:
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    return state


class Owner:
    def __init__(self, pair: Pair, key: str) -> None:
        self.pair = pair
        self.key = key

    @property
    def present(self) -> list[str]:
        """Models in memory."""
        return [model.id for model in self.pair.node.services.runtime.status().models if model.state == "loaded"]

    def events(self, kind: str) -> list[tuple[str, str]]:
        """Models and by whom."""
        recent = self.pair.node.services.events.recent()
        return [(event["model"], event["by"]) for event in recent if event["kind"] == kind]

    async def admin(self, path: str, body: Any) -> tuple[int, Any]:
        async with self.pair.post(path, body, key=self.key) as response:
            answer = await response.json()
            return response.status, answer.get("error", answer)

    async def streamed(self, model: str, max_tokens: int = 16) -> list[Event]:
        """The events of one chat with ``model``."""
        body = question(model=model, max_tokens=max_tokens, stream=True)
        async with self.pair.post("/v1/chat", body) as response:
            assert response.status == 200, await response.text()
            return events_of(await response.read())


def whole(events: list[Event]) -> bool:
    """It ended well: words, a finish reason, the terminal event last."""
    return not any(event.event == "error" for event in events) and events[-1].data == "[DONE]"


@asynccontextmanager
async def real(folder: Path, state: Path, *, ready: bool = True, **node: Any) -> AsyncIterator[Owner]:
    """The block begins when a chat can be answered; without ``ready`` when the node is linked."""
    runtime = {"kind": "embedded", "model": str(folder / "first.gguf"), "models": str(folder)}
    # llama.cpp's threads wait for each other spinning, and stand still when other tests want the cores too.
    with mock.patch.dict(os.environ, OMP_WAIT_POLICY="passive"):
        settings = {"runtime": runtime, "slots": 2, **node}
        async with running_pair(state=state, node=settings, wait=False) as pair:
            upstream = pair.edge.services.upstreams.all[0]
            await wait_until(lambda: upstream.ready if ready else upstream.snapshot, 30, what=lambda: upstream.snapshot)
            yield Owner(pair, await pair.new_key(scopes=("chat", "admin")))


async def test_swaps_under_load_lose_no_request(folder: Path, state: Path) -> None:
    """Requests for two models that are never in memory together, at once and mixed: all get their whole answer."""
    with mock.patch.object(memory, "PATIENCE", 0.2):
        async with real(folder, state) as owner:
            wanted = ["first", "second"] * 6
            answers = await asyncio.gather(*(owner.streamed(model) for model in wanted))
            assert [whole(answer) for answer in answers] == [True] * 12
            for model, answer in zip(wanted, answers, strict=True):
                assert {json.loads(event.data)["model"] for event in answer if event.data.startswith('{"id"')} == {
                    model
                }
            waited = [event for answer in answers for event in answer if event.event == "loading"]
            assert "second" in {json.loads(event.data)["model"] for event in waited}
            assert owner.events("loaded").count(("second", "request")) >= 1
            assert len(owner.present) == 1
            await owner.pair.idle()


async def test_a_load_that_fails_leaves_the_model_of_before_serving(folder: Path, state: Path) -> None:
    async with real(folder, state) as owner:
        answers = [asyncio.create_task(owner.streamed("first")) for _ in range(3)]
        status, error = await owner.admin(LOAD, {"modelKey": "cut"})
        assert (status, error["code"]) == (502, "runtime_error") and str(folder) not in error["message"]
        answers += [asyncio.create_task(owner.streamed("first")) for _ in range(3)]
        assert all(whole(answer) for answer in await asyncio.gather(*answers))
        assert owner.present == ["first"] and owner.events("load_failed") == [("cut", "owner")]


async def test_a_request_that_can_only_be_refused_swaps_no_model(folder: Path, state: Path) -> None:
    """What makes embeddings stays in memory for one of a model that writes text."""
    (folder / "vectors.gguf").symlink_to(DEMO)
    async with real(folder, state, models={"vectors": {"pooling": "mean"}}) as owner:
        assert (await owner.admin(LOAD, {"modelKey": "vectors"}))[0] == 200
        assert owner.present == ["vectors"]
        async with owner.pair.post("/v1/embeddings", {"model": "second", "input": "x"}) as response:
            answer = await response.json()
        assert (response.status, answer["error"]["code"], answer["error"]["param"]) == (404, "not_supported", "model")
        assert owner.present == ["vectors"] and not owner.events("unloaded")[1:]


async def test_two_loads_at_once_make_one_instance(folder: Path, state: Path) -> None:
    async with real(folder, state) as owner:
        body = {"modelKey": "second", "loadConfig": {"contextLength": 256}}
        loads = await asyncio.gather(*(owner.admin(LOAD, body) for _ in range(2)))
        assert [(status, answer["status"]) for status, answer in loads] == [(200, "loaded")] * 2
        assert owner.present == ["second"] and owner.events("loaded") == [("second", "owner")]
        assert owner.pair.node.services.models.status().models[0].id == "first", "loading activates nothing"


async def test_yield_frees_the_memory_and_holds_over_a_restart(folder: Path, state: Path) -> None:
    async with real(folder, state) as owner:
        status, answer = await owner.admin("/admin/models/yield", {})
        assert (status, answer["status"], answer["unloaded"]) == (200, "yielded", ["first"])
        assert owner.present == []
        await owner.pair.idle()
    async with real(folder, state, ready=False) as owner:
        status, error = await owner.admin("/v1/chat", question())
        assert (status, error["code"]) == (503, "node_unavailable")
        status, answer = await owner.admin("/admin/models/resume", {})
        assert (status, answer["loaded"]) == (200, ["first"])
        assert owner.present == ["first"]
        await wait_until(lambda: owner.pair.edge.services.upstreams.ready)
        assert whole(await owner.streamed("first"))


async def test_what_was_loaded_and_activated_answers_after_a_restart(folder: Path, state: Path) -> None:
    async with real(folder, state) as owner:
        inference = {"maxTokens": 3, "stream": False}
        body = {"modelKey": "second", "loadConfig": {"contextLength": 256}, "defaultInference": inference}
        assert (await owner.admin(LOAD, body))[0] == 200
    async with real(folder, state) as owner:
        await wait_until(lambda: owner.present == ["second"], 30)
        status, answer = await owner.admin("/v1/chat/completions", question())
        assert (status, answer["model"], answer["usage"]["completion_tokens"]) == (200, "second", 3)
        model = owner.pair.node.services.runtime.status().model("second")
        assert model is not None and model.context == 256


async def test_an_idle_model_leaves_memory_and_the_next_request_brings_it_back(folder: Path, state: Path) -> None:
    async with real(folder, state, idle_unload=0.5) as owner:
        await wait_until(lambda: owner.present == [], 10)
        assert owner.events("unloaded") == [("first", "idle")]
        async with owner.pair.get("/healthz") as response:
            assert response.status == 200, "what is loaded when it is named can be asked"
        events = await owner.streamed("first")
        assert whole(events) and events[0].event == "loading"
