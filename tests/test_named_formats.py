"""Streams of ``/v1/responses`` and ``/v1/messages``: whatever a runtime leaves out, a caller gets as the API has it,
and the same answer in slices of any size, streamed and whole."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.formats.format import Format
from node.formats.messages import MESSAGES
from node.formats.named import NamedReading
from node.formats.responses import RESPONSES
from node.runtime import Inference
from node.runtimes.upstream_errors import from_event
from shared.contract.errors import ApiError
from shared.contract.surface import SURFACES
from shared.link.call import Call
from tests import fake_apis as fake
from tests.pair import events_of

FORMATS: Mapping[str, Format] = {"openai.responses": RESPONSES, "anthropic.messages": MESSAGES}
APIS: Mapping[str, Any] = {"openai.responses": "responses", "anthropic.messages": "messages"}


class Reader:
    """One answer on its way through a format."""

    def __init__(self, surface: str, max_tokens: int = 100, **parameters: Any) -> None:
        self.format = FORMATS[surface]
        self.surface = SURFACES[surface]
        self.call = Call(self.surface, b"{}", "abc", "r1", "p", True, 0.0)
        inference = Inference(APIS[surface], "model", {}, max_tokens, parameters)
        self.reading: NamedReading = self.format.reading(self.call, inference, from_event)

    def streamed(self, slices: Iterable[bytes], reason: str | None = None) -> bytes:
        """The events of a good stream."""
        events = self.format.streaming(self.reading, self.surface, True)
        written = b""
        for piece in slices:
            written += b"".join(events.feed(piece))
            if events.failure is not None:
                raise events.failure
        if reason is None:
            self.reading.check_end()
        return written + events.finish(reason or self.reading.finish_reason)

    def whole(self, slices: Iterable[bytes]) -> dict[str, Any]:
        answer = self.format.collecting(self.reading)
        for piece in slices:
            answer.feed(piece)
        self.reading.check_end()
        return json.loads(answer.body({"request_id": "r1"}, self.reading.finish_reason))


def read(stream: bytes) -> list[dict[str, Any]]:
    """The events, each of which is named as its data says."""
    events = events_of(stream)
    assert all(json.loads(event.data)["type"] == event.event for event in events)
    return [json.loads(event.data) for event in events]


def kinds(events: list[dict[str, Any]]) -> list[str]:
    """Types of ``events``, repeated ones once."""
    found: list[str] = []
    for event in events:
        if not found or found[-1] != event["type"]:
            found.append(event["type"])
    return found


def one(events: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    (event,) = [event for event in events if event["type"] == kind]
    return event


# -- /v1/responses ----------------------------------------------------------------------------------------------------

RESPONSES_TEXT = [*fake.responses_begin(), *fake.responses_text(), *fake.responses_end()]
RESPONSES_ALL = [
    *fake.responses_begin(),
    *fake.responses_thought(),
    *fake.responses_text(),
    *fake.responses_call(),
    *fake.responses_call("c2", "get_time"),
    *fake.responses_end(),
]


def test_a_text_gets_the_numbers_and_ends_that_llama_cpp_leaves_out() -> None:
    events = read(Reader("openai.responses").streamed(RESPONSES_TEXT))
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert kinds(events) == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    assert "".join(event["delta"] for event in deltas) == fake.TEXT
    assert {(event["item_id"], event["output_index"], event["content_index"]) for event in deltas} == {
        ("msg_abc_0", 0, 0)
    }
    assert all(event["logprobs"] == [] for event in deltas)
    response = one(events, "response.completed")["response"]
    assert response["status"] == "completed" and response["model"] == "fake-model"
    assert response["output"][0]["content"][0]["text"] == fake.TEXT
    assert response["usage"] == {
        "input_tokens": 7,
        "input_tokens_details": {"cached_tokens": 2},
        "output_tokens": 5,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 12,
    }


def test_thoughts_text_and_calls_are_items_of_their_own_in_their_order() -> None:
    events = read(Reader("openai.responses").streamed(RESPONSES_ALL))
    output = one(events, "response.completed")["response"]["output"]
    assert [item["type"] for item in output] == ["reasoning", "message", "function_call", "function_call"]
    assert output[0]["content"] == [{"type": "reasoning_text", "text": "".join(fake.THOUGHT)}]
    assert [(item["call_id"], item["name"], item["arguments"]) for item in output[2:]] == [
        ("call_c1", "get_weather", "".join(fake.ARGUMENTS)),
        ("call_c2", "get_time", "".join(fake.ARGUMENTS)),
    ]
    added = [event for event in events if event["type"] == "response.output_item.added"]
    done = [event for event in events if event["type"] == "response.output_item.done"]
    assert [event["output_index"] for event in added] == [event["output_index"] for event in done] == [0, 1, 2, 3]
    assert [event["item"]["id"] for event in added] == [item["id"] for item in output]
    assert [event["item"] for event in done] == output
    assert len({item["id"] for item in output}) == 4


def test_a_text_behind_a_call_is_an_item_of_its_own() -> None:
    """Though llama.cpp gives all of an answer's text the same id, and the bytes around it do not change."""
    more = fake.responses_text(("three", "four"))[2:]
    stream = [*fake.responses_begin(), *fake.responses_text(("one", "two")), *fake.responses_call(), *more]
    events = read(Reader("openai.responses").streamed([*stream, *fake.responses_end()]))
    first, call, second = one(events, "response.completed")["response"]["output"]
    assert (first["content"][0]["text"], second["content"][0]["text"]) == ("onetwo", "threefour")
    assert call["arguments"] == "".join(fake.ARGUMENTS)


