"""llama.cpp as a router: what is in memory, how models get there and out again, and what that does to the others."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from node.runtime import LoadConfig
from node.runtimes import llama_router
from node.runtimes.server import ServerRuntime
from shared.contract.errors import ApiError
from tests.fake_llama_router import FakeLlamaRouter
from tests.fake_runtime import Exchange
from tests.fake_scripts import DONE, chunk, role_chunk, text
from tests.pair import question, running_pair
from tests.runtime_support import REQUEST, ask, is_ready, is_unavailable, read_all, running, said


@pytest.fixture(autouse=True)
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_router, "POLL_SECONDS", 0.005)


async def load(runtime: ServerRuntime, model: str, config: LoadConfig | None = None) -> list[float | None]:
    heard: list[float | None] = []
    await runtime.load(model, config or LoadConfig(), heard.append)
    return heard


def states(runtime: ServerRuntime) -> dict[str, str]:
    return {model.id: model.state for model in runtime.status().models}


async def test_what_is_in_memory_is_asked_and_nothing_is_loaded_or_woken_by_asking() -> None:
    async with FakeLlamaRouter("a", "b vision", "c", "d", loaded=["b vision"]) as router:
        router.states |= {"c": "sleeping", "d": "downloading"}
        router.args["a"] = ["--embeddings"]
        async with running(runtime := ServerRuntime(router.url)) as until:
            status = await until(is_ready)
            assert (runtime.kind, status.default_model, runtime.can_load, runtime.evicts) == (
                "llama.cpp", "b vision", True, False,
            )  # fmt: skip
            assert states(runtime) == {"b vision": "loaded", "c": "sleeping", "a": "available"}
            seen = [(model.id, model.slots, model.context, model.vision) for model in status.models]
            assert seen == [("b vision", 2, 2048, True), ("c", 2, 2048, False), ("a", 4, 0, False)]
            assert runtime.special_tokens == {"<|end of b vision|>", "<|end of c|>"}
            assert status.apis == {"chat", "completions", "responses", "messages", "embeddings"}
            assert not router.orders and "/slots" not in [exchange.path for exchange in router.exchanges]


async def test_a_model_for_embeddings_is_told_by_its_flag_and_its_name() -> None:
    async with FakeLlamaRouter("chat", "some-embed", "rank", loaded=["some-embed", "chat"]) as router:
        router.args = {"chat": ["--embedding"], "some-embed": ["--embedding"], "rank": ["--reranking"]}
        async with running(runtime := ServerRuntime(router.url)) as until:
            status = await until(is_ready)
            kinds = {model.id: model.kind for model in status.models}
            assert kinds == {"chat": "chat", "some-embed": "embedding", "rank": "rerank"}
            assert runtime.status().default_model == "chat", "nobody chats with the other"


async def test_the_owners_number_of_slots_stands_for_each_model() -> None:
    async with FakeLlamaRouter("a", "b", loaded=["a"]) as router, running(ServerRuntime(router.url, slots=1)) as until:
        assert [model.slots for model in (await until(is_ready)).models] == [1, 1]


async def test_a_load_tells_its_progress_and_is_seen_when_it_is_over() -> None:
    async with (
        FakeLlamaRouter("a", "b", loaded=["a"], looks=4) as router,
        running(runtime := ServerRuntime(router.url)) as until,
    ):
        await until(is_ready)
        heard = await load(runtime, "b")
        assert heard == [0.25, 0.5, 0.75]
        assert states(runtime) == {"a": "loaded", "b": "loaded"}
        assert said(await read_all(runtime, ask("b"))) == text(5)
        assert runtime.status().default_model == "a"


async def test_nothing_in_memory_is_no_obstacle_to_loading() -> None:
    async with FakeLlamaRouter("a", "b") as router, running(runtime := ServerRuntime(router.url)) as until:
        assert "Load one of a, b" in (await until(is_unavailable)).reason
        with pytest.raises(ApiError) as refused:
            await read_all(runtime, ask("a"))
        assert refused.value.code == "node_unavailable" and not router.chats
        await load(runtime, "b")
        assert (runtime.status().state, runtime.status().default_model) == ("ready", "b")


async def test_one_that_is_there_is_left_as_it_is() -> None:
    """Also when somebody loaded it after the last look: the router says "already running" (runtimes §2.3)."""
    async with (
        FakeLlamaRouter("a", "b", loaded=["a"]) as router,
        running(runtime := ServerRuntime(router.url)) as until,
    ):
        await until(is_ready)
        await load(runtime, "a")
        assert not router.orders
        router.states["b"] = "loaded"
        await load(runtime, "b")
        assert router.orders == [("load", "b")] and states(runtime)["b"] == "loaded"


async def test_what_a_router_has_no_way_for_is_told_with_how_to_do_it() -> None:
    config = LoadConfig(context_length=2048, gpu_layers=20, gpu_ratio=0.5, rope_frequency_base=10000.0)
    async with FakeLlamaRouter("a", loaded=["a"]) as router, running(runtime := ServerRuntime(router.url)) as until:
        await until(is_ready)
        loaded = await runtime.load("a", config, lambda share: None)
        assert loaded.applied == ("context_length",), "that is what it has"
        assert loaded.ignored == ("gpu_ratio", "gpu_layers", "rope_frequency_base")
        assert "under [a]: n-gpu-layers = 20, rope-freq-base = 10000." in loaded.workflow[0]
        only = await runtime.load("a", LoadConfig(gpu_ratio=0.5), lambda share: None)
        assert "n-gpu-layers = the number" in only.workflow[0]
        assert (await runtime.load("a", LoadConfig(), lambda share: None)).workflow == ()


async def test_a_load_that_fails_leaves_the_others() -> None:
    async with (
        FakeLlamaRouter("a", "b", loaded=["a"]) as router,
        running(runtime := ServerRuntime(router.url)) as until,
    ):
        await until(is_ready)
        router.broken.add("b")
        with pytest.raises(ApiError) as failed:
            await load(runtime, "b")
        assert failed.value.code == "runtime_error" and "log" in failed.value.message
        assert states(runtime) == {"a": "loaded", "b": "available"}
        assert said(await read_all(runtime, ask("a"))) == text(5)
        router.broken.clear()
        await load(runtime, "b")  # "failed" from before is no verdict (ggml-org/llama.cpp #23257)
        assert states(runtime)["b"] == "loaded"


@pytest.mark.parametrize(("setting", "lazy"), [("LOAD_SECONDS", False), ("BEGIN_SECONDS", True)])
async def test_a_load_that_never_ends_or_begins_is_given_up(
    setting: str, lazy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One sticks in "loading" for ever when its preset has no source (ggml-org/llama.cpp #27541)."""
    monkeypatch.setattr(llama_router, setting, 0.05)
    async with FakeLlamaRouter("a", "b", loaded=["a"], looks=None) as router:
        router.lazy = lazy
        async with running(runtime := ServerRuntime(router.url)) as until:
            await until(is_ready)
            with pytest.raises(ApiError) as failed:
                await load(runtime, "b")
            assert failed.value.code == "runtime_error" and failed.value.should_retry is False


