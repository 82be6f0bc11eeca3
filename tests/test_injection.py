"""What the owner adds to requests, forces on them and takes out of them, and what is told of it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.api.parameters import settle
from node.models.defaults import Defaults
from node.prompts import BrokenChatType, ChatType, read_chat_type
from node.runtime import PARAMETERS
from tests import fake_apis
from tests.fake_runtime import FakeRuntime
from tests.pair import Pair, question, running_pair
from tests.test_openai_surfaces import TOOL
from tests.waiting import wait_until

NATIVE = "/v1/chat"
OPENAI = "/v1/chat/completions"
ALL = frozenset(PARAMETERS)
VALUES = st.dictionaries(st.sampled_from(["temperature", "top_p", "top_k", "stop", "seed"]), st.integers(0, 1))


def chat_type(**fields: Any) -> ChatType:
    return ChatType(name="home", system="Be kind.", **fields)


# -- the order --------------------------------------------------------------------------------------------------------


def test_a_request_for_a_model_that_nobody_has_wishes_for_goes_as_it_is() -> None:
    own = {"temperature": 0.1}
    assert settle(own, 5, None, Defaults(), ALL).parameters == own
    assert settle(own, 5, None, Defaults(), ALL).asked == 5


@given(VALUES, VALUES, VALUES, st.frozensets(st.sampled_from(PARAMETERS)))
def test_forced_before_own_before_added_and_nothing_that_is_stripped(
    own: dict[str, Any], added: dict[str, Any], forced: dict[str, Any], stripped: frozenset[str]
) -> None:
    settled = settle(own, None, None, Defaults(added, forced, stripped), ALL)
    kept = {name: value for name, value in own.items() if name not in stripped}
    assert settled.parameters == {**added, **kept, **forced}
    assert set(settled.added) == added.keys() - kept.keys() - forced.keys()


def test_a_chat_type_stands_between_a_request_and_a_model() -> None:
    kind = chat_type(temperature=0.3, top_p=0.8, force={"top_k": 5}, strip=("seed",))
    defaults = Defaults({"temperature": 1.0, "repeat_penalty": 1.1}, {"top_k": 9, "min_p": 0.2})
    settled = settle({"top_p": 0.5, "top_k": 1, "seed": 4}, None, kind, defaults, ALL)
    expected = {"temperature": 0.3, "top_p": 0.5, "top_k": 5, "min_p": 0.2, "repeat_penalty": 1.1}
    assert settled.parameters == expected


def test_the_longest_answer_is_a_parameter_like_the_others() -> None:
    assert settle({}, None, None, Defaults({"max_tokens": 7}), ALL).asked == 7
    assert settle({}, 3, None, Defaults({"max_tokens": 7}), ALL).asked == 3
    assert settle({}, None, None, Defaults({}, {"max_tokens": 9}), ALL).asked == 9


def test_no_answer_is_longer_than_the_caller_wants() -> None:
    """The edge has set aside so many tokens and no more."""
    assert settle({}, 3, None, Defaults({}, {"max_tokens": 9}), ALL).asked == 3
    assert settle({}, 9, None, Defaults({}, {"max_tokens": 3}), ALL).asked == 3
    stripped = frozenset({"max_tokens"})
    assert settle({}, 3, None, Defaults({}, {}, stripped), ALL).asked == 3
    assert settle({}, 9, None, Defaults({"max_tokens": 3}, {}, stripped), ALL).asked == 3
    assert settle({}, 3, chat_type(force={"max_tokens": 9}), Defaults(), ALL).asked == 3


def test_only_what_the_caller_wrote_is_called_dropped() -> None:
    settled = settle({"top_k": 1}, None, None, Defaults({"min_p": 0.1}), ALL - {"top_k", "min_p"})
    assert (settled.parameters, settled.dropped) == ({}, ("top_k",))


def test_a_choice_without_tools_is_dropped_and_one_that_the_owner_strips_is_not_named() -> None:
    own = {"tools": [TOOL], "tool_choice": "auto", "parallel_tool_calls": False}
    settled = settle(own, None, None, Defaults(), ALL - {"tools"})
    assert (settled.parameters, settled.dropped) == ({}, ("tools", "tool_choice", "parallel_tool_calls"))
    settled = settle(own, None, chat_type(strip=("tools", "tool_choice")), Defaults(), ALL)
    assert settled.parameters.keys() == {"temperature", "top_p"}
    assert settled.dropped == ("parallel_tool_calls",)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('strip = ["tempo"]', "no parameter 'tempo'"),
        ("force = {temprature = 1}", "force.temprature"),
        ("force = {temperature = 9}", "force.temperature"),
        ('tools = "maybe"', "tools"),
    ],
)
def test_what_a_chat_type_cannot_inject(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "home.toml"
    path.write_text(f'system = "x"\n{text}\n')
    with pytest.raises(BrokenChatType) as broken:
        read_chat_type(path)
    assert says in str(broken.value)


# -- through a pair ---------------------------------------------------------------------------------------------------

CHAT_TYPES = MappingProxyType(
    {
        "home": 'system = "Be kind."\ntemperature = 0.3\nmax_tokens = 50\nforce = {top_k = 5}\nstrip = ["seed"]\n',
        "helper": 'system = "Use tools."\ntools = true\n',
        "toolless": 'system = "Be kind."\nstrip = ["tools", "reasoning_effort"]\n',
    }
)


@asynccontextmanager
async def injecting(state: Path, **model: Any) -> AsyncIterator[tuple[Pair, FakeRuntime]]:
    """With the chat types above, and ``[node.models.fake-model]``."""
    folder = state / "types"
    folder.mkdir()
    for name, text in CHAT_TYPES.items():
        (folder / f"{name}.toml").write_text(text)
    node = {"chat_types": str(folder), "models": {"fake-model": model}} if model else {"chat_types": str(folder)}
    async with (
        FakeRuntime(routes=fake_apis.good_routes()) as runtime,
        running_pair(runtime.url, state=state, node=node) as pair,
    ):
        yield pair, runtime


async def sent(pair: Pair, runtime: FakeRuntime, path: str, **fields: Any) -> dict[str, Any]:
    """What the runtime is asked."""
    async with pair.post(path, question(**fields)) as response:
        assert response.status == 200, await response.text()
        await response.read()
    return runtime.chats[-1].json


async def test_what_settings_and_chat_types_say_is_in_the_request(tmp_path: Path) -> None:
    model = {"temperature": 0.9, "repeat_penalty": 1.2, "force": {"top_p": 0.4}, "strip": ["frequency_penalty"]}
    async with injecting(tmp_path, **model) as (pair, runtime):
        raw = await sent(pair, runtime, OPENAI, frequency_penalty=1.5, top_p=0.9, seed=3)
        assert (raw["temperature"], raw["repeat_penalty"], raw["top_p"], raw["seed"]) == (0.9, 1.2, 0.4, 3)
        assert "frequency_penalty" not in raw
        typed = await sent(pair, runtime, OPENAI, model="chat:home", seed=3, top_k=2, max_tokens=400)
        assert (typed["temperature"], typed["repeat_penalty"], typed["top_p"]) == (0.3, 1.2, 0.4)
        assert (typed["top_k"], typed["max_tokens"]) == (5, 50)
        assert "seed" not in typed


async def test_an_active_model_brings_its_inference_and_a_requests_own_value_wins(tmp_path: Path) -> None:
    """The names of the gateway that people come from: temperature, maxTokens, topP, topK, repeatPenalty, stopStrings,
    stream."""
    async with injecting(tmp_path) as (pair, runtime):
        inference = {
            "temperature": 0.1,
            "maxTokens": 33,
            "topP": 0.7,
            "topK": 11,
            "repeatPenalty": 1.3,
            "stopStrings": ["###"],
            "stream": True,
        }
        await pair.node.services.models.activate("fake-model", inference)
        pair.node.link.push()
        upstream = pair.edge.services.upstreams.all[0]
        await wait_until(lambda: upstream.snapshot is not None and upstream.snapshot.streamed == ("fake-model",))
        asked = await sent(pair, runtime, OPENAI, temperature=0.6)
        wanted = {"max_tokens": 33, "top_p": 0.7, "top_k": 11, "repeat_penalty": 1.3, "stop": ["###"]}
        assert {name: asked[name] for name in wanted} == wanted
        assert asked["temperature"] == 0.6
        for accept, more, kind in (
            ("*/*", {}, "text/event-stream"),
            ("application/json", {}, "application/json"),
            ("*/*", {"stream": False}, "application/json"),
        ):
            async with pair.post(OPENAI, question() | more, headers={"Accept": accept}) as response:
                assert response.content_type == kind
                await response.read()


async def test_tools_come_only_where_the_chat_type_takes_them(tmp_path: Path) -> None:
    """Templates write them into the system prompt, which a chat type keeps for its owner."""
    async with injecting(tmp_path) as (pair, runtime):
        async with pair.post(OPENAI, question(model="chat:home", tools=[TOOL])) as response:
            error = (await response.json())["error"]
            assert (response.status, error["code"], error["param"]) == (400, "invalid_request", "tools")
        asked = await sent(pair, runtime, OPENAI, model="chat:helper", tools=[TOOL])
        assert asked["tools"] == [TOOL]
        assert asked["messages"][0] == {"role": "system", "content": "Use tools."}


async def test_what_says_something_of_tools_goes_with_them(tmp_path: Path) -> None:
    async with injecting(tmp_path) as (pair, runtime):
        fields = {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": True}
        async with pair.post(OPENAI, question(model="chat:toolless") | fields) as response:
            assert response.status == 200, await response.text()
            assert response.headers["hearthlink-dropped-params"] == "tool_choice, parallel_tool_calls"
        assert not fields.keys() & runtime.chats[-1].json.keys()
        result = {"role": "tool", "tool_call_id": "x", "content": "sunny"}
        async with pair.post(OPENAI, {"model": "chat:toolless", "messages": [result]}) as response:
            assert response.status == 400


async def test_thinking_is_stripped_as_the_effort_that_it_is(tmp_path: Path) -> None:
    thinking = {"thinking": {"type": "enabled", "budget_tokens": 1024}}
    async with injecting(tmp_path) as (pair, runtime):
        for model, kept in (("chat:home", True), ("chat:toolless", False)):
            async with pair.post(fake_apis.MESSAGES, question(model=model) | thinking) as response:
                assert response.status == 200, await response.text()
            asked = [each.json for each in runtime.exchanges if each.path == fake_apis.MESSAGES]
            assert ("thinking" in asked[-1]) == kept


async def test_what_happens_to_a_request_is_told_and_what_was_said_is_not(tmp_path: Path) -> None:
    async with injecting(tmp_path, temperature=0.9) as (pair, runtime):
        events = pair.node.services.events
        with events.watching() as watcher:

            async def story(**fields: Any) -> list[dict[str, Any]]:
                await sent(pair, runtime, OPENAI, **fields)
                found = [await anext(watcher)]
                while found[-1]["kind"] != "finished":
                    found.append(await anext(watcher))
                return found

            told = await story(model="chat:home", top_k=1, service_tier="auto")
            assert [one["kind"] for one in told] == ["request", "started", "first_token", "finished"]
            assert len({one["chat_id"] for one in told}) == 1
            request, finished = told[0], told[-1]
            assert (request["surface"], request["model"], request["chat_type"]) == ("openai.chat", "fake-model", "home")
            assert (request["forced"], request["dropped"]) == (["top_k"], ["service_tier"])
            assert set(request["added"]) == {"temperature", "top_p"}
            assert (finished["outcome"], finished["usage"]["total_tokens"]) == ("stop", 12)
            assert "Where to?" not in json.dumps(told) and "søster" not in json.dumps(told, ensure_ascii=False)

            events.capture(60)
            for stream in (False, True):
                told = await story(stream=stream)
                assert told[0]["content"] == {"messages": [{"role": "user", "content": "Where to?"}]}
                assert told[-1]["content"].startswith("one søster"), "what the model said"
            events.capture(0)
            assert all("content" not in one for one in await story())


async def test_an_error_is_told_by_its_code(tmp_path: Path) -> None:
    async with injecting(tmp_path) as (pair, runtime):
        runtime.script = "llamacpp_context"
        with pair.node.services.events.watching() as watcher:
            async with pair.post(OPENAI, question()) as response:
                assert (await response.json())["error"]["code"] == "context_length_exceeded"
            found = [await anext(watcher)]
            while found[-1]["kind"] != "finished":
                found.append(await anext(watcher))
        assert [one["code"] for one in found if one["kind"] == "error"] == ["context_length_exceeded"]
        assert found[-1]["outcome"] == "context_length_exceeded"


async def test_an_alias_is_allowed_by_its_own_name_or_its_models(tmp_path: Path) -> None:
    plans = {
        "by-alias": {"models": ["small"]},
        "by-model": {"models": ["fake-model"]},
        "neither": {"models": ["other"]},
    }
    node = {"models": {"fake-model": {"aliases": ["small", "quick"]}}}
    async with FakeRuntime() as runtime, running_pair(runtime.url, state=tmp_path, node=node, plans=plans) as pair:

        async def status(plan: str, model: str) -> int:
            async with pair.post(OPENAI, question(model=model), key=await pair.new_key(plan)) as response:
                return response.status

        assert [await status("by-alias", model) for model in ("small", "quick", "fake-model")] == [200, 403, 403]
        assert [await status("by-model", model) for model in ("small", "quick", "fake-model")] == [200, 200, 200]
        assert [await status("neither", model) for model in ("small", "fake-model")] == [403, 403]
        assert {chat.json["model"] for chat in runtime.chats} == {"fake-model"}
        async with pair.get("/v1/models", key=await pair.new_key("by-alias")) as response:
            listed = [row["id"] for row in (await response.json())["data"]]
        assert [name for name in listed if not name.startswith("chat:")] == ["small"]
