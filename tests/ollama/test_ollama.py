"""The node's way with a real Ollama: models in and out of memory, and answers in every form."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from node.runtime import Inference, LoadConfig, RuntimeStatus
from node.runtimes.server import ServerRuntime
from shared.contract.errors import ApiError
from tests.images import RED_SQUARE
from tests.logged import logged
from tests.ollama.conftest import WEATHER, WEATHER_CALL
from tests.ollama.server import OllamaServer
from tests.runtime_support import REQUEST, ask, is_ready, read_all, running, said

DEMO, TOOLS, SEEING, ENDLESS = "demo:latest", "tools:latest", "seeing:latest", "endless:latest"
VECTORS, BROKEN = "vectors:latest", "broken:latest"


def unheard(_: float | None) -> None:
    """For loads whose progress nobody watches: Ollama tells none."""


@asynccontextmanager
async def ready(ollama: OllamaServer) -> AsyncIterator[ServerRuntime]:
    """Ready, and told of every model what there is to tell: a machine that does other things may take two looks."""
    async with running(runtime := ServerRuntime(ollama.url)) as until:
        await until(lambda status: is_ready(status) and all(model.max_context for model in status.models))
        yield runtime


def chunks(raw: bytes) -> list[dict[str, Any]]:
    assert raw.endswith(b"data: [DONE]\n\n")
    return [json.loads(line[6:]) for line in raw.decode().splitlines() if line.startswith("data: {")]


def in_memory(status: RuntimeStatus) -> set[str]:
    return {model.id for model in status.models if model.state == "loaded"}


async def test_models_are_listed_with_what_it_tells_of_them(ollama: OllamaServer) -> None:
    async with ready(ollama) as runtime:
        status = runtime.status()
        assert runtime.kind == "Ollama"
        assert {model.id for model in status.models} == {DEMO, TOOLS, SEEING, ENDLESS, VECTORS, BROKEN}
        demo = status.model(DEMO)
    assert demo is not None and (demo.state, demo.kind, demo.max_context) == ("available", "chat", 1024)
    assert demo.size > 1_000_000 and not demo.vision
    assert "<|im_end|>" in runtime.special_tokens


async def test_an_answer_is_a_stream_as_of_any_other_runtime(ollama: OllamaServer) -> None:
    async with ready(ollama) as runtime:
        raw = await read_all(runtime, ask(DEMO, "Hello", max_tokens=12, temperature=0.0))
    found = chunks(raw)
    assert len({chunk["id"] for chunk in found}) == 1 and {chunk["model"] for chunk in found} == {DEMO}
    assert said(raw).strip()
    assert [chunk["choices"][0]["finish_reason"] for chunk in found if chunk["choices"]][-1] in ("stop", "length")
    assert found[-1]["choices"] == [] and found[-1]["usage"]["prompt_tokens"] > 0
    assert (
        found[-1]["usage"]["completion_tokens"]
        == found[-1]["usage"]["total_tokens"] - (found[-1]["usage"]["prompt_tokens"])
    )


async def test_the_longest_answer_is_kept_to_and_ids_differ(ollama: OllamaServer) -> None:
    async with ready(ollama) as runtime:
        answers = [chunks(await read_all(runtime, ask(ENDLESS, max_tokens=5))) for _ in range(2)]
    for found in answers:
        assert found[-1]["usage"]["completion_tokens"] == 5
        assert found[-2]["choices"][0]["finish_reason"] == "length"
    assert answers[0][0]["id"] != answers[1][0]["id"]


async def test_stops_of_a_caller_do_not_displace_the_models_own(ollama: OllamaServer) -> None:
    """Without its own, the template's marks would show in the answer, and it would go on behind them."""
    async with ready(ollama) as runtime:
        whole = said(await read_all(runtime, ask(DEMO, "Hello", max_tokens=40, temperature=0.0)))
        word = whole.split()[1]
        cut = said(await read_all(runtime, ask(DEMO, "Hello", max_tokens=40, temperature=0.0, stop=[word])))
        same = said(await read_all(runtime, ask(DEMO, "Hello", max_tokens=40, temperature=0.0, stop=["%%%"])))
    assert word not in cut and whole.startswith(cut.rstrip())
    assert same == whole


async def test_a_schema_shapes_the_answer(ollama: OllamaServer) -> None:
    schema = {"type": "object", "properties": {"sunny": {"type": "boolean"}}, "required": ["sunny"]}
    form = {"type": "json_schema", "json_schema": {"name": "weather", "schema": schema}}
    async with ready(ollama) as runtime:
        raw = await read_all(runtime, ask(DEMO, max_tokens=64, temperature=0.0, response_format=form))
    assert set(json.loads(said(raw))) == {"sunny"}


