"""vLLM: what its metrics mean for how much it is given, sleep as unloading, adapters, and names of its own."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path

import pytest

from node.runtime import Inference, LoadConfig
from node.runtimes import vllm as vllm_module
from node.runtimes.server import ServerRuntime
from shared.contract.errors import ApiError
from tests.fake_scripts import text
from tests.fake_vllm import FakeVLLM
from tests.logged import logged
from tests.pair import question, running_pair
from tests.runtime_support import REQUEST, ask, is_ready, read_all, running, said


async def test_models_adapters_and_what_it_offers() -> None:
    async with FakeVLLM("base", adapters=["lora"]) as vllm, running(runtime := ServerRuntime(vllm.url)) as until:
        status = await until(is_ready)
        assert (runtime.kind, status.default_model, runtime.can_load) == ("vLLM", "base", False)
        assert [(model.id, model.context, model.slots) for model in status.models] == [
            ("base", 2048, 0),
            ("lora", 2048, 0),
        ], "an adapter shares its base's slots, and has its context"
        assert status.apis == {"chat", "completions", "embeddings", "responses"}
        assert "suffix" not in status.parameters and "repeat_penalty" in status.parameters
        assert said(await read_all(runtime, ask("lora"))) == text(5)


async def test_without_a_description_of_itself_the_least_is_believed() -> None:
    async with FakeVLLM(openapi=False) as vllm, running(ServerRuntime(vllm.url)) as until:
        assert (await until(is_ready)).apis == {"chat", "completions"}


async def test_the_answer_is_fitted_beside_the_prompt_and_the_penalty_has_its_name() -> None:
    """Prompt and longest answer together beyond the context are a 400 (runtimes §3)."""
    async with FakeVLLM(context=200) as vllm, running(runtime := ServerRuntime(vllm.url)) as until:
        await until(is_ready)
        inference = ask("base", "x" * 300, max_tokens=200, repeat_penalty=1.1, suffix="x")
        assert said(await read_all(runtime, inference)) == text(5)
        body = vllm.chats[0].json
        assert body["max_tokens"] == 200 - 300 // 3 - 8
        assert body["repetition_penalty"] == 1.1
        assert not body.keys() & {"repeat_penalty", "suffix", "return_progress", "id_slot"}


@pytest.mark.parametrize("digits", [1200, 3000])
async def test_a_prompt_of_more_tokens_than_estimated_gets_a_shorter_answer(digits: int) -> None:
    """Some vocabularies have a token for each digit. What is refused and may fit is asked once more."""
    async with FakeVLLM(context=2048) as vllm, running(runtime := ServerRuntime(vllm.url)) as until:
        await until(is_ready)
        vllm.bytes_per_token = 1 if digits < 2048 else 2
        assert said(await read_all(runtime, ask("base", "7" * digits, max_tokens=1024))) == text(5)
        sent = [exchange.json["max_tokens"] for exchange in vllm.chats]
        assert sent == ([1024, 2048 - 1200 - 8] if digits < 2048 else [1024, 256])


async def test_a_prompt_that_cannot_fit_is_refused() -> None:
    async with FakeVLLM(context=2048) as vllm, running(runtime := ServerRuntime(vllm.url)) as until:
        await until(is_ready)
        with pytest.raises(ApiError) as refused:
            await read_all(runtime, ask("base", "7" * 20_000))
        assert refused.value.code == "context_length_exceeded" and len(vllm.chats) == 1


async def test_thoughts_have_one_name_for_callers(tmp_path: Path) -> None:
    async with FakeVLLM() as vllm, running_pair(vllm.url, state=tmp_path) as pair:
        vllm.thoughts = ("Let me ", "think.")
        async with pair.post("/v1/chat/completions", question()) as response:
            message = (await response.json())["choices"][0]["message"]
        assert (message["reasoning_content"], message["content"]) == ("Let me think.", text(5))


async def test_what_it_says_of_itself_never_ends_the_watch() -> None:
    """A number may be infinite."""
    async with FakeVLLM() as vllm, running(runtime := ServerRuntime(vllm.url)) as until:
        await until(is_ready)
        vllm.running = math.inf
        await runtime.look()
        assert runtime.status().state == "ready"
        vllm.running = 2 * 10**308  # half of it for each engine, which the sum of two is not
        with logged() as lines:
            await runtime.look()
            await runtime.look()
            assert runtime.status().state == "unavailable" and len(lines) == 1
        vllm.running = 0
        await until(is_ready)


async def test_it_begins_with_what_fits_and_takes_more_while_all_is_used() -> None:
    async with FakeVLLM(context=2048, blocks=1024) as vllm, running(runtime := ServerRuntime(vllm.url)) as until:
        assert (await until(is_ready)).slots == 1024 * 16 // 2048
        vllm.running = 8
        await runtime.look()
        assert runtime.status().slots == 10
        vllm.memory = 0.95
        vllm.running = 10
        await runtime.look()
        assert runtime.status().slots == 10, "a running one might be thrown out"


@pytest.mark.parametrize("old", [False, True])
async def test_while_requests_wait_for_room_it_is_given_no_more(old: bool) -> None:
    async with FakeVLLM(blocks=2048) as vllm, running(runtime := ServerRuntime(vllm.url)) as until:
        assert (await until(is_ready)).slots == 16
        vllm.old, vllm.running, vllm.waiting = old, 6, 2
        await runtime.look()
        assert runtime.status().slots == 8, "one look may fall between two batches"
        await runtime.look()
        assert runtime.status().slots == 6


async def test_what_waits_for_other_reasons_waits_for_no_room() -> None:
    """The gauge by reason is another than the one without (runtimes §3: match whole names, gate on capacity)."""
    async with FakeVLLM(blocks=2048) as vllm, running(runtime := ServerRuntime(vllm.url)) as until:
        await until(is_ready)
        vllm.running, vllm.deferred = 6, 2
        await runtime.look()
        assert runtime.status().slots == 16


async def test_the_owners_number_of_slots_stands() -> None:
    async with FakeVLLM(blocks=2048) as vllm, running(runtime := ServerRuntime(vllm.url, slots=3)) as until:
        await until(is_ready)
        vllm.running, vllm.waiting = 1, 2
        await runtime.look()
        assert runtime.status().slots == 3


async def test_without_metrics_it_is_given_what_others_are() -> None:
    async with FakeVLLM(metrics=False) as vllm, running(ServerRuntime(vllm.url)) as until:
        assert (await until(is_ready)).slots == 4


@pytest.mark.parametrize("gauge", ["waiting", "deferred"])
async def test_a_standstill_is_told_once_and_its_end_forgotten(gauge: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scheduler can stop while everything looks well (vllm #53130), whatever its requests wait for."""
    monkeypatch.setattr(vllm_module, "STUCK_SECONDS", 0.0)
    async with FakeVLLM() as vllm, running(runtime := ServerRuntime(vllm.url)) as until:
        await until(is_ready)
        with logged() as lines:
            setattr(vllm, gauge, 2)
            await runtime.look()
            assert not lines, "it may have begun to wait a moment ago"
            await runtime.look()
            await runtime.look()
            assert len(lines) == 1 and "2 requests waiting" in lines[0] and "Restart it" in lines[0]
            vllm.tokens += 2
            await runtime.look()
            await runtime.look()
            assert len(lines) == 2, "it moved, and stopped again"


