"""llama.cpp's server by URL, with the real one behind it: what it offers, which slot answers, what it refuses."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from node.runtime import Api, Inference, LoadConfig
from node.runtimes.embedded import EmbeddedRuntime
from node.runtimes.llama_order import Habits
from node.runtimes.server import ServerRuntime
from shared.contract.errors import ApiError
from shared.settings_models import ModelSettings
from tests.fake_runtime import FakeRuntime
from tests.runtime_support import DEMO, REQUEST, ask, is_ready, read_all, running

pytestmark = pytest.mark.asyncio(loop_scope="module")

HABITS = Habits(slots=2, models={"vectors": ModelSettings(pooling="mean")})
CONTENTS: dict[Api, dict[str, Any]] = {
    "chat": {"messages": [{"role": "user", "content": "Hello"}]},
    "completions": {"prompt": "Once upon a time"},
    "responses": {"input": "Hello"},
    "messages": {"messages": [{"role": "user", "content": "Hello"}]},
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def embedded(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EmbeddedRuntime]:
    """A real one with a model that chats, another that makes embeddings."""
    folder: Path = tmp_path_factory.mktemp("models")
    for name in ("chats", "vectors"):
        (folder / f"{name}.gguf").symlink_to(DEMO)
    runtime = EmbeddedRuntime(folder / "chats.gguf", folder=folder, habits=HABITS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_WAIT_POLICY", "passive")  # else llama.cpp's threads wait spinning for cores that others use
        async with running(runtime) as until:
            await until(is_ready)
            yield runtime


def by_url(embedded: EmbeddedRuntime, model: str = "chats") -> ServerRuntime:
    instance = embedded.instance(model)
    return ServerRuntime(instance.address, key=instance.order.key)


async def test_what_it_offers_is_asked_without_starting_anything(embedded: EmbeddedRuntime) -> None:
    async with running(runtime := by_url(embedded)) as until:
        status = await until(is_ready)
        assert status.apis == {"chat", "completions", "responses", "messages"}
        model = status.models[0]
        assert (model.id, model.kind, model.state, model.vision, status.slots) == ("chats", "chat", "loaded", False, 2)
        assert (model.max_context, model.size) == (1024, 4727040)
        assert await embedded.busy_slots() == 0
        assert runtime.special_tokens == {"<|endoftext|>", "<|im_end|>"}


async def test_one_that_was_started_for_embeddings_says_so(embedded: EmbeddedRuntime) -> None:
    await embedded.load("vectors", LoadConfig(), lambda share: None)
    async with running(runtime := by_url(embedded, "vectors")) as until:
        status = await until(is_ready)
        assert "embeddings" in status.apis and "rerank" not in status.apis
        answer = await runtime.ask(Inference("embeddings", "vectors", {"input": ["a", "b"]}), REQUEST)
        assert [len(item["embedding"]) for item in answer["data"]] == [192, 192]
    await embedded.unload("vectors")
    await embedded.load("chats", LoadConfig(), lambda share: None)


async def test_what_it_was_not_started_for_is_not_supported(embedded: EmbeddedRuntime) -> None:
    async with running(runtime := by_url(embedded)) as until:
        await until(is_ready)
        asked: list[tuple[Api, dict[str, Any]]] = [
            ("embeddings", {"input": ["a"]}),
            ("rerank", {"query": "a", "documents": ["b"]}),
        ]
        for api, content in asked:
            with pytest.raises(ApiError) as refused:
                await runtime.ask(Inference(api, "chats", content), REQUEST)
            assert (refused.value.code, refused.value.status) == ("not_supported", 404)
        for attempt in (runtime.load("chats", LoadConfig(), lambda share: None), runtime.unload("chats")):
            with pytest.raises(ApiError) as refused:
                await attempt
            assert refused.value.code == "not_supported"
        assert not runtime.can_load


@pytest.mark.parametrize("api", ["chat", "responses", "messages"])
async def test_tools_that_the_template_leaves_out_are_refused(embedded: EmbeddedRuntime, api: Api) -> None:
    """By the server, and by the one inside the node. llama.cpp itself would answer as if there were none."""
    tools = [{"type": "function", "function": {"name": "look"}}]
    async with running(runtime := by_url(embedded)) as until:
        await until(is_ready)
        for each in (runtime, embedded):
            with pytest.raises(ApiError, match="no way to call tools") as refused:
                await read_all(each, Inference(api, "chats", CONTENTS[api], 4, {"tools": tools}))
            assert (refused.value.code, refused.value.param) == ("invalid_request", "tools")
    unused = {"tools": tools, "tool_choice": "none"}
    assert await read_all(embedded, Inference("chat", "chats", CONTENTS["chat"], 4, unused))


@pytest.mark.parametrize("api", list(CONTENTS))
async def test_every_way_of_asking_streams_and_ends(embedded: EmbeddedRuntime, api: Api) -> None:
    async with running(runtime := by_url(embedded)) as until:
        await until(is_ready)
        parameters = {"temperature": 0, "stop": ["never written"]}
        raw = await read_all(runtime, Inference(api, "chats", CONTENTS[api], 4, parameters))
        assert {"messages": b"message_stop", "responses": b"response.completed"}.get(api, b"data: [DONE]") in raw


@pytest.mark.parametrize("api", ["chat", "completions", "responses"])
async def test_the_chosen_slot_answers(embedded: EmbeddedRuntime, api: Api) -> None:
    """A task's number stays on the slot that had it: the highest one is where the last request ran."""
    async with running(runtime := by_url(embedded)) as until:
        await until(is_ready)
        for slot in (1, 0, 1):
            await read_all(runtime, Inference(api, "chats", CONTENTS[api], 2, slot=slot))
            slots: Any = await embedded.query("/slots")
            assert max(slots, key=lambda item: item.get("id_task") or -1)["id"] == slot