async def test_who_waits_for_a_load_may_leave() -> None:
    async with (
        FakeLlamaRouter("a", "b", loaded=["a"], looks=None) as router,
        running(runtime := ServerRuntime(router.url)) as until,
    ):
        await until(is_ready)
        told = asyncio.Event()
        waiting = asyncio.create_task(runtime.load("b", LoadConfig(), lambda share: told.set()))
        await told.wait()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert states(runtime) == {"a": "loaded", "b": "loading"}
        assert said(await read_all(runtime, ask("a"))) == text(5)


async def test_unloading_takes_it_out_and_twice_is_no_mistake() -> None:
    async with (
        FakeLlamaRouter("a", "b", loaded=["a", "b"]) as router,
        running(runtime := ServerRuntime(router.url)) as until,
    ):
        await until(is_ready)
        await runtime.unload("b")
        await runtime.unload("b")
        assert states(runtime) == {"a": "loaded", "b": "available"}
        assert router.orders == [("unload", "b"), ("unload", "b")]


async def test_what_the_router_unloads_comes_back_when_it_is_named() -> None:
    async with (
        FakeLlamaRouter("a", "b", loaded=["a"], most=1) as router,
        running(runtime := ServerRuntime(router.url)) as until,
    ):
        await until(is_ready)
        await load(runtime, "b")
        assert states(runtime) == {"a": "available", "b": "loaded"}
        assert runtime.status().default_model == "a"