async def test_unloading_is_sleep_and_loading_wakes_it() -> None:
    async with (
        FakeVLLM("base", adapters=["lora"], dev_mode=True) as vllm,
        running(runtime := ServerRuntime(vllm.url)) as until,
    ):
        await until(is_ready)
        assert runtime.can_load
        await runtime.unload("base")
        await runtime.unload("base")
        assert vllm.asleep and vllm.slept == ["level=1&mode=abort"]
        assert {model.state for model in runtime.status().models} == {"available"}
        loaded = await runtime.load("lora", LoadConfig(context_length=2048, cpu_threads=4), lambda share: None)
        assert not vllm.asleep and runtime.status().models[0].state == "loaded"
        assert (loaded.applied, loaded.ignored) == (("context_length",), ("cpu_threads",))
        assert any("vllm serve" in step for step in loaded.workflow)


async def test_sleep_ends_what_it_answers_for_others() -> None:
    """A promise of the fake: the node's own answers have ended before."""
    async with FakeVLLM(dev_mode=True) as vllm, running(runtime := ServerRuntime(vllm.url)) as until:
        await until(is_ready)
        vllm.script = "stall_mid_stream"
        async with running(other := ServerRuntime(vllm.url)) as seen:
            await seen(is_ready)
            asked = asyncio.create_task(read_all(other, ask("base")))
            await vllm.until(lambda: vllm.active_streams == 1 and vllm.chats[0].sent > 400)
            await runtime.unload("base")
            assert b'"finish_reason":"abort"' in await asked