def test_an_answer_that_max_tokens_has_cut_is_incomplete() -> None:
    reader = Reader("openai.responses", max_tokens=5)
    events = read(reader.streamed(RESPONSES_TEXT))
    response = one(events, "response.incomplete")["response"]
    assert (response["status"], response["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert reader.reading.finish_reason == "length"


def test_a_call_without_an_id_gets_one_and_what_was_asked_is_repeated() -> None:
    call = fake.responses_call()
    call[0] = call[0].replace(b'"call_id":"call_c1",', b"")
    tools = [{"type": "function", "name": "get_weather"}]
    reader = Reader("openai.responses", tools=tools, tool_choice="required", temperature=0.5)
    answer = reader.whole([*fake.responses_begin(), *call, *fake.responses_end()])
    assert answer["output"][0]["call_id"] == "call_abc_0"
    assert (answer["tools"], answer["tool_choice"], answer["temperature"]) == (tools, "required", 0.5)
    assert answer["instructions"] is None and answer["store"] is False


# -- /v1/messages -----------------------------------------------------------------------------------------------------

MESSAGES_TEXT = [*fake.messages_begin(), *fake.messages_text(), *fake.messages_end()]
MESSAGES_ALL = [
    *fake.messages_begin(),
    *fake.messages_thought(),
    *fake.messages_text(index=1),
    *fake.messages_call(2),
    *fake.messages_end("tool_use", blocks=3),
]


def test_a_message_has_blocks_usage_and_its_end() -> None:
    events = read(Reader("anthropic.messages").streamed(MESSAGES_TEXT))
    assert kinds(events) == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    start = events[0]["message"]
    assert (start["id"], start["content"], start["stop_reason"]) == ("msg_abc", [], None)
    assert "".join(event["delta"]["text"] for event in events if event["type"] == "content_block_delta") == fake.TEXT
    end = one(events, "message_delta")
    assert end["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert end["usage"] == {
        "input_tokens": 5,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 2,
        "output_tokens": 5,
    }


def test_thinking_is_signed_and_a_tool_has_its_input() -> None:
    events = read(Reader("anthropic.messages").streamed(MESSAGES_ALL))
    starts = [event["content_block"] for event in events if event["type"] == "content_block_start"]
    assert starts == [
        {"type": "thinking", "thinking": "", "signature": ""},
        {"type": "text", "text": ""},
        {"type": "tool_use", "id": "c1", "name": "get_weather", "input": {}},
    ]
    deltas = [event["delta"]["type"] for event in events if event["type"] == "content_block_delta"]
    assert deltas == ["thinking_delta"] * 2 + ["signature_delta"] + ["text_delta"] * 5 + ["input_json_delta"] * 2
    assert [event["index"] for event in events if event["type"] == "content_block_stop"] == [0, 1, 2]
    assert one(events, "message_delta")["delta"]["stop_reason"] == "tool_use"


def test_a_block_has_our_number_where_the_runtime_s_is_wrong() -> None:
    text = fake.messages_text(("a", "b", "c"), index=0)
    stream = [*fake.messages_begin(), *fake.messages_thought(), *text, *fake.messages_end()]
    events = read(Reader("anthropic.messages").streamed(stream))
    deltas = [event for event in events if event["type"] == "content_block_delta"]
    assert [event["index"] for event in deltas if event["delta"]["type"] == "text_delta"] == [1, 1, 1]


def test_a_stop_sequence_is_told_only_if_the_caller_sent_it() -> None:
    stream = [*fake.messages_begin(), *fake.messages_text(), *fake.messages_end("end_turn", "END")]
    asked = Reader("anthropic.messages", stop=["END"]).whole(stream)
    assert (asked["stop_reason"], asked["stop_sequence"]) == ("stop_sequence", "END")
    not_asked = Reader("anthropic.messages").whole(stream)
    assert (not_asked["stop_reason"], not_asked["stop_sequence"]) == ("end_turn", None)


def test_input_that_was_cut_is_an_empty_object() -> None:
    stream = [*fake.messages_begin(), *fake.messages_call()[:-1], *fake.messages_end("max_tokens")]
    answer = Reader("anthropic.messages").whole(stream)
    assert answer["stop_reason"] == "max_tokens"
    assert answer["content"] == [{"type": "tool_use", "id": "c1", "name": "get_weather", "input": {}}]


# -- both -------------------------------------------------------------------------------------------------------------

STREAMS = {"openai.responses": RESPONSES_ALL, "anthropic.messages": MESSAGES_ALL}


@given(st.data())
@pytest.mark.parametrize("surface", STREAMS)
def test_slices_of_any_size_make_the_same_answer(surface: str, data: st.DataObject) -> None:
    stream = b"".join(STREAMS[surface])
    places = sorted(data.draw(st.sets(st.integers(1, len(stream) - 1), max_size=8)))
    slices = [stream[begin:end] for begin, end in zip([0, *places], [*places, len(stream)], strict=True)]
    expected, found = Reader(surface), Reader(surface)
    found.reading.created = expected.reading.created
    assert read(found.streamed(slices)) == read(expected.streamed(STREAMS[surface]))
    assert found.call.tally == expected.call.tally
    assert (found.call.tally.prompt_tokens, found.call.tally.completion_tokens) == fake.USAGE


def test_what_the_runtime_says_it_cost_is_the_last_word() -> None:
    *stream, usage, end = MESSAGES_TEXT
    for late in fake.messages_text(('"a"', "b", "c")), fake.messages_text(("a", "b", "c")):
        reader = Reader("anthropic.messages")
        reader.streamed([*stream, usage, *late, end])
        assert (reader.call.tally.prompt_tokens, reader.call.tally.completion_tokens) == fake.USAGE


@pytest.mark.parametrize(
    ("surface", "stream"), [("openai.responses", RESPONSES_TEXT), ("anthropic.messages", MESSAGES_TEXT)]
)
def test_a_usage_of_nothing_is_not_told(surface: str, stream: list[bytes]) -> None:
    reader = Reader(surface)
    reader.streamed([event.replace(b'output_tokens":5', b'output_tokens":0') for event in stream])
    assert reader.call.tally.completion_tokens == len(fake.WORDS)


@pytest.mark.parametrize("surface", STREAMS)
def test_the_end_of_a_good_stream_is_known_from_its_last_event(surface: str) -> None:
    for reason in (None, "length"):
        *events, end = Reader(surface).streamed(STREAMS[surface], reason).split(b"\n\n")[:-1]
        known = SURFACES[surface].ends
        assert known(b"\n\n".join([*events, end, b""])) and known(end + b"\n\n")
        assert not any(known(event + b"\n\n") for event in events)
        assert not known(b"")


@pytest.mark.parametrize("surface", STREAMS)
def test_the_text_of_an_answer_is_known_from_its_events(surface: str) -> None:
    streamed, collected = Reader(surface), Reader(surface)
    assert streamed.format.text(streamed.streamed(STREAMS[surface])) == fake.TEXT
    answer = collected.format.collecting(collected.reading)
    answer.feed(b"".join(STREAMS[surface]))
    assert answer.text() == fake.TEXT


@pytest.mark.parametrize("surface", STREAMS)
def test_an_answer_that_is_stopped_is_closed_as_a_good_one(surface: str) -> None:
    """By its caller, at any place: what is open is closed, and the end is the API's own."""
    stream = STREAMS[surface]
    for count in range(len(stream) - 1):
        events = read(Reader(surface).streamed(stream[:count], "stop"))
        opened = sum(event["type"] in ("response.output_item.added", "content_block_start") for event in events)
        closed = sum(event["type"] in ("response.output_item.done", "content_block_stop") for event in events)
        assert opened == closed
        assert events[0]["type"] in ("response.created", "message_start")
        assert events[-1]["type"] in ("response.completed", "message_stop")


@pytest.mark.parametrize("surface", STREAMS)
def test_a_stream_that_ends_without_its_end_is_cut(surface: str) -> None:
    with pytest.raises(ApiError) as cut:
        Reader(surface).streamed(STREAMS[surface][:-1])
    assert cut.value.code == "upstream_incomplete"


ERROR = {"code": 400, "message": "too long", "type": "exceed_context_size_error", "n_prompt_tokens": 9, "n_ctx": 8}
FAULTS = {
    "as llama.cpp": (b'data: {"error":' + json.dumps(ERROR).encode() + b"}\n\n", "context_length_exceeded"),
    "as LM Studio": (b'event: error\ndata: {"error":{"message":"boom"},"message":"boom"}\n\n', "runtime_error"),
    "as Anthropic": (
        b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"busy"}}\n\n',
        "runtime_error",
    ),
    "no JSON": (b"data: {oops\n\n", "upstream_invalid"),
    "no object": (b"data: [1]\n\n", "upstream_invalid"),
    "text of a number": (
        b'data: {"type":"response.output_text.delta","delta":5}\n\n'
        b'data: {"type":"content_block_delta","delta":{"type":"text_delta","text":5}}\n\n',
        "upstream_invalid",
    ),
    "arguments of no call": (
        b'data: {"type":"response.function_call_arguments.delta","delta":"{}"}\n\n'
        b'data: {"type":"content_block_delta","delta":{"type":"input_json_delta","partial_json":"{}"}}\n\n',
        "upstream_invalid",
    ),
    "a call without a name": (
        b'data: {"type":"response.output_item.added","item":{"type":"function_call"}}\n\n'
        b'data: {"type":"content_block_start","content_block":{"type":"tool_use"}}\n\n',
        "upstream_invalid",
    ),
}


