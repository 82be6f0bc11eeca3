"""What each kind of server says of its models, what the node makes of it, and which one ``auto`` takes."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from node.runtimes import create
from node.runtimes.detect import AutoRuntime, find
from node.runtimes.embedded import EmbeddedRuntime
from node.runtimes.openai import OpenAIRuntime
from shared.settings import RuntimeSettings
from tests.fake_runtime import Exchange, FakeRuntime
from tests.fake_scripts import normal, text
from tests.runtime_support import ask, is_ready, is_unavailable, read_all, running, said

LM_STUDIO = {
    "/api/v1/models": {
        "models": [
            {
                "type": "llm",
                "key": "qwen",
                "loaded_instances": [{"id": "qwen", "config": {"context_length": 8192, "parallel": 3}}],
            },
            {"type": "llm", "key": "gemma", "loaded_instances": []},
            {"type": "embedding", "key": "embed", "loaded_instances": []},
        ]
    }
}
NOT_LOADED = {
    "/api/v1/models": {
        "models": [
            {"type": "llm", "key": "qwen", "loaded_instances": []},
            {"type": "llm", "key": "gemma", "loaded_instances": []},
        ]
    }
}
OLLAMA = {
    "/api/version": {"version": "0.33.1"},
    "/api/tags": {
        "models": [
            {"name": "small:latest", "capabilities": ["completion"]},
            {"name": "big:latest"},
            {"name": "vectors:latest", "capabilities": ["embedding"]},
            {"name": "huge:cloud", "remote_host": "https://example.com"},
        ]
    },
    "/api/ps": {"models": [{"name": "big:latest", "context_length": 4096}]},
}
OLLAMA_MODELS = ["small:latest", "big:latest", "vectors:latest", "huge:cloud"]


def lm_studio(routes: dict[str, Any] | None = None, **more: Any) -> FakeRuntime:
    more.setdefault("models", ["qwen", "gemma", "embed"])
    return FakeRuntime(server_header=None, routes=routes or LM_STUDIO, **more)


def ollama(**more: Any) -> FakeRuntime:
    more.setdefault("models", OLLAMA_MODELS)
    return FakeRuntime(server_header=None, routes=OLLAMA, **more)


async def test_lm_studio_loaded_model_context_and_parallel() -> None:
    async with lm_studio() as fake, running(runtime := OpenAIRuntime(fake.url)) as until:
        status = await until(is_ready)
        assert (runtime.kind, status.slots, status.default_model) == ("LM Studio", 3, "qwen")
        assert [(model.id, model.context) for model in status.models] == [("qwen", 8192), ("gemma", 0)]


async def test_lm_studio_without_a_loaded_model_says_how_to_load_one() -> None:
    async with lm_studio(NOT_LOADED) as fake, running(OpenAIRuntime(fake.url)) as until:
        reason = (await until(is_unavailable)).reason
        assert "lms load qwen" in reason and "gemma" in reason and "default_model" in reason


async def test_lm_studio_loads_on_demand_what_the_owner_named() -> None:
    async with lm_studio(NOT_LOADED) as fake, running(OpenAIRuntime(fake.url, default_model="gemma")) as until:
        assert (await until(is_ready)).default_model == "gemma"


async def test_lm_studio_keeps_its_model_when_it_was_unloaded_for_idling() -> None:
    async with lm_studio() as fake, running(runtime := OpenAIRuntime(fake.url)) as until:
        await until(is_ready)
        fake.routes.update(NOT_LOADED)
        await until(lambda status: status.model("qwen") is not None and status.models[0].context == 0)
        assert runtime.status().state == "ready"


async def test_first_requests_for_a_model_that_is_not_loaded_go_one_by_one() -> None:
    script = normal(3, prefill=0.1)
    async with (
        lm_studio(NOT_LOADED, script=script) as fake,
        running(runtime := OpenAIRuntime(fake.url, default_model="qwen")) as until,
    ):
        await until(is_ready)
        first_head = asyncio.Event()

        async def held(exchange: Exchange) -> None:
            await first_head.wait()
            await script(exchange)

        fake.script = [held, script]
        answers = [asyncio.create_task(read_all(runtime, ask("qwen"))) for _ in range(3)]
        await fake.chat(0)
        await asyncio.sleep(0.1)
        assert len(fake.chats) == 1
        first_head.set()
        assert {said(answer) for answer in await asyncio.gather(*answers)} == {text(3)}


async def test_ollama_lists_local_chat_models_and_prefers_the_loaded_one() -> None:
    async with ollama() as fake, running(runtime := OpenAIRuntime(fake.url)) as until:
        status = await until(is_ready)
        assert (runtime.kind, status.slots, status.default_model) == ("Ollama", 1, "big:latest")
        assert [(model.id, model.context) for model in status.models] == [("big:latest", 4096), ("small:latest", 0)]


async def test_ollama_names_without_tag() -> None:
    async with ollama() as fake, running(OpenAIRuntime(fake.url, default_model="small")) as until:
        assert (await until(is_ready)).default_model == "small:latest"


async def test_ollama_without_models_says_pull() -> None:
    routes = {**OLLAMA, "/v1/models": {"object": "list", "data": None}, "/api/tags": {"models": []}}
    async with FakeRuntime(server_header=None, routes=routes) as fake, running(OpenAIRuntime(fake.url)) as until:
        assert "ollama pull" in (await until(is_unavailable)).reason


async def test_ollama_streams_get_ids_of_their_own() -> None:
    async def ollama_ids(exchange: Exchange) -> None:
        await exchange.start_stream()
        body = b'data: {"id":"chatcmpl-7","choices":[{"delta":{"content":"x"}}]}\n\n' * 2 + b"data: [DONE]\n\n"
        for start in range(0, len(body), 5):
            await exchange.send(body[start : start + 5])
        await exchange.end_stream()

    async with ollama(script=ollama_ids) as fake, running(runtime := OpenAIRuntime(fake.url)) as until:
        await until(is_ready)
        ids = []
        for _ in range(2):
            raw = await read_all(runtime, ask("big:latest"))
            events = [json.loads(line[6:]) for line in raw.decode().splitlines() if line.startswith("data: {")]
            assert raw.endswith(b"data: [DONE]\n\n") and len(events) == 2
            ids.append({event["id"] for event in events})
        assert len(ids[0] | ids[1]) == 2


async def test_llama_cpp_router_with_nothing_loaded() -> None:
    items = [{"id": name, "status": {"value": "unloaded"}} for name in ("a", "b")]
    routes = {"/v1/models": {"data": items}}
    async with FakeRuntime(routes=routes) as fake, running(OpenAIRuntime(fake.url)) as until:
        assert "Load one of a, b" in (await until(is_unavailable)).reason
        items[1]["status"] = {"value": "loaded"}
        assert (await until(is_ready)).default_model == "b"


async def test_vllm_context_and_clamped_answer() -> None:
    routes = {"/v1/models": {"data": [{"id": "m", "owned_by": "vllm", "max_model_len": 100}]}}
    async with (
        FakeRuntime(server_header=None, routes=routes) as fake,
        running(runtime := OpenAIRuntime(fake.url)) as until,
    ):
        assert (await until(is_ready)).models[0].context == 100
        await read_all(runtime, ask("m", "x" * 200))
        assert fake.chats[0].json["max_tokens"] == 100 - 200 // 3 - 8
        assert "return_progress" not in fake.chats[0].json


# -- auto -------------------------------------------------------------------------------------------------------------


async def test_auto_takes_a_runtime_with_a_model_loaded() -> None:
    async with lm_studio(NOT_LOADED) as empty, FakeRuntime() as full:
        places = [f"{empty.url}/v1", "http://127.0.0.1:1/v1", f"{full.url}/v1"]
        assert await find(places=places) == f"{full.url}/v1"
        runtime = AutoRuntime(OpenAIRuntime, lambda: EmbeddedRuntime(None), places=places)
        assert runtime.status().state == "starting"
        async with running(runtime) as until:
            await until(is_ready)
            assert runtime.kind == "llama.cpp"
            assert said(await read_all(runtime, ask())) == text(5)


async def test_auto_falls_back_to_embedded_and_never_asks_our_own_ports() -> None:
    async with FakeRuntime() as ours:
        places = [f"{ours.url}/v1"]
        assert await find(places=places) == places[0]
        ours.exchanges.clear()
        runtime = AutoRuntime(OpenAIRuntime, lambda: EmbeddedRuntime(None), own_ports=[ours.port], places=places)
        async with running(runtime) as until:
            assert "--model PATH" in (await until(is_unavailable)).reason
            assert runtime.kind == "embedded" and not ours.exchanges


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
        ({"url": "http://127.0.0.1:1234"}, OpenAIRuntime),
        ({"kind": "openai", "url": "http://127.0.0.1:1234", "key": "k"}, OpenAIRuntime),
        ({"kind": "embedded", "url": "http://127.0.0.1:1234"}, EmbeddedRuntime),
    ],
)
def test_create_follows_the_settings(settings: dict[str, Any], kind: type) -> None:
    assert type(create(RuntimeSettings(**settings))) is kind