async def test_a_sleeping_model_is_told_and_not_woken() -> None:
    """Asking what it offers might wake it, so that waits; a request wakes it (runtimes §2.3)."""
    async with FakeRuntime() as fake:
        fake.routes["/props"] = {"total_slots": 4, "is_sleeping": True}
        async with running(runtime := ServerRuntime(fake.url)) as until:
            status = await until(is_ready)
            assert status.models[0].state == "sleeping" and status.apis == {"chat", "completions"}
            assert {exchange.method for exchange in fake.exchanges} == {"GET"}
            fake.routes |= {"/props": {"total_slots": 4, "is_sleeping": False}, "/v1/responses": (400, {"error": {}})}
            await runtime.look()
            assert runtime.status().models[0].state == "loaded"
            assert runtime.status().apis == {"chat", "completions", "responses"}


async def test_one_that_comes_back_may_have_been_started_in_another_way() -> None:
    async with FakeRuntime() as fake, running(runtime := ServerRuntime(fake.url)) as until:
        assert (await until(is_ready)).apis == {"chat", "completions"}
        await fake.kill()
        await runtime.look()
        assert (runtime.status().state, runtime.kind) == ("unavailable", "llama.cpp")
        fake.routes["/v1/embeddings"] = (400, {"error": {}})
        await fake.listen()
        assert (await until(is_ready)).apis == {"chat", "completions", "embeddings"}
        fake.loading = True
        await runtime.look()
        assert runtime.status().state == "loading" and "embeddings" in runtime.status().apis, "it will have them again"


@pytest.mark.parametrize("status", [503, 401])
async def test_what_is_refused_for_now_is_asked_for_again(status: int) -> None:
    """Found while it loads, it would be without its APIs for good (runtimes §2.1)."""
    async with FakeRuntime(loading=status == 503) as fake:
        fake.routes |= {f"/v1/{name}": (status, {"error": {}}) for name in ("responses", "embeddings")}
        async with running(runtime := ServerRuntime(fake.url)) as until:
            status_then = await until(lambda status: status.state != "starting")
            assert (status_then.state, status_then.apis) == (
                ("loading", {"chat"}) if status == 503 else ("ready", {"chat", "completions"})
            )
            fake.loading = False
            fake.routes |= {f"/v1/{name}": (400, {"error": {}}) for name in ("responses", "embeddings")}
            await runtime.look()
            assert runtime.status().apis == {"chat", "completions", "responses", "embeddings"}


async def test_an_answer_that_is_no_object_or_an_error_is_no_answer() -> None:
    answers = {b"[1]": "upstream_invalid", b'{"error":"boom"}': "runtime_error", b"<html>": "upstream_invalid"}
    async with FakeRuntime() as fake, running(runtime := ServerRuntime(fake.url)) as until:
        await until(is_ready)
        for raw, code in answers.items():
            fake.routes["/v1/embeddings"] = (200, raw)
            with pytest.raises(ApiError) as refused:
                await runtime.ask(Inference("embeddings", "fake-model", {"input": ["x"]}), REQUEST)
            assert refused.value.code == code


async def test_the_prompt_is_counted_with_its_tools() -> None:
    """Templates write them into it."""
    tools = [{"type": "function", "function": {"name": "look"}}]
    async with FakeRuntime() as fake, running(runtime := ServerRuntime(fake.url)) as until:
        await until(is_ready)
        fake.routes["/v1/chat/completions/input_tokens"] = {"input_tokens": 12}
        assert await runtime.count_prompt(ask(tools=tools)) == 12
        assert fake.exchanges[-1].json["tools"] == tools
        assert await runtime.count_prompt(Inference("completions", "fake-model", {"prompt": "x"}, 1)) is None