@pytest.mark.parametrize("unloads", [True, False])
async def test_what_leaves_memory_takes_its_answers_along(unloads: bool) -> None:
    """A promise of the fake, which others rely on: that a real one ends processes, too."""
    async with (
        FakeLlamaRouter("a", "b", loaded=["a"], most=1) as router,
        running(runtime := ServerRuntime(router.url)) as until,
    ):
        await until(is_ready)
        router.script = "stall_mid_stream"
        async with runtime.stream(ask("a"), REQUEST) as stream:
            await stream.read()
            await (runtime.unload("a") if unloads else load(runtime, "b"))
            with pytest.raises(ApiError) as broken:
                while await stream.read():
                    pass
            assert broken.value.code == "runtime_error"


async def test_a_model_that_is_not_there_any_more() -> None:
    async with (
        FakeLlamaRouter("a", "b", loaded=["a"]) as router,
        running(runtime := ServerRuntime(router.url)) as until,
    ):
        await until(is_ready)
        for name in ("never", "b"):
            router.states.pop(name, None)
            with pytest.raises(ApiError) as refused:
                await load(runtime, name)
            assert (refused.value.code, refused.value.param) == ("model_not_found", "model")


async def test_a_router_that_dies_while_loading() -> None:
    async with (
        FakeLlamaRouter("a", "b", loaded=["a"], looks=None) as router,
        running(runtime := ServerRuntime(router.url)) as until,
    ):
        await until(is_ready)
        told = asyncio.Event()
        waiting = asyncio.create_task(runtime.load("b", LoadConfig(), lambda share: told.set()))
        await told.wait()
        await router.kill()
        with pytest.raises(ApiError) as failed:
            await waiting
        assert failed.value.code == "node_unavailable"
        assert runtime.status().state == "unavailable"


# -- through edge and node ---------------------------------------------------------------------------------------------


async def test_a_model_that_is_named_is_loaded_once_for_all_who_name_it(tmp_path: Path) -> None:
    """Two loads at once can strand a request (ggml-org/llama.cpp #28443)."""
    async with (
        FakeLlamaRouter("a", "b", loaded=["a"], looks=3) as router,
        running_pair(router.url, state=tmp_path) as pair,
    ):

        async def answer() -> str:
            async with pair.post("/v1/chat/completions", question(model="b")) as response:
                return (await response.json())["choices"][0]["message"]["content"]

        assert set(await asyncio.gather(*(answer() for _ in range(4)))) == {text(5)}
        assert router.orders == [("unload", "a"), ("load", "b")]
        assert {exchange.json["model"] for exchange in router.chats} == {"b"}


async def test_answers_end_before_their_model_makes_room(tmp_path: Path) -> None:
    """The router would end them (runtimes §2.3): what is named waits for them instead."""
    go_on = asyncio.Event()

    async def slow(exchange: Exchange) -> None:
        await exchange.start_stream()
        await exchange.send(role_chunk())
        if exchange.json["model"] == "a":
            await go_on.wait()
        await exchange.send(chunk({"content": "whole"}) + chunk({}, "stop") + DONE)
        await exchange.end_stream()

    async with (
        FakeLlamaRouter("a", "b", loaded=["a"], most=1) as router,
        running_pair(router.url, state=tmp_path) as pair,
    ):
        router.script = slow

        async def answer(model: str) -> str:
            async with pair.post("/v1/chat/completions", question(model=model)) as response:
                return (await response.json())["choices"][0]["message"]["content"]

        first = [asyncio.create_task(answer("a")) for _ in range(2)]
        await router.chat(1)
        async with pair.post("/v1/chat", question(model="b", stream=True)) as response:
            async for line in response.content:
                if line.startswith(b"event: loading"):
                    break
            assert not router.orders
            go_on.set()
            assert b"whole" in await response.read()
        assert await asyncio.gather(*first) == ["whole"] * 2
        assert router.orders == [("unload", "a"), ("load", "b")]


async def test_the_owner_loads_and_unloads_over_the_edge(tmp_path: Path) -> None:
    async with FakeLlamaRouter("a", "b", loaded=["a"]) as router, running_pair(router.url, state=tmp_path) as pair:
        admin = await pair.new_key(scopes=("admin",))
        body = {"modelKey": "b", "loadConfig": {"contextLength": 2048, "cpuThreads": 3}}
        async with pair.post("/admin/models/load", body, key=admin) as response:
            told = await response.json()
        assert (told["status"], told["applied"], told["ignored"]) == ("loaded", ["contextLength"], ["cpuThreads"])
        assert "threads = 3" in told["workflow"]["step1"]
        async with pair.post("/admin/models/unload", {"modelKey": "b"}, key=admin) as response:
            assert response.status == 200
        assert router.orders == [("unload", "a"), ("load", "b"), ("unload", "b")]