@pytest.mark.parametrize("surface", STREAMS)
@pytest.mark.parametrize("fault", FAULTS)
def test_an_error_in_any_dialect_is_an_error_of_ours_and_quotes_nothing(surface: str, fault: str) -> None:
    piece, code = FAULTS[fault]
    for answer in (Reader(surface).whole, Reader(surface).streamed):
        with pytest.raises(ApiError) as failed:
            answer([*STREAMS[surface][:1], piece])
        assert failed.value.code == code
        assert "boom" not in failed.value.message


def test_a_response_that_failed_is_an_error() -> None:
    error = {"code": "server_error", "message": "boom"}
    failed = fake.named("response.failed", response={"status": "failed", "error": error})
    with pytest.raises(ApiError) as raised:
        Reader("openai.responses").streamed([*fake.responses_begin(), failed])
    assert raised.value.code == "runtime_error"


def test_a_stream_whose_text_is_kept_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.formats.responses.MAX_ANSWER", 2000)
    with pytest.raises(ApiError, match="does not end"):
        Reader("openai.responses").streamed(RESPONSES_TEXT * 2)


@pytest.mark.parametrize("surface", STREAMS)
def test_what_stood_before_a_fault_in_the_same_slice_leaves_first(surface: str) -> None:
    reader = Reader(surface)
    events = reader.format.streaming(reader.reading, reader.surface, True)
    notes, data = events.feed(b"".join(STREAMS[surface][:6]) + b"data: {oops\n\n")
    assert notes and data and events.heard
    assert events.failure is not None and events.failure.code == "upstream_invalid"