async def test_it_is_not_sent_to_sleep_in_the_middle_of_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """An adapter may answer while its base idles: they sleep together."""
    monkeypatch.setattr(vllm_module, "QUIET_SECONDS", 0.05)
    async with (
        FakeVLLM("base", adapters=["lora"], dev_mode=True) as vllm,
        running(runtime := ServerRuntime(vllm.url)) as until,
    ):
        await until(is_ready)
        vllm.script = "stall_mid_stream"
        async with runtime.stream(ask("lora"), REQUEST) as stream:
            await stream.read()
            with pytest.raises(ApiError) as refused:
                await runtime.unload("base")
            assert refused.value.code == "overloaded" and not vllm.asleep
        await runtime.unload("base")
        assert vllm.asleep


async def test_one_that_sleeps_at_the_start_is_woken_by_a_request() -> None:
    """Idle, it was sent to sleep before the node was started anew."""
    async with FakeVLLM(dev_mode=True) as vllm:
        vllm.asleep = True
        async with running_pair(vllm.url) as pair:
            model = pair.node.services.models.status().model("base")
            assert model is not None and model.state == "available"
            async with pair.post("/v1/chat/completions", question()) as response:
                assert response.status == 200, await response.text()
            assert not vllm.asleep


async def test_an_adapter_is_in_the_memory_of_its_base() -> None:
    async with FakeVLLM("base", adapters=["lora"]) as vllm, running(ServerRuntime(vllm.url)) as until:
        models = (await until(is_ready)).models
        assert [(model.id, model.home) for model in models] == [("base", "base"), ("lora", "base")]


async def test_without_its_dev_mode_it_says_that_there_is_no_way() -> None:
    async with FakeVLLM() as vllm, running(runtime := ServerRuntime(vllm.url)) as until:
        await until(is_ready)
        for attempt in (runtime.unload("base"), runtime.load("base", LoadConfig(), lambda share: None)):
            with pytest.raises(ApiError) as refused:
                await attempt
            assert refused.value.code == "not_supported"


async def test_a_model_of_another_kind_is_not_supported() -> None:
    refusal = {"error": {"message": "The model does not support Embeddings API", "type": "BadRequestError"}}
    async with FakeVLLM() as vllm, running(runtime := ServerRuntime(vllm.url)) as until:
        await until(is_ready)
        vllm.routes["/v1/embeddings"] = (400, refusal)
        with pytest.raises(ApiError) as refused:
            await runtime.ask(Inference("embeddings", "base", {"input": ["x"]}), REQUEST)
        assert refused.value.code == "not_supported"


async def test_what_it_has_no_way_for_is_named_to_the_caller(tmp_path: Path) -> None:
    async with FakeVLLM(adapters=["lora"]) as vllm, running_pair(vllm.url, state=tmp_path) as pair:
        body = question(model="lora", repeat_penalty=1.1, top_k=5, service_tier="auto")
        async with pair.post("/v1/chat/completions", body) as response:
            assert response.headers["Hearthlink-Dropped-Params"] == "service_tier"
        sent = vllm.chats[0].json
        assert (sent["model"], sent["repetition_penalty"], sent["top_k"]) == ("lora", 1.1, 5)
        async with pair.post("/v1/rerank", {"model": "base", "query": "x", "documents": ["y"]}) as response:
            assert (response.status, (await response.json())["error"]["code"]) == (404, "not_supported")
