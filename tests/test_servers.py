"""What each kind of server says of its models, what the node makes of it, and which one ``auto`` takes."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import pytest

from node.runtime import Inference, LoadConfig
from node.runtimes import create
from node.runtimes import server as server_module
from node.runtimes.detect import AutoRuntime, find
from node.runtimes.dialect import Dialect
from node.runtimes.dialects import DIALECTS, dialect_of
from node.runtimes.embedded import EmbeddedRuntime
from node.runtimes.llama_cpp import LlamaCpp
from node.runtimes.server import ServerRuntime
from shared.contract.errors import ApiError
from shared.settings import RuntimeSettings
from tests.fake_llama_router import FakeLlamaRouter
from tests.fake_lm_studio import FakeLMStudio
from tests.fake_runtime import FakeRuntime
from tests.fake_scripts import text
from tests.pair import question, running_pair
from tests.runtime_support import DEMO, REQUEST, ask, is_ready, is_unavailable, read_all, running, said
from tests.waiting import wait_until


async def test_llama_cpp_router_with_nothing_loaded() -> None:
    items = [{"id": name, "status": {"value": "unloaded"}} for name in ("a", "b")]
    routes = {"/v1/models": {"data": items}}
    async with FakeRuntime(routes=routes) as fake, running(ServerRuntime(fake.url)) as until:
        assert "Load one of a, b" in (await until(is_unavailable)).reason
        items[1]["status"] = {"value": "loaded"}
        assert (await until(is_ready)).default_model == "b"


async def test_vllm_context_and_clamped_answer() -> None:
    routes = {"/v1/models": {"data": [{"id": "m", "owned_by": "vllm", "max_model_len": 100}]}}
    async with (
        FakeRuntime(server_header=None, routes=routes) as fake,
        running(runtime := ServerRuntime(fake.url)) as until,
    ):
        assert (await until(is_ready)).models[0].context == 100
        await read_all(runtime, ask("m", "x" * 200))
        assert fake.chats[0].json["max_tokens"] == 100 - 200 // 3 - 8
        assert "return_progress" not in fake.chats[0].json


# -- auto -------------------------------------------------------------------------------------------------------------


async def test_auto_takes_a_runtime_with_a_model_loaded() -> None:
    async with FakeLMStudio("qwen", "gemma") as empty, FakeRuntime() as full:
        places = [f"{empty.url}/v1", "http://127.0.0.1:1/v1", f"{full.url}/v1"]
        assert await find(places=places) == f"{full.url}/v1"
        runtime = AutoRuntime(ServerRuntime, lambda: EmbeddedRuntime(None), places=places)
        assert runtime.status().state == "starting"
        async with running(runtime) as until:
            await until(is_ready)
            assert runtime.kind == "llama.cpp"
            assert said(await read_all(runtime, ask())) == text(5)


async def test_auto_passes_on_all_that_is_asked_of_it() -> None:
    async with FakeLlamaRouter("a", "b", loaded=["a"]) as router:
        runtime = AutoRuntime(ServerRuntime, lambda: EmbeddedRuntime(None), places=[f"{router.url}/v1"])
        assert (runtime.can_load, runtime.evicts) == (False, True)
        with pytest.raises(ApiError) as early:
            await runtime.load("b", LoadConfig(), lambda share: None)
        assert early.value.code == "model_loading"
        async with running(runtime) as until:
            await until(is_ready)
            assert runtime.can_load and runtime.special_tokens
            await runtime.load("b", LoadConfig(), lambda share: None)
            await runtime.unload("b")
            assert router.orders == [("load", "b"), ("unload", "b")]
            with pytest.raises(ApiError) as refused:
                await runtime.ask(Inference("embeddings", "a", {"input": ["x"]}), REQUEST)
            assert refused.value.code == "not_supported"
            assert await runtime.count_prompt(ask("a")) is None


async def test_auto_falls_back_to_embedded_and_never_asks_our_own_ports() -> None:
    async with FakeRuntime() as ours:
        places = [f"{ours.url}/v1"]
        assert await find(places=places) == places[0]
        ours.exchanges.clear()
        runtime = AutoRuntime(ServerRuntime, lambda: EmbeddedRuntime(None), own_ports=[ours.port], places=places)
        async with running(runtime) as until:
            assert "--model PATH" in (await until(is_unavailable)).reason
            assert runtime.kind == "embedded" and not ours.exchanges


async def test_auto_that_was_told_to_stand_down_first_loads_nothing_by_itself() -> None:
    """Its owner took the GPU back while it still looked around."""
    runtime = AutoRuntime(ServerRuntime, lambda: EmbeddedRuntime(DEMO), places=[])
    runtime.stand_down()
    async with running(runtime) as until:
        assert [model.state for model in (await until(is_ready)).models] == ["available"]
        await runtime.check("demo")
        with pytest.raises(ApiError) as unknown:
            await runtime.check("none")
        assert unknown.value.code == "model_not_found"


async def test_auto_does_not_wait_for_something_that_never_answers() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        async with asyncio.timeout(5):
            assert await find(places=[f"http://127.0.0.1:{port}/v1"]) is None


async def test_auto_takes_no_server_it_does_not_know() -> None:
    async with FakeRuntime(server_header=None) as fake:
        assert await find(places=[f"{fake.url}/v1"]) is None


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({}, AutoRuntime),
        ({"kind": "embedded"}, EmbeddedRuntime),
        ({"model": Path("/some/model.gguf")}, EmbeddedRuntime),
        ({"url": "http://127.0.0.1:1234"}, ServerRuntime),
        ({"kind": "openai", "url": "http://127.0.0.1:1234", "key": "k"}, ServerRuntime),
        ({"kind": "embedded", "url": "http://127.0.0.1:1234"}, EmbeddedRuntime),
        ({"kind": "lm-studio"}, ServerRuntime),
        ({"kind": "vllm", "model": Path("/some/model.gguf")}, ServerRuntime),
    ],
)
def test_create_follows_the_settings(settings: dict[str, Any], kind: type) -> None:
    assert type(create(RuntimeSettings(**settings))) is kind


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_server_named_without_a_url_is_looked_for_where_it_is_by_default(dialect: type[Dialect]) -> None:
    if dialect.kind == "openai":
        assert dialect_of("openai") is None, "any server: it is asked what it is"
        return
    assert dialect_of(dialect.kind) is dialect
    settings = RuntimeSettings(kind=cast(Any, dialect.kind))
    assert not settings.embedded and dialect.places
    runtime = create(settings)
    assert runtime.kind == dialect.name and dialect.places[0] in runtime.status().reason


async def test_of_several_places_the_one_that_answers_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "RETRY_SECONDS", (0.01,))
    async with FakeRuntime() as fake:
        runtime = ServerRuntime(["http://127.0.0.1:1/v1", fake.url], dialect=LlamaCpp)
        async with running(runtime) as until:
            await until(is_ready)
            assert said(await read_all(runtime, ask())) == text(5)
            await fake.kill()
            await runtime.look()
            reason = (await until(is_unavailable)).reason
            assert "http://127.0.0.1:1/v1" in reason and fake.url in reason
            await fake.listen()
            await until(is_ready)


async def test_something_else_at_the_first_place_is_passed_over() -> None:
    """8080 is where all kinds of servers are."""
    async with (
        FakeRuntime(server_header="nginx", routes={"/v1/models": (404, b"no")}) as other,
        FakeRuntime() as llama,
        running(runtime := ServerRuntime([other.url, llama.url], dialect=LlamaCpp)) as until,
    ):
        await until(is_ready)
        assert said(await read_all(runtime, ask())) == text(5)
        await llama.kill()
        reasons: set[str] = set()
        for _ in range(3):
            await runtime.look()
            reasons.add(runtime.status().reason)
        assert len(reasons) == 1, "else the edges would hear of a change at each look"


def test_every_server_has_its_words_in_the_document() -> None:
    page = (Path(__file__).parents[1] / "docs" / "runtimes.md").read_text()
    for dialect in DIALECTS:
        assert dialect.name in page and f"`{dialect.kind}`" in page
        assert all(str(urlsplit(place).port) in page for place in dialect.places)


# -- servers that need little ------------------------------------------------------------------------------------------


async def test_a_server_that_nothing_is_known_of() -> None:
    async with (
        FakeRuntime(server_header=None, models=["embedded-coder", "text-embed"]) as fake,
        running(runtime := ServerRuntime(fake.url)) as until,
    ):
        status = await until(is_ready)
        assert (runtime.kind, runtime.can_load, status.slots) == ("OpenAI-compatible server", False, 4)
        assert [(model.id, model.kind) for model in status.models] == [
            ("embedded-coder", "chat"),
            ("text-embed", "embedding"),
        ]
        assert status.apis == {"chat", "completions", "embeddings"}
        await read_all(runtime, ask("embedded-coder", top_k=5, repeat_penalty=1.1))
        assert fake.chats[0].json["top_k"] == 5
        assert not fake.chats[0].json.keys() & {"repeat_penalty", "repetition_penalty"}, "nobody knows its name"
        with pytest.raises(ApiError) as refused:
            await runtime.ask(Inference("embeddings", "text-embed", {"input": ["x"]}), REQUEST)
        assert refused.value.code == "not_supported"


async def test_mlx_is_told_by_its_header_and_gets_its_own_names() -> None:
    async with (
        FakeRuntime(server_header="BaseHTTP/0.6 Python/3.12") as fake,
        running(runtime := ServerRuntime(fake.url)) as until,
    ):
        await until(is_ready)
        assert runtime.kind == "mlx_lm"
        await read_all(runtime, ask(repeat_penalty=1.1, response_format={"type": "json_object"}))
        assert fake.chats[0].json["repetition_penalty"] == 1.1 and "response_format" not in fake.chats[0].json


async def test_docker_model_runner_is_told_by_its_path() -> None:
    routes = {"/engines/v1/models": {"object": "list", "data": [{"id": "ai/smollm2", "owned_by": "docker"}]}}
    async with (
        FakeRuntime(server_header=None, routes=routes) as fake,
        running(runtime := ServerRuntime(f"{fake.url}/engines/v1")) as until,
    ):
        status = await until(is_ready)
        assert (status.default_model, status.models[0].state) == ("ai/smollm2", "available"), "it tells of no load"
        assert runtime.kind == "Docker Model Runner"
        assert await find(places=[f"{fake.url}/engines/v1"]) is None, "nobody asked for what is on its disk"


@pytest.mark.parametrize(("name", "kind"), [("some-embed", "embedding"), ("some-reranker", "rerank")])
async def test_a_server_that_writes_no_text_is_ready_for_what_it_does(name: str, kind: str) -> None:
    async with FakeRuntime(server_header=None, models=[name]) as fake, running(ServerRuntime(fake.url)) as until:
        status = await until(is_ready)
        assert (status.default_model, [model.kind for model in status.models]) == (name, [kind])


async def test_auto_takes_no_server_that_writes_no_text() -> None:
    async with FakeLlamaRouter("rank", loaded=["rank"]) as router:
        router.args["rank"] = ["--reranking"]
        async with running(ServerRuntime(router.url)) as until:
            assert (await until(is_ready)).default_model == "rank"
        assert await find(places=[f"{router.url}/v1"]) is None


async def test_with_nothing_in_memory_the_default_is_the_one_of_before_the_restart() -> None:
    async with FakeLlamaRouter("a", "b", "c", loaded=["c"]) as router:
        async with running(ServerRuntime(router.url, earlier="b")) as until:
            assert (await until(is_ready)).default_model == "c", "what is in memory goes first"
        router.states["c"] = "unloaded"
        async with running(ServerRuntime(router.url, earlier="b")) as until:
            assert (await until(is_ready)).default_model == "b"
        async with running(ServerRuntime(router.url, earlier="gone")) as until:
            await until(is_unavailable)


@pytest.mark.parametrize("activated", [True, False], ids=["activated", "in memory before"])
async def test_a_restart_with_nothing_in_memory_serves_what_was_served(tmp_path: Path, activated: bool) -> None:
    async with FakeLlamaRouter("a", "b", loaded=["a"]) as router:
        async with running_pair(router.url, state=tmp_path) as pair:
            models = pair.node.services.models
            if activated:
                await models.activate("b", None)
            await models.unload("a")
            if not activated:
                await wait_until(lambda: (tmp_path / "node-models.json").exists())
                await wait_until(lambda: b'"default": "a"' in (tmp_path / "node-models.json").read_bytes())
        async with (
            running_pair(router.url, state=tmp_path) as pair,
            pair.post("/v1/chat/completions", question()) as response,
        ):
            assert response.status == 200, await response.text()
        assert router.chats[-1].json["model"] == ("b" if activated else "a")