async def test_a_call_of_a_tool(ollama: OllamaServer) -> None:
    async with ready(ollama) as runtime:
        asked = ask(TOOLS, "Weather?", max_tokens=64, temperature=0.0, response_format=WEATHER_CALL, tools=[WEATHER])
        found = chunks(await read_all(runtime, asked))
        calls = [
            call for chunk in found for choice in chunk["choices"] for call in choice["delta"].get("tool_calls", ())
        ]
        assert [call["function"] for call in calls] == [{"name": "get_weather", "arguments": '{"city":"Oslo"}'}]
        assert found[-2]["choices"][0]["finish_reason"] == "tool_calls"
        told = {"role": "tool", "tool_call_id": calls[0]["id"], "content": "sunny"}
        said_so = {"role": "assistant", "content": None, "tool_calls": [calls[0]]}
        turn = [{"role": "user", "content": "Weather?"}, said_so, told]
        again = Inference("chat", TOOLS, {"messages": turn}, 4, {"tools": [WEATHER]})
        assert chunks(await read_all(runtime, again))[-1]["usage"]["completion_tokens"] >= 1


async def test_tools_for_a_model_that_has_none_are_refused_in_a_sentence(ollama: OllamaServer) -> None:
    async with ready(ollama) as runtime:
        with pytest.raises(ApiError, match="no way to call tools") as caught:
            await read_all(runtime, ask(DEMO, tools=[WEATHER]))
    assert (caught.value.code, caught.value.param) == ("invalid_request", "tools")


async def test_an_image_is_seen(ollama: OllamaServer) -> None:
    image = {"type": "image_url", "image_url": {"url": RED_SQUARE}}
    async with ready(ollama) as runtime:
        found = runtime.status().model(SEEING)
        assert found is not None and found.vision
        prompts = []
        for parts in ([], [image]):
            content = [{"type": "text", "text": "What is this?"}, *parts]
            asked = Inference("chat", SEEING, {"messages": [{"role": "user", "content": content}]}, 2)
            prompts.append(chunks(await read_all(runtime, asked))[-1]["usage"]["prompt_tokens"])
    assert prompts[1] > prompts[0]  # it counts as tokens


async def test_text_is_completed_without_a_template(ollama: OllamaServer) -> None:
    async with ready(ollama) as runtime:
        asked = Inference("completions", DEMO, {"prompt": "The weather"}, 6, {"temperature": 0.0})
        found = chunks(await read_all(runtime, asked))
    assert {chunk["object"] for chunk in found} == {"text_completion"}
    assert "".join(choice["text"] for chunk in found for choice in chunk["choices"]).strip()
    usage = found[-1]["usage"]
    assert usage["prompt_tokens"] <= 4 and usage["completion_tokens"] <= 6  # no marks of a template


async def test_embeddings(ollama: OllamaServer) -> None:
    async with ready(ollama) as runtime:
        answer = await runtime.ask(Inference("embeddings", DEMO, {"input": ["Hello", "you"]}), REQUEST)
        assert [len(item["embedding"]) for item in answer["data"]] == [192, 192]
        assert [item["index"] for item in answer["data"]] == [0, 1]
        assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] > 0
        with pytest.raises(ApiError) as caught:
            await runtime.ask(Inference("embeddings", DEMO, {"input": ["word " * 3000]}), REQUEST)
    assert caught.value.code == "context_length_exceeded"


async def test_a_model_that_makes_embeddings_only_is_loaded_too(ollama: OllamaServer) -> None:
    """Asked for no text at all, as others are loaded, it would refuse."""
    async with ready(ollama) as runtime:
        found = runtime.status().model(VECTORS)
        assert found is not None and found.kind == "embedding"
        await runtime.load(VECTORS, LoadConfig(context_length=256), unheard)
        assert ollama.loaded() == {VECTORS: 256}
        answer = await runtime.ask(Inference("embeddings", VECTORS, {"input": ["Hello"]}), REQUEST)
        assert len(answer["data"]) == 1 and ollama.loaded() == {VECTORS: 256}
        await runtime.unload(VECTORS)
        assert ollama.loaded() == {}


# -- models in memory -------------------------------------------------------------------------------------------------


async def test_a_load_applies_its_configuration_and_later_requests_keep_it(ollama: OllamaServer) -> None:
    """Ollama loads a model anew for a request that says another context, or none."""
    async with ready(ollama) as runtime:
        config = LoadConfig(context_length=512, gpu_ratio=0.0, cpu_threads=1, rope_frequency_base=5000.0)
        loaded = await runtime.load(DEMO, config, unheard)
        assert loaded.applied == ("context_length", "gpu_ratio", "cpu_threads")
        assert loaded.ignored == ("rope_frequency_base",) and "ollama create" in loaded.workflow[1]
        found = runtime.status().model(DEMO)
        assert found is not None and (found.state, found.context) == ("loaded", 512)
        loads = ollama.loads
        assert loads
        await read_all(runtime, ask(DEMO, max_tokens=2))
        await runtime.ask(Inference("embeddings", DEMO, {"input": ["Hello"]}), REQUEST)
        await read_all(runtime, Inference("completions", DEMO, {"prompt": "a"}, 2))
        assert ollama.loaded() == {DEMO: 512} and ollama.loads == loads


