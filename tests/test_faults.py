"""What a runtime can do wrong, and what its caller is told: a status before the first byte, one error in band after it,
never a clean end of a cut answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from shared.contract.sse import Event
from tests.fake_presets import PRESETS
from tests.fake_runtime import FakeRuntime
from tests.fake_scripts import DONE, body, chunk, error_in_stream, event, normal, role_chunk, text
from tests.pair import Pair, events_of, question, running_pair
from tests.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

NATIVE = "/v1/chat"
OPENAI = "/v1/chat/completions"
BOTH = pytest.mark.parametrize("path", [NATIVE, OPENAI])
GOOD = {
    *("normal", "slow", "split_every_byte", "half_characters", "crlf", "cr", "no_space", "comments", "bom"),
    *("reasoning_content", "reasoning", "progress", "after_done"),
    *("usage_missing", "usage_negative", "usage_absurd", "usage_not_numbers"),
}
# Refused before the first event: the same for a stream and for a whole answer.
STATUS: dict[str, tuple[int, str]] = {
    "stall_before_headers": (504, "first_token_timeout"),
    "endless_line": (502, "upstream_invalid"),
    "huge_header": (502, "upstream_invalid"),
    "garbage": (502, "upstream_invalid"),
    "garbage_body": (502, "runtime_error"),
    "garbage_json": (502, "upstream_invalid"),
    "html": (502, "upstream_invalid"),
    "json_instead_of_stream": (502, "upstream_invalid"),
    "empty_stream": (502, "runtime_error"),
    "reset_before_headers": (502, "runtime_error"),
    "lmstudio_no_text": (502, "runtime_error"),
    "loading": (503, "model_loading"),
    "bad_gateway": (503, "node_unavailable"),
    "llamacpp_context": (400, "context_length_exceeded"),
    "llamacpp_invalid": (400, "invalid_request"),
    "llamacpp_missing_role": (400, "invalid_request"),
    "llamacpp_unknown_model": (404, "model_not_found"),
    "llamacpp_unauthorized": (502, "runtime_error"),
    "lmstudio_unknown_model": (404, "model_not_found"),
    "lmstudio_context": (400, "context_length_exceeded"),
    "lmstudio_context_in_stream": (400, "context_length_exceeded"),
    "lmstudio_unauthorized": (502, "runtime_error"),
    "lmstudio_unknown_path": (502, "runtime_error"),
    "vllm_unknown_model": (404, "model_not_found"),
    "vllm_context": (400, "context_length_exceeded"),
    "vllm_busy": (503, "overloaded"),
    "vllm_unauthorized": (502, "runtime_error"),
    "ollama_unknown_model": (404, "model_not_found"),
    "ollama_busy": (503, "overloaded"),
    "sglang_context": (400, "context_length_exceeded"),
    "sglang_busy": (503, "overloaded"),
}
# After the first event: what ends the stream; a whole answer gets 502 runtime_error.
IN_BAND: dict[str, str] = {
    "stall_mid_stream": "upstream_stalled",
    "reset_mid_stream": "runtime_error",
    "cut_mid_stream": "runtime_error",
    "eof_without_done": "upstream_incomplete",
    "eof_after_finish": "upstream_incomplete",
    "ollama_midstream": "upstream_incomplete",
    "error_data": "runtime_error",
    "error_data_then_done": "runtime_error",
    "error_data_text": "runtime_error",
    "error_event": "runtime_error",
    "error_field": "runtime_error",
    "error_flat": "runtime_error",
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def impatient(
    tmp_path_factory: pytest.TempPathFactory, quick_ticks: None
) -> AsyncIterator[tuple[Pair, FakeRuntime]]:
    """A pair that waits a second for a runtime, and three for a whole answer."""
    node = {"first_token_timeout": 1.0, "stall_timeout": 1.0}
    async with (
        FakeRuntime(slots=64) as runtime,
        running_pair(
            runtime.url,
            state=tmp_path_factory.mktemp("state"),
            edge={"request_timeout": 3},
            node={"runtime": {"kind": "openai", "url": runtime.url}, **node},
        ) as pair,
    ):
        yield pair, runtime


async def test_every_fault_of_the_fake_is_expected_here() -> None:
    assert GOOD | STATUS.keys() | IN_BAND.keys() | {"progress_forever"} == PRESETS.keys()


async def refusal(pair: Pair, path: str, stream: bool) -> tuple[int, dict[str, Any], dict[str, str]]:
    async with pair.post(path, question(stream=stream, model="default")) as response:
        assert response.content_type == "application/json", await response.text()
        answer = await response.json()
        assert answer["request_id"] == response.headers["x-request-id"]
        return response.status, answer["error"], {name.lower(): value for name, value in response.headers.items()}


async def stream_of(pair: Pair, path: str) -> bytes:
    async with pair.post(path, question(stream=True, model="default")) as response:
        assert response.status == 200
        return await response.read()


def content_of(chunks: list[Event]) -> str:
    deltas = (json.loads(one.data)["choices"][0]["delta"] for one in chunks)
    return "".join(delta.get("content") or "" for delta in deltas)


def error_of(stream: bytes, path: str) -> dict[str, Any]:
    """The one error that ends a stream, framed as its surface does."""
    assert b"[DONE]" not in stream
    *before, last = events_of(stream)
    assert last.event == ("error" if path == NATIVE else "")
    assert all('"error"' not in one.data for one in before)
    payload = json.loads(last.data)
    assert set(payload) == {"error", "request_id"}
    assert set(payload["error"]) == {"message", "type", "code", "param"}
    return payload["error"]


@pytest.mark.parametrize("preset", STATUS)
async def test_a_fault_before_the_first_event_has_a_status(impatient: tuple[Pair, FakeRuntime], preset: str) -> None:
    pair, runtime = impatient
    runtime.script = preset
    answers = await asyncio.gather(
        *(refusal(pair, path, stream) for path in (NATIVE, OPENAI) for stream in (False, True))
    )
    for status, error, headers in answers:
        assert (status, error["code"]) == STATUS[preset]
        assert ("retry-after" in headers) == (status == 503)
        assert_no_secret(error["message"])
        if preset == "stall_before_headers":
            assert "silent for 1 s" in error["message"]  # and not the request's own deadline
    await pair.idle()


def assert_no_secret(message: str) -> None:
    """A refusal quotes nothing that the runtime said: it may hold what the caller wrote."""
    for quoted in ("Where to", "It works!", "Missing 'role'", "LM Studio API", "pulling it first", "\x00"):
        assert quoted not in message


@pytest.mark.parametrize("preset", IN_BAND)
@BOTH
async def test_a_fault_after_it_ends_the_stream_with_one_error(
    impatient: tuple[Pair, FakeRuntime], preset: str, path: str
) -> None:
    pair, runtime = impatient
    runtime.script = preset
    stream, (status, plain, _) = await asyncio.gather(stream_of(pair, path), refusal(pair, path, stream=False))
    assert content_of(events_of(stream)[:-1]) == "one søster "  # what was said stays
    assert error_of(stream, path)["code"] == IN_BAND[preset]
    assert (status, plain["code"]) == (502, "runtime_error")
    await pair.idle()
    assert [line["outcome"] for line in pair.audit[-2:]].count(IN_BAND[preset]) >= 1


async def test_a_prefill_without_end_ends_with_the_request(impatient: tuple[Pair, FakeRuntime]) -> None:
    """Progress is a sign of life; what bounds it is the edge's deadline."""
    pair, runtime = impatient
    runtime.script = "progress_forever"
    stream, (status, plain, _) = await asyncio.gather(stream_of(pair, NATIVE), refusal(pair, NATIVE, stream=False))
    assert error_of(stream, NATIVE)["code"] == "first_token_timeout"
    assert (status, plain["code"]) == (504, "first_token_timeout")
    await runtime.idle()