@pytest.mark.parametrize("surface", STREAMS)
def test_a_runtime_that_does_not_stop_is_stopped(surface: str) -> None:
    reader = Reader(surface, max_tokens=5)
    events = reader.format.streaming(reader.reading, reader.surface, True)
    pieces = fake.responses_text("x") if surface == "openai.responses" else fake.messages_text("x")
    for piece in (*pieces, *[pieces[-1]] * 4):
        events.feed(piece)
        assert not reader.reading.too_long()
    events.feed(pieces[-1])
    assert reader.reading.too_long()
    assert read(events.finish("length"))[-1]["type"] in ("response.incomplete", "message_stop")


def test_an_ordinary_event_of_a_message_passes_as_it_came() -> None:
    reader = Reader("anthropic.messages")
    events = reader.format.streaming(reader.reading, reader.surface, True)
    *begin, first, second = (*fake.messages_begin(), *fake.messages_text(("a", "b")))
    for piece in (*begin, first):
        events.feed(piece)
    assert events.feed(second) == (b"", second)
    assert reader.call.tally.completion_tokens == 2


@pytest.mark.parametrize("surface", STREAMS)
@given(st.lists(st.text(min_size=1), min_size=1, max_size=6))
def test_any_text_arrives_as_it_was_said(surface: str, words: list[str]) -> None:
    responses = [*fake.responses_begin(), *fake.responses_text(words), *fake.responses_end()]
    messages = [*fake.messages_begin(), *fake.messages_text(words), *fake.messages_end()]
    stream = responses if surface == "openai.responses" else messages
    reader = Reader(surface)
    assert reader.format.text(reader.streamed(stream)) == "".join(words)


def test_error_frames_are_what_the_sdks_read() -> None:
    error = ApiError("server_draining", "Going home.")
    frames = {name: events_of(SURFACES[name].frame_error(error, "r1")) for name in STREAMS}
    for (event,) in frames.values():
        fields = cast("dict[str, Any]", json.loads(event.data))
        assert event.event == fields["type"] == "error" and fields["request_id"] == "r1"
        assert fields["error"]["message"] == "Going home." and fields["error"]["code"] == "server_draining"
    assert json.loads(frames["anthropic.messages"][0].data)["error"]["type"] == "overloaded_error"
