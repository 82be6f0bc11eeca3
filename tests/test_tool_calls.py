"""Calls of tools in a runtime's stream: put together the same however the bytes are cut, and in every form in use."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from node.formats.openai import CHAT, Reading, StreamNormaliser, WholeAnswer
from node.formats.tool_calls import ToolCalls
from node.runtimes import upstream_errors
from shared.contract.errors import ApiError
from shared.contract.sse import Decoder
from shared.contract.surface import SURFACES
from shared.link.call import Tally
from tests.dialects import DONE, compact, data, spaced

CALLS = [
    {"id": "a", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Søul"}'}},
    {"id": "b", "type": "function", "function": {"name": "now", "arguments": "{}"}},
]
Write = Callable[[Any], bytes]


def pieces(write: Write) -> bytes:
    """As llama.cpp and vLLM send them: the name first, then the arguments bit by bit, one call after the other."""

    def piece(index: int, arguments: str, **head: Any) -> bytes:
        name = {"name": head.pop("name")} if head else {}
        calls = [{"index": index, **head, "function": {**name, "arguments": arguments}}]
        return data(write({"choices": [{"index": 0, "delta": {"tool_calls": calls}, "finish_reason": None}]}))

    events = [
        piece(0, "", id="a", type="function", name="get_weather"),
        *(piece(0, letter) for letter in '{"city": "Søul"}'),
        piece(1, "{}", id="b", type="function", name="now"),
        data(write({"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]})),
        DONE,
    ]
    return b"".join(events)


def together(write: Write) -> bytes:
    """As Ollama sends them: whole, several in one event (runtimes §4.4)."""
    calls = [{"index": index, **call} for index, call in enumerate(CALLS)]
    choice = {"index": 0, "delta": {"role": "assistant", "content": "", "tool_calls": calls}, "finish_reason": None}
    end = {"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]}
    return data(write({"choices": [choice]})) + data(write(end)) + DONE


def reading() -> Reading:
    return Reading(Tally(), 1000, "chatcmpl-ours", 1, upstream_errors.from_event)


def slices(stream: bytes) -> list[list[bytes]]:
    return [[stream], *([stream[:cut], stream[cut:]] for cut in range(1, len(stream), 7))]


@pytest.mark.parametrize("write", [compact, spaced])
@pytest.mark.parametrize("form", [pieces, together])
def test_calls_are_the_same_over_every_split(form: Callable[[Write], bytes], write: Write) -> None:
    for parts in slices(form(write)):
        answer = WholeAnswer(reading())
        for part in parts:
            answer.feed(part)
        answer.reading.check_end()
        (choice,) = json.loads(answer.body({}))["choices"]
        assert choice["message"]["tool_calls"] == CALLS
        assert (choice["message"]["content"], choice["finish_reason"]) == (None, "tool_calls")


@pytest.mark.parametrize("write", [compact, spaced])
@pytest.mark.parametrize("form", [pieces, together])
def test_a_stream_loses_no_piece_of_a_call(form: Callable[[Write], bytes], write: Write) -> None:
    for parts in slices(form(write)):
        stream, calls, out = StreamNormaliser(reading(), SURFACES["openai.chat"], False), ToolCalls(), b""
        for part in parts:
            notes, said = stream.feed(part)
            out += notes + said
        out += stream.finish()
        deltas = [json.loads(event.data)["choices"][0]["delta"] for event in Decoder().feed(out)[:-1]]
        for delta in deltas:
            calls.take(delta.get("tool_calls", ()))
        assert calls.whole() == CALLS


def test_forms_that_are_nobodys_rule() -> None:
    """No index, arguments as an object, no arguments at all."""
    calls = ToolCalls()
    calls.take([{"id": "a", "function": {"name": "f", "arguments": {"x": 1}}}, {"id": "b", "function": {"name": "g"}}])
    found = [(call["id"], call["function"]["name"], call["function"]["arguments"]) for call in calls.whole()]
    assert found == [("a", "f", '{"x": 1}'), ("b", "g", "{}")]


@pytest.mark.parametrize("piece", [5, None, {}, {"function": "f"}, {"index": [], "function": {}}, {"index": "0"}])
def test_what_is_no_call(piece: Any) -> None:
    with pytest.raises(ApiError) as refused:
        ToolCalls().take([piece])
    assert refused.value.code == "upstream_invalid"


def test_the_text_of_events_passes_over_what_is_none() -> None:
    """An event that looked ordinary passes as it came, whatever it is."""
    good = data(compact({"choices": [{"delta": {"content": "a"}}]}))
    broken = [b'data: {"choices":[{"delta":{"content":"x"}\n\n', b"data: 5\n\n", b'data: {"choices":[5]}\n\n', DONE]
    odd = data(compact({"choices": [{"delta": {"content": 5}}]})) + data(compact({"choices": [{"delta": None}]}))
    assert CHAT.text(good + b"".join(broken) + odd + good) == "aa"