async def test_a_slow_answer_is_no_stall(impatient: tuple[Pair, FakeRuntime]) -> None:
    pair, runtime = impatient
    runtime.script = normal(20, 0.08)  # longer than a silence may be, and never silent for that long
    assert (await stream_of(pair, NATIVE)).endswith(DONE)


async def test_a_late_fault_comes_in_band_once_200_has_left(tmp_path: Any) -> None:
    """The runtime's verdict is awaited for 2 s; then the head leaves."""
    node = {"first_token_timeout": 2.5}
    async with (
        FakeRuntime("stall_before_headers") as runtime,
        running_pair(runtime.url, state=tmp_path, node=node) as pair,
    ):
        stream = await stream_of(pair, OPENAI)
        assert error_of(stream, OPENAI)["code"] == "first_token_timeout"


@BOTH
async def test_nothing_after_done_is_read(impatient: tuple[Pair, FakeRuntime], path: str) -> None:
    pair, runtime = impatient
    runtime.script = "after_done"
    assert "too late" not in (await stream_of(pair, path)).decode()
    async with pair.post(path, question(model="default")) as response:
        assert (await response.json())["choices"][0]["message"]["content"] == text(5)


@pytest.mark.parametrize("preset", ["usage_missing", "usage_negative", "usage_absurd", "usage_not_numbers"])
async def test_tokens_are_counted_where_the_runtime_does_not(impatient: tuple[Pair, FakeRuntime], preset: str) -> None:
    pair, runtime = impatient
    runtime.script = preset
    async with pair.post(NATIVE, question()) as response:
        assert (await response.json())["usage"]["completion_tokens"] == 5
    events = events_of(await stream_of(pair, NATIVE))
    assert json.loads(events[-2].data)["usage"]["completion_tokens"] == 5
    await pair.idle()
    assert [line["completion_tokens"] for line in pair.audit[-2:]] == [5, 5]
    assert all(0 < line["prompt_tokens"] < 500 for line in pair.audit[-2:])  # the edge's estimate


