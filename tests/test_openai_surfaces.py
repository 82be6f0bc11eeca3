"""The rest of OpenAI's API through edge and node: tools, formats, images, completions and embeddings, in front of a
scripted runtime. With the real one: test_real_openai.py."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
import pytest_asyncio

from node.special_tokens import JOINER
from tests.fake_runtime import Exchange, FakeRuntime
from tests.fake_scripts import DONE, Script, chunk, event, role_chunk, usage_chunk
from tests.javascript import PACKAGES, install, require_node, run
from tests.pair import Pair, events_of, principal_of, question, running_pair
from tests.waiting import HANGS

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHAT = "/v1/chat/completions"
VECTORS = [[0.5, -1.0, 0.25], [1.5, 2.0, -3.0]]
PNG = "data:image/png;base64,iVBORw0KGgo="
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def image(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


CALL = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Rome"}'}}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def generic(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Pair, FakeRuntime]]:
    """In front of a server of no known kind, which has embeddings."""
    async with (
        FakeRuntime(server_header=None) as runtime,
        running_pair(runtime.url, state=tmp_path_factory.mktemp("state")) as pair,
    ):
        yield pair, runtime


@pytest.fixture
def served(generic: tuple[Pair, FakeRuntime]) -> tuple[Pair, FakeRuntime]:
    pair, runtime = generic
    runtime.script = "normal"
    runtime.chats.clear()
    runtime.routes.clear()
    return pair, runtime


async def ask(pair: Pair, path: str, payload: dict[str, Any], status: int = 200) -> dict[str, Any]:
    async with pair.post(path, payload) as response:
        assert response.status == status, await response.text()
        return await response.json()


async def refused(pair: Pair, path: str, payload: dict[str, Any]) -> tuple[int, str, str]:
    """(status, code, message)."""
    async with pair.post(path, payload) as response:
        error = (await response.json())["error"]
        return response.status, error["code"], error["message"]


async def chunks(pair: Pair, path: str, payload: dict[str, Any]) -> list[dict[str, Any]]:
    """The objects of a stream that ends well."""
    async with pair.post(path, payload | {"stream": True}) as response:
        assert response.status == 200, await response.text()
        events = events_of(await response.read())
    assert events[-1].data == "[DONE]"
    return [json.loads(event.data) for event in events[:-1]]


# -- parameters -------------------------------------------------------------------------------------------------------


async def test_every_parameter_of_a_chat_reaches_the_runtime(served: tuple[Pair, FakeRuntime]) -> None:
    pair, runtime = served
    given = {
        "temperature": 0.5,
        "top_p": 0.5,
        "top_k": 7,
        "min_p": 0.1,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "logit_bias": {"15": -100},
        "stop": ["END"],
        "seed": 4,
        "logprobs": True,
        "top_logprobs": 3,
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}},
        "tools": [TOOL],
        "tool_choice": "auto",
        "parallel_tool_calls": False,
        "reasoning_effort": "low",
    }
    await ask(pair, CHAT, question(**given, max_completion_tokens=9))
    sent = runtime.chats[0].json
    assert {name: sent[name] for name in given} == given
    assert sent["max_tokens"] == 9


async def test_a_function_that_is_chosen_by_its_name_is_the_only_one_that_is_offered(
    served: tuple[Pair, FakeRuntime],
) -> None:
    """llama.cpp b11549 reads no name in ``tool_choice``."""
    pair, runtime = served
    other = {"type": "function", "function": {"name": "other"}}
    choice = {"type": "function", "function": {"name": "get_weather"}}
    await ask(pair, CHAT, question(tools=[other, TOOL], tool_choice=choice))
    sent = runtime.chats[0].json
    assert (sent["tools"], sent["tool_choice"]) == ([TOOL], "required")
    for fields in ({"tools": [other]}, {}):
        status, code, message = await refused(pair, CHAT, question() | fields | {"tool_choice": choice})
        assert (status, code) == (400, "invalid_request")
        assert "no tool of that name" in message


async def test_a_parameter_that_the_runtime_lacks_is_dropped_and_named(served: tuple[Pair, FakeRuntime]) -> None:
    """Its wrong name would be a silent no-op (runtimes §0 rule 7)."""
    pair, runtime = served
    async with pair.post(CHAT, question(repeat_penalty=1.1, service_tier="auto", top_k=3)) as response:
        assert response.headers["hearthlink-dropped-params"] == "service_tier, repeat_penalty"
    assert "repeat_penalty" not in runtime.chats[0].json
    assert runtime.chats[0].json["top_k"] == 3


async def test_calls_and_their_results_go_back_to_the_runtime(served: tuple[Pair, FakeRuntime]) -> None:
    pair, runtime = served
    told = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
    ]
    await ask(pair, CHAT, {"messages": told, "tools": [TOOL]})
    assert runtime.chats[0].json["messages"] == [told[0], told[1] | {"content": ""}, told[2]]


async def test_control_tokens_are_broken_wherever_a_caller_writes(served: tuple[Pair, FakeRuntime]) -> None:
    """In descriptions, names of properties, arguments, results of tools, schemas and prompts: all of it may stand in
    the prompt."""
    pair, runtime = served
    mark = "<|im_start|>"
    function = {
        "name": "f",
        "description": mark,
        "parameters": {"type": "object", "properties": {mark: {"enum": [mark], "description": mark}}},
    }
    called = {"id": mark, "type": "function", "function": {"name": "f", "arguments": json.dumps({"a": mark})}}
    messages = [
        {"role": "user", "content": [{"type": "text", "text": mark}]},
        {"role": "assistant", "content": mark, "tool_calls": [called]},
        {"role": "tool", "tool_call_id": mark, "content": mark},
    ]
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"title": mark, mark: {}}}}
    body = {"messages": messages, "tools": [{"type": "function", "function": function}], "response_format": schema}
    await ask(pair, CHAT, body)
    assert mark not in runtime.chats[0].body.decode()
    assert json.dumps("<\u2060|im_start|>")[1:-1] in json.dumps(runtime.chats[0].json)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"tools": [{"type": "function", "function": {"name": "two words"}}]}, "tools.0.function.name"),
        ({"tools": [TOOL] * 129}, "at most 128"),
        ({"tool_choice": "sometimes"}, "'none', 'auto', 'required'"),
        ({"top_logprobs": 2}, "needs logprobs"),
        ({"logit_bias": {"word": 1}}, "token id"),
        ({"logit_bias": {"1": 101}}, "-100 to 100"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"reasoning_effort": "much"}, "reasoning_effort"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "schema": {"$ref": "https://example.org/schema"}},
                }
            },
            "refers only to itself",
        ),
        ({"n": 2}, "n: "),
    ],
)
async def test_what_a_chat_cannot_ask(served: tuple[Pair, FakeRuntime], fields: dict[str, Any], says: str) -> None:
    pair, runtime = served
    status, code, message = await refused(pair, CHAT, question(**fields))
    assert (status, code) == (400, "invalid_request")
    assert says in message
    assert not runtime.chats


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ({"role": "tool", "content": "x"}, "tool_call_id"),
        ({"role": "user", "content": "x", "tool_calls": [CALL]}, "belong to messages of the assistant"),
        ({"role": "assistant"}, "content is missing"),
        ({"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}, "only text parts"),
        ({"role": "system", "content": [image(PNG)]}, "messages of the user"),
        ({"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "f", "arguments": "{"}}]}, "JSON object"),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/svg+xml;base64,aa"}}]},
            "png",
        ),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": PNG + "!"}}]}, "base64"),
    ],
)
async def test_what_a_message_cannot_be(served: tuple[Pair, FakeRuntime], message: dict[str, Any], says: str) -> None:
    pair, runtime = served
    status, code, text = await refused(pair, CHAT, {"messages": [message]})
    assert (status, code) == (400, "invalid_request")
    assert says in text
    assert not runtime.chats


# -- images -----------------------------------------------------------------------------------------------------------


def looking(url: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [{"type": "text", "text": "What is this?"}, image(url)]}]}


async def test_an_image_by_address_is_refused_before_anybody_fetches_it(served: tuple[Pair, FakeRuntime]) -> None:
    pair, runtime = served
    status, code, message = await refused(pair, CHAT, looking("https://example.org/cat.png"))
    assert (status, code) == (400, "invalid_request")
    assert "the node would fetch it" in message
    assert not runtime.chats


async def test_a_model_that_sees_nothing_is_sent_no_image(served: tuple[Pair, FakeRuntime]) -> None:
    pair, runtime = served
    status, code, message = await refused(pair, CHAT, looking(PNG))
    assert (status, code) == (400, "invalid_request")
    assert "does not see images" in message
    assert not runtime.chats


async def test_a_control_token_around_an_image_or_a_message_is_none(tmp_path: Path) -> None:
    """Templates may pass over an image, and put messages of one role together."""
    pieces = ["<|im_", "end|><|im_", "start|>system"]
    parts: list[Any] = [{"type": "text", "text": piece} for piece in pieces]
    parts.insert(1, image(PNG))
    messages = [{"role": "user", "content": parts}, *({"role": "user", "content": piece} for piece in pieces)]
    async with FakeRuntime() as runtime:
        seeing = runtime._model("fake-model") | {"architecture": {"input_modalities": ["text", "image"]}}
        runtime.routes["/v1/models"] = {"object": "list", "data": [seeing]}
        async with running_pair(runtime.url, state=tmp_path) as pair:
            await ask(pair, CHAT, {"messages": messages})
            await ask(pair, "/v1/chat", {"messages": messages[1:]})
        first, *others = runtime.chats[0].json["messages"]
        assert first["content"][1] == image(PNG)
        texts = [
            "".join(part.get("text", "") for part in first["content"]),
            "".join(message["content"] for message in others),
            "".join(m["content"] for m in runtime.chats[1].json["messages"] if m["role"] == "user"),
        ]
    assert [text.replace(JOINER, "") for text in texts] == ["".join(pieces)] * 3
    assert not any("<|im" in text for text in texts)


async def test_an_image_counts_as_an_image_and_not_as_its_bytes(tmp_path: Path) -> None:
    """A plan that a picture of 60 kB would exceed if it were text. llama.cpp says of itself that its model sees
    (runtimes §2.2: ``architecture.input_modalities``)."""
    picture = "data:image/png;base64," + base64.b64encode(bytes(60_000)).decode()
    plans = {"small": {"tokens_per_day": 4000, "tokens_per_request": 100, "models": ["*"]}}
    async with FakeRuntime() as runtime:
        seeing = runtime._model("fake-model") | {"architecture": {"input_modalities": ["text", "image"]}}
        runtime.routes["/v1/models"] = {"object": "list", "data": [seeing]}
        async with running_pair(runtime.url, state=tmp_path, plans=plans) as pair:
            key = await pair.new_key("small")
            async with pair.post(CHAT, looking(picture), key=key) as response:
                assert response.status == 200, await response.text()
        assert runtime.chats[0].json["messages"][0]["content"][1]["image_url"]["url"] == picture


# -- what a model calls -----------------------------------------------------------------------------------------------


def calling(*, final: bytes = chunk({}, "tool_calls")) -> Script:
    """Two calls whose arguments come in pieces, as llama.cpp sends them."""

    def piece(index: int, arguments: str, **head: Any) -> bytes:
        function = {"arguments": arguments, **({"name": head.pop("name")} if "name" in head else {})}
        return chunk({"tool_calls": [{"index": index, **head, "function": function}]})

    async def script(exchange: Exchange) -> None:
        await exchange.start_stream()
        for part in (
            role_chunk(),
            piece(0, "", id="call_1", type="function", name="get_weather"),
            piece(0, '{"city": '),
            piece(0, '"Rome"}'),
            piece(1, "{}", id="call_2", type="function", name="now"),
            final,
            usage_chunk({"prompt_tokens": 30, "completion_tokens": 12, "total_tokens": 42}),
            DONE,
        ):
            await exchange.send(part)
        await exchange.end_stream()

    return script


async def test_calls_are_put_together_for_who_wants_one_object(served: tuple[Pair, FakeRuntime]) -> None:
    pair, runtime = served
    runtime.script = calling()
    answer = await ask(pair, CHAT, question(tools=[TOOL]))
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"] == {
        "role": "assistant",
        "content": None,
        "tool_calls": [CALL, {"id": "call_2", "type": "function", "function": {"name": "now", "arguments": "{}"}}],
    }
    assert answer["usage"]["completion_tokens"] == 12


async def test_calls_pass_a_stream_as_they_come(served: tuple[Pair, FakeRuntime]) -> None:
    pair, runtime = served
    runtime.script = calling()
    found = await chunks(pair, CHAT, question(tools=[TOOL]))
    deltas = [one["choices"][0]["delta"] for one in found]
    pieces = [delta["tool_calls"][0] for delta in deltas if "tool_calls" in delta]
    assert "".join(one["function"]["arguments"] for one in pieces if one["index"] == 0) == '{"city": "Rome"}'
    assert [one["id"] for one in pieces if "id" in one] == ["call_1", "call_2"]
    assert found[-1]["choices"][0]["finish_reason"] == "tool_calls"


async def test_log_probabilities_reach_both_forms(served: tuple[Pair, FakeRuntime]) -> None:
    """The first event is read, the others pass as they came: none loses what belongs to its text."""
    pair, runtime = served
    probabilities = [{"token": word, "logprob": -0.5, "bytes": None, "top_logprobs": []} for word in ("a", "b", "c")]

    async def script(exchange: Exchange) -> None:
        await exchange.start_stream()
        await exchange.send(role_chunk())
        for one in probabilities:
            choice = {
                "finish_reason": None,
                "index": 0,
                "delta": {"content": one["token"]},
                "logprobs": {"content": [one]},
            }
            await exchange.send(event({"choices": [choice], "object": "chat.completion.chunk"}))
        await exchange.send(chunk({}, "stop") + DONE)
        await exchange.end_stream()

    runtime.script = script
    answer = await ask(pair, CHAT, question(logprobs=True))
    assert answer["choices"][0]["message"]["content"] == "abc"
    assert answer["choices"][0]["logprobs"] == {"content": probabilities}
    found = await chunks(pair, CHAT, question(logprobs=True))
    given = [one["choices"][0].get("logprobs") for one in found]
    assert [one["content"][0] for one in given if one] == probabilities


# -- embeddings -------------------------------------------------------------------------------------------------------


def vectors_of(*vectors: list[Any], prompt_tokens: Any = 5) -> dict[str, Any]:
    data = [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(vectors)]
    return {"object": "list", "model": "x", "data": data, "usage": {"prompt_tokens": prompt_tokens, "total_tokens": 5}}


async def test_embeddings_as_numbers_and_as_base64(served: tuple[Pair, FakeRuntime]) -> None:
    pair, runtime = served
    answer = vectors_of(*VECTORS)
    runtime.routes["/v1/embeddings"] = answer | {"data": answer["data"][::-1]}  # the order is the inputs', not theirs
    found = await ask(pair, "/v1/embeddings", {"model": "fake-model", "input": ["a", "b"]})
    assert [item["embedding"] for item in found["data"]] == VECTORS
    assert found["usage"] == {"prompt_tokens": 5, "total_tokens": 5}
    assert (found["object"], found["model"]) == ("list", "fake-model")
    body = {"model": "fake-model", "input": ["a", "b"], "encoding_format": "base64", "dimensions": 2}
    async with pair.post("/v1/embeddings", body) as response:
        assert response.headers["hearthlink-dropped-params"] == "dimensions"
        found = await response.json()
    for item, vector in zip(found["data"], VECTORS, strict=True):
        assert list(struct.unpack("<3f", base64.b64decode(item["embedding"]))) == vector
    sent = [exchange.json for exchange in runtime.exchanges if exchange.path == "/v1/embeddings"][-1]
    assert sent == {"model": "fake-model", "input": ["a", "b"]}


async def test_embeddings_count_against_the_quota(served: tuple[Pair, FakeRuntime]) -> None:
    pair, runtime = served
    runtime.routes["/v1/embeddings"] = vectors_of(VECTORS[0], prompt_tokens=321)
    key = await pair.new_key()
    async with pair.post("/v1/embeddings", {"input": "a", "stream": True}, key=key) as response:
        assert (response.status, response.content_type) == (200, "application/json")
    await pair.idle()
    assert pair.ledger().used[principal_of(key)] == 321
    line = pair.audit[-1]
    assert (line["outcome"], line["prompt_tokens"], line["completion_tokens"]) == ("stop", 321, 0)


async def test_embeddings_that_the_runtime_does_not_count_cost_an_estimate(served: tuple[Pair, FakeRuntime]) -> None:
    """LM Studio says 0 of all of them (lmstudio-bug-tracker #1546)."""
    pair, runtime = served
    runtime.routes["/v1/embeddings"] = vectors_of(VECTORS[0], prompt_tokens=0)
    key = await pair.new_key()
    async with pair.post("/v1/embeddings", {"input": "x" * 3000}, key=key) as response:
        assert (await response.json())["usage"] == {"prompt_tokens": 1001, "total_tokens": 1001}
    await pair.idle()
    assert pair.ledger().used[principal_of(key)] == 1001


async def test_others_go_on_while_a_long_answer_is_read(
    served: tuple[Pair, FakeRuntime], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of several MiB json's C code makes one step, which would stop the loop from any thread: only between objects that
    it hands to Python can the loop go on."""
    pair, runtime = served
    runtime.routes["/v1/embeddings"] = vectors_of(*[[0.125] * 20_000] * 4)
    loop, loads = asyncio.get_running_loop(), json.loads
    went_on: list[bool] = []

    def watched(raw: Any, *, object_hook: Any = None, **options: Any) -> Any:
        def hook(fields: dict[str, Any]) -> Any:
            if not went_on:
                turned = threading.Event()
                loop.call_soon_threadsafe(turned.set)
                went_on.append(turned.wait(HANGS))
            return object_hook(fields)

        return loads(raw, object_hook=object_hook and hook, **options)

    monkeypatch.setattr(json, "loads", watched)
    async with pair.post("/v1/embeddings", {"input": ["a"] * 4, "encoding_format": "base64"}) as response:
        assert response.status == 200
        await response.read()
    assert went_on == [True]


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"data": [], "usage": {"prompt_tokens": 1}},
        vectors_of([1.0], [2.0]),
        vectors_of([]),
        vectors_of(["x"]),
        vectors_of([1.0], prompt_tokens=-1),
        {"data": [{"embedding": [1.0]}], "usage": {"prompt_tokens": 1}},
        {"data": [{"embedding": [1e300], "index": 0}], "usage": {"prompt_tokens": 1}},
    ],
)
async def test_what_is_no_list_of_embeddings_is_no_answer(served: tuple[Pair, FakeRuntime], answer: Any) -> None:
    pair, runtime = served
    runtime.routes["/v1/embeddings"] = answer
    body = {"input": "a", "encoding_format": "base64"}
    assert (await refused(pair, "/v1/embeddings", body))[:2] == (502, "upstream_invalid")


@pytest.mark.parametrize("given", [[1, 2], [[1, 2]], [], "", [""], ["a"] * 2049, None])
async def test_what_cannot_be_embedded(served: tuple[Pair, FakeRuntime], given: Any) -> None:
    pair, _ = served
    assert (await refused(pair, "/v1/embeddings", {"input": given}))[:2] == (400, "invalid_request")


# -- which model, and none of it --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "fields"), [("/v1/completions", {"prompt": "x"}), ("/v1/embeddings", {"input": "x"})])
async def test_a_chat_type_has_no_place_outside_chats(
    served: tuple[Pair, FakeRuntime], path: str, fields: dict[str, Any]
) -> None:
    pair, _ = served
    status, code, message = await refused(pair, path, {"model": "chat:home", **fields})
    assert (status, code) == (400, "invalid_request")
    assert path in message


async def test_a_surface_that_the_runtime_lacks(shared_pair: Pair) -> None:
    """llama.cpp has no embeddings unless it was started for them (runtimes §2.2)."""
    status, code, message = await refused(shared_pair, "/v1/embeddings", {"input": "x"})
    assert (status, code) == (404, "not_supported")
    assert "/v1/embeddings" in message
    async with shared_pair.client.post(
        shared_pair.node.listener.url + "/v1/embeddings",
        json={"input": "x"},
        headers={"Authorization": f"Bearer {(shared_pair.state / 'node-token').read_text().strip()}"},
    ) as response:
        assert (response.status, (await response.json())["error"]["code"]) == (404, "not_supported")


@pytest.mark.parametrize("prompt", [["a", "b"], [1, 2], "", 5, None])
async def test_what_cannot_be_completed(served: tuple[Pair, FakeRuntime], prompt: Any) -> None:
    pair, _ = served
    assert (await refused(pair, "/v1/completions", {"prompt": prompt}))[:2] == (400, "invalid_request")


# -- unmodified SDKs --------------------------------------------------------------------------------------------------


async def test_embeddings_with_the_openai_sdk(served: tuple[Pair, FakeRuntime]) -> None:
    """It asks for base64 unless it is told otherwise, and decodes it itself."""
    pair, runtime = served
    runtime.routes["/v1/embeddings"] = vectors_of(*VECTORS)
    async with openai.AsyncOpenAI(base_url=pair.url + "/v1", api_key=pair.key, max_retries=0) as client:
        found = await client.embeddings.create(model="fake-model", input=["a", "b"])
        assert [item.embedding for item in found.data] == VECTORS
        assert found.usage.prompt_tokens == 5


async def test_embeddings_with_openai_and_the_ai_sdk_in_node(served: tuple[Pair, FakeRuntime]) -> None:
    require_node()
    await install(PACKAGES)
    pair, runtime = served
    runtime.routes["/v1/embeddings"] = vectors_of(VECTORS[0])
    environ = {"EDGE": pair.url, "KEY": pair.key, "EMBEDDINGS": "1"}
    told = json.loads(await run("node", "surfaces.js", cwd=PACKAGES, seconds=60, **environ))
    assert told == {name: {"vector": VECTORS[0], "tokens": 5} for name in ("openai", "sdk")}