async def test_a_model_in_memory_keeps_the_context_that_somebody_else_gave_it(ollama: OllamaServer) -> None:
    ollama.ask("/api/generate", {"model": DEMO, "options": {"num_ctx": 384}})
    async with ready(ollama) as runtime:
        loads = ollama.loads
        await read_all(runtime, ask(DEMO, max_tokens=2))
        await runtime.load(DEMO, LoadConfig(), unheard)
    assert ollama.loaded() == {DEMO: 384} and ollama.loads == loads


async def test_loading_another_model_takes_the_place_of_the_first(ollama: OllamaServer) -> None:
    async with ready(ollama) as runtime:
        for model in (DEMO, ENDLESS):
            await runtime.load(model, LoadConfig(), unheard)
            assert set(ollama.loaded()) == {model}
            # ``tools`` has the weights of ``demo``, and Ollama one runner for both.
            assert in_memory(runtime.status()) == ({DEMO, TOOLS} if model == DEMO else {model})


async def test_models_of_the_same_weights_share_a_runner(ollama: OllamaServer) -> None:
    async with ready(ollama) as runtime:
        await runtime.load(DEMO, LoadConfig(context_length=512), unheard)
        loads = ollama.loads
        await read_all(runtime, ask(TOOLS, max_tokens=2))
        await read_all(runtime, ask(DEMO, max_tokens=2))
        assert ollama.loads == loads and ollama.loaded() == {DEMO: 512}
        await runtime.unload(TOOLS)
        assert ollama.loaded() == {}


async def test_two_loads_at_once_make_one_runner(ollama: OllamaServer) -> None:
    async with ready(ollama) as runtime:
        loads = ollama.loads
        await asyncio.gather(*(runtime.load(DEMO, LoadConfig(), unheard) for _ in range(2)))
        assert ollama.loads == loads + 1


async def test_a_load_that_fails_leaves_the_others_answering(ollama: OllamaServer) -> None:
    async with ready(ollama) as runtime:
        await runtime.load(DEMO, LoadConfig(context_length=256), unheard)
        with pytest.raises(ApiError, match="could not load") as caught:
            await runtime.load(BROKEN, LoadConfig(), unheard)
        assert caught.value.code == "runtime_error"
        assert ollama.loaded() == {DEMO: 256}
        assert said(await read_all(runtime, ask(DEMO, "Hello", max_tokens=8))).strip()


async def test_unloading(ollama: OllamaServer) -> None:
    async with ready(ollama) as runtime:
        await runtime.load(DEMO, LoadConfig(), unheard)
        for _ in range(2):  # a model that is not there is no mistake
            await runtime.unload(DEMO)
            assert ollama.loaded() == {} and in_memory(runtime.status()) == set()
        assert is_ready(runtime.status())  # it is loaded again when it is named


async def test_leaving_frees_the_runner(ollama: OllamaServer) -> None:
    """It answers one at a time: the second request would wait for a million tokens of noise."""
    async with ready(ollama) as runtime:
        async with runtime.stream(ask(ENDLESS, max_tokens=1_000_000), REQUEST) as stream:
            assert await stream.read()
        async with asyncio.timeout(60):
            assert chunks(await read_all(runtime, ask(ENDLESS, max_tokens=2)))


async def test_a_conversation_of_which_ollama_left_out_the_oldest_is_logged(ollama: OllamaServer) -> None:
    """runtimes §4.4: it says nothing of it."""
    long = [{"role": "user", "content": "hello " * 300}, {"role": "user", "content": "hello " * 8}]
    async with ready(ollama) as runtime:
        await runtime.load(DEMO, LoadConfig(context_length=256), unheard)
        with logged() as lines:
            found = chunks(await read_all(runtime, Inference("chat", DEMO, {"messages": long}, 2)))
    assert found[-1]["usage"]["prompt_tokens"] < 256
    assert any("left out the oldest messages" in line for line in lines)
    assert not any("hello" in line for line in lines)


@pytest.mark.parametrize("words", [300, 1000])
async def test_a_message_that_does_not_fit_is_an_error(ollama: OllamaServer, words: int) -> None:
    """Of 300 words Ollama reads what fits, which shows in its count; 1000 are not even sent."""
    async with ready(ollama) as runtime:
        await runtime.load(DEMO, LoadConfig(context_length=256), unheard)
        with pytest.raises(ApiError) as caught:
            await read_all(runtime, ask(DEMO, "hello " * words, max_tokens=2))
    assert caught.value.code == "context_length_exceeded"