async def test_an_endless_line_is_left_early(impatient: tuple[Pair, FakeRuntime]) -> None:
    pair, runtime = impatient
    runtime.chats.clear()
    runtime.script = "endless_line"
    assert (await refusal(pair, NATIVE, stream=True))[1]["code"] == "upstream_invalid"
    exchange = await runtime.chat(0)
    await exchange.peer_left()
    assert exchange.sent < 32 << 20  # 1 MiB, and what the sockets between hold


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(b"data: [1]\n\n", id="no object"),
        pytest.param(b"data: nonsense\n\n", id="no JSON"),
        pytest.param(b"data: " + b"[" * 100_000 + b"\n\n", id="deep"),
        pytest.param(b"data: " + b"x" * (1 << 20) + b"\n\n", id="over 1 MiB"),
    ],
)
async def test_an_event_that_makes_no_sense_ends_the_stream(impatient: tuple[Pair, FakeRuntime], frame: bytes) -> None:
    pair, runtime = impatient
    runtime.script = error_in_stream(frame, done=True)
    assert error_of(await stream_of(pair, NATIVE), NATIVE)["code"] == "upstream_invalid"


@pytest.mark.parametrize(
    "odd",
    [
        pytest.param(event({"choices": "none"}), id="choices no list"),
        pytest.param(event({"choices": [7]}), id="choice no object"),
        pytest.param(event({"choices": [{"delta": "text"}]}), id="delta no object"),
        pytest.param(event({"object": "ping"}), id="foreign object"),
        pytest.param(b"event: ping\ndata: {}\n\n", id="foreign event"),
        pytest.param(b": comment\n\n\n\n", id="comment and blank lines"),
        pytest.param(b"id: 7\nretry: 5\n\n", id="fields without data"),
    ],
)
async def test_an_event_without_meaning_is_passed_over(impatient: tuple[Pair, FakeRuntime], odd: bytes) -> None:
    pair, runtime = impatient
    good = [role_chunk(), odd, chunk({"content": "one "}), odd, chunk({"content": "two"}), odd, chunk({}, "stop"), DONE]
    runtime.script = body(b"".join(good))
    events = events_of(await stream_of(pair, OPENAI))
    assert all(one.id is None and not one.event for one in events)
    assert content_of(events[:-1]) == "one two"
    async with pair.post(NATIVE, question()) as response:
        assert (await response.json())["choices"][0]["message"]["content"] == "one two"


async def test_a_runtime_that_dies_and_returns(tmp_path: Any) -> None:
    async with FakeRuntime("slow") as runtime, running_pair(runtime.url, state=tmp_path) as pair:
        running = asyncio.create_task(stream_of(pair, NATIVE))
        await runtime.chat(0)
        await asyncio.sleep(0.1)
        await runtime.kill()
        assert error_of(await running, NATIVE)["code"] in ("runtime_error", "upstream_incomplete")
        status, error, headers = await refusal(pair, NATIVE, stream=True)
        assert (status, error["code"]) == (503, "node_unavailable")
        assert headers["retry-after"]
        async with pair.client.get(pair.url + "/healthz") as response:
            assert response.status == 503
        await runtime.listen()
        await wait_until(lambda: pair.edge.services.upstreams.ready)
        runtime.script = "normal"
        assert (await stream_of(pair, NATIVE)).endswith(DONE)
