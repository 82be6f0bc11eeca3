"""What callers see of a runtime's stream, in every dialect and over every split."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.formats.completions import CompletionReading, CompletionStream, WholeCompletion
from node.formats.openai import Reading, StreamNormaliser, WholeAnswer
from node.runtimes import upstream_errors
from shared.contract.errors import ApiError
from shared.contract.sse import MAX_EVENT_BYTES, Decoder
from shared.contract.surface import DONE as TERMINAL
from shared.contract.surface import SURFACES
from shared.contract.usage import Usage
from shared.link.call import Tally
from tests.dialects import DIALECTS, DONE, Dialect, compact, data, llama_cpp, usage

RECORDED = (Path(__file__).parent / "vectors" / "llamacpp.sse").read_bytes()
# One to four bytes a character, JSON escapes, what the fast path looks for, and what only looks like it.
TEXTS = (
    "Hi",
    " søster",
    " 日本",
    " 🌍",
    ' "finish_reason":"stop"',
    " [DONE]",
    "\n\ndata: {}",
    ' "error" \\ "usage":{',
    "\t\u2028\x7f",
    " end.",
)
ANY_TEXTS = st.lists(st.text(max_size=12) | st.sampled_from(TEXTS), max_size=8)
DIALECT = st.sampled_from(DIALECTS)
MAX_TOKENS = 1000


@dataclass(slots=True)
class Said:
    """What came out for the caller; ``error`` when the answer failed."""

    reading: Reading
    notes: bytes = b""
    data: bytes = b""
    error: ApiError | None = None
    chunks: list[dict[str, Any]] = field(default_factory=list)

    def texts(self, name: str = "content") -> str:
        deltas = [chunk["choices"][0]["delta"] for chunk in self.chunks if chunk.get("choices")]
        return "".join(delta.get(name) or "" for delta in deltas)

    @property
    def reasons(self) -> list[str]:
        reasons = [chunk["choices"][0]["finish_reason"] for chunk in self.chunks if chunk.get("choices")]
        return [reason for reason in reasons if reason is not None]


def reading_for(max_tokens: int = MAX_TOKENS) -> Reading:
    return Reading(Tally(), max_tokens, "chatcmpl-ours", 1, upstream_errors.from_event)


def say(slices: Sequence[bytes], *, include_usage: bool = True, max_tokens: int = MAX_TOKENS) -> Said:
    """Feed a stream as the node does, to its end."""
    reading = reading_for(max_tokens)
    normaliser = StreamNormaliser(reading, SURFACES["chat"], include_usage)
    said = Said(reading)
    try:
        for piece in slices:
            notes, parts = normaliser.feed(piece)
            said.notes += notes
            said.data += parts
            if normaliser.failure is not None:
                raise normaliser.failure
            if reading.done or reading.too_long():
                break
        if not reading.too_long():
            reading.check_end()
        said.data += normaliser.finish(None if reading.done else "length")
    except ApiError as error:
        said.error = error
    events = Decoder(2 * MAX_EVENT_BYTES).feed(said.notes + said.data)
    said.chunks = [json.loads(event.data) for event in events if event.data != "[DONE]"]
    return said


def collect(slices: Sequence[bytes]) -> dict[str, Any] | ApiError:
    """The whole answer as JSON, or the error it fails with."""
    answer = WholeAnswer(reading_for())
    try:
        for piece in slices:
            answer.feed(piece)
            if answer.reading.done:
                break
        answer.reading.check_end()
    except ApiError as error:
        return error
    return json.loads(answer.body({"request_id": "r"}))


def each_split(stream: bytes, step: int = 1) -> list[list[bytes]]:
    ways = [[stream], [stream[i : i + 1] for i in range(len(stream))]]
    return ways + [[stream[:cut], stream[cut:]] for cut in range(1, len(stream), step)]


def slices_of(data: st.DataObject, stream: bytes) -> list[bytes]:
    cuts = sorted({0, len(stream), *data.draw(st.lists(st.integers(0, len(stream)), max_size=12))})
    return [stream[begin:end] for begin, end in pairwise(cuts)]


# -- good answers -----------------------------------------------------------------------------------------------------


def test_a_recorded_stream_keeps_its_text_over_every_split() -> None:
    wanted = "".join(
        (chunk["choices"] or [{"delta": {}}])[0]["delta"].get("content") or ""
        for chunk in (json.loads(event.data) for event in Decoder().feed(RECORDED) if event.data != "[DONE]")
    )
    assert len(wanted) > 20
    once = say([RECORDED])
    assert (once.texts(), once.reasons) == (wanted, ["length"])
    assert once.reading.tally.usage().to_wire() == {"prompt_tokens": 21, "completion_tokens": 12, "total_tokens": 33}
    for slices in each_split(RECORDED):
        said = say(slices)
        assert said.error is None
        assert said.notes + said.data == once.notes + once.data


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
def test_each_dialect_keeps_its_text_over_every_split(dialect: Dialect) -> None:
    stream = dialect.stream(TEXTS)
    once = say([stream])
    assert once.error is None
    assert once.texts() == "".join(TEXTS)
    for slices in each_split(stream, step=3):
        said = say(slices)
        assert (said.notes, said.data) == (once.notes, once.data)
        assert said.reading.tally == once.reading.tally


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
def test_empty_pieces_come_out_the_same_over_every_split(dialect: Dialect) -> None:
    stream = dialect.stream(["", "a", "", "", "b", ""])
    once = say([stream])
    assert (once.error, once.texts()) == (None, "ab")
    for slices in each_split(stream):
        said = say(slices)
        assert (said.notes, said.data) == (once.notes, once.data)


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
def test_each_dialect_comes_out_as_one_form(dialect: Dialect) -> None:
    said = say([dialect.stream(TEXTS)])
    role, *parts, last, counted = said.chunks
    assert role["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert said.notes == data(compact(role))
    assert all(part["choices"][0]["finish_reason"] is None for part in parts)
    assert (last["choices"][0]["delta"], last["choices"][0]["finish_reason"]) == ({}, "stop")
    assert counted["choices"] == []
    assert counted["usage"]["completion_tokens"] == len(TEXTS)
    assert counted["usage"]["prompt_tokens"] == (7 if dialect.counts else 0)
    assert {chunk["id"] for chunk in said.chunks} == {"chatcmpl-7"}
    assert {chunk["model"] for chunk in said.chunks} == {"small"}
    assert said.data.endswith(TERMINAL)
    lines = set((said.notes + said.data).split(b"\n"))
    assert all(not line or line.startswith(b"data:") for line in lines)  # no ids, names or comments of the runtime's
    assert not any("prompt_progress" in chunk or "timings" in chunk for chunk in said.chunks)


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
def test_each_dialect_as_a_whole_answer_over_every_split(dialect: Dialect) -> None:
    stream = dialect.stream(TEXTS)
    for slices in each_split(stream, step=7):
        answer = collect(slices)
        assert isinstance(answer, dict)
        assert answer["choices"] == [
            {"index": 0, "message": {"role": "assistant", "content": "".join(TEXTS)}, "finish_reason": "stop"}
        ]
        assert answer["usage"]["completion_tokens"] == len(TEXTS)
        assert (answer["id"], answer["model"], answer["object"]) == ("chatcmpl-7", "small", "chat.completion")
        assert answer["request_id"] == "r"


@given(DIALECT, ANY_TEXTS, st.data())
def test_any_text_in_any_dialect_over_any_split(dialect: Dialect, texts: list[str], data: st.DataObject) -> None:
    stream = dialect.stream(texts)
    slices = slices_of(data, stream)
    said = say(slices)
    assert said.error is None
    assert said.texts() == "".join(texts)
    assert (said.notes, said.data) == (say([stream]).notes, say([stream]).data)
    answer = collect(slices)
    assert isinstance(answer, dict)
    assert answer["choices"][0]["message"]["content"] == "".join(texts)


@given(ANY_TEXTS)
def test_an_escaped_text_is_the_same_text(texts: list[str]) -> None:
    events = [data(json.dumps({"choices": [{"delta": {"content": text}}]}).encode()) for text in texts]
    finish = data(b'{"choices":[{"delta":{},"finish_reason":"stop"}]}')
    slices = [*events, finish, DONE]
    assert say(slices).texts() == "".join(texts)


def test_half_a_surrogate_pair_in_each_of_two_events() -> None:
    halves = [data(b'{"choices":[{"delta":{"content":"%s"}}]}' % half) for half in (rb"\ud83c", rb"\udf0d")]
    slices = [*halves, *llama_cpp(["!"])]
    joined = "".join(json.loads(part) for part in ('"\\ud83c"', '"\\udf0d"')) + "!"
    for order in (slices, [*llama_cpp(["!"])[:3], *halves, *llama_cpp([])]):
        assert sorted(say(order).texts()) == sorted(joined)
        assert isinstance(collect(order), dict)


def test_the_first_event_leaves_before_the_second_is_there() -> None:
    normaliser = StreamNormaliser(reading_for(), SURFACES["chat"], True)
    seen = [normaliser.feed(event) for event in llama_cpp(["one", "two"])]
    assert [bool(notes) for notes, _ in seen] == [True, False, False, False, False, False, False]
    assert [bool(parts) for _, parts in seen] == [False, False, True, True, False, False, False]


def test_the_verdict_is_in_once_the_runtime_has_said_something_good() -> None:
    normaliser = StreamNormaliser(reading_for(), SURFACES["chat"], True)
    normaliser.feed(b": ping\n\n")
    assert not normaliser.heard
    normaliser.feed(llama_cpp(["one"])[0])
    assert normaliser.heard


def test_usage_only_where_it_is_wanted() -> None:
    for dialect in DIALECTS:
        said = say([dialect.stream(TEXTS)], include_usage=False)
        assert [chunk for chunk in said.chunks if not chunk["choices"]] == []
        assert said.reading.tally.completion_tokens == len(TEXTS)  # counted for the edge all the same


def test_an_answer_without_text_is_an_answer() -> None:
    said = say([b"".join(llama_cpp([]))])
    assert (said.error, said.texts(), said.reasons) == (None, "", ["stop"])


@pytest.mark.parametrize("surface", SURFACES)
def test_the_surface_says_how_a_stream_ends(surface: str) -> None:
    normaliser = StreamNormaliser(reading_for(), SURFACES[surface], False)
    normaliser.feed(b"".join(llama_cpp(["a"])))
    assert normaliser.finish().endswith(SURFACES[surface].terminal)


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
@pytest.mark.parametrize("write", [compact, lambda payload: json.dumps(payload).encode()], ids=["compact", "spaced"])
def test_reasoning_has_one_name(name: str, write: Any) -> None:
    def chunk(**delta: str | None) -> bytes:
        return data(write({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}))

    thoughts = [chunk(**{"role": "assistant", "content": "", name: "Let "}), chunk(**{name: "me", "content": None})]
    slices = [*thoughts, chunk(content="Yes", **{name: None}), chunk(content="!"), *llama_cpp(["?"])]
    said = say(slices)
    assert (said.texts("reasoning_content"), said.texts()) == ("Let me", "Yes!?")
    assert b'"reasoning":"' not in said.data
    answer = collect(slices)
    assert isinstance(answer, dict)
    message = answer["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("Let me", "Yes!?")


# -- how answers end --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cut", "code"),
    [
        (llama_cpp(["a", "b"])[:4], "upstream_incomplete"),  # EOF in the middle
        (llama_cpp(["a", "b"])[:-1], "upstream_incomplete"),  # finish_reason and usage, then EOF
        ([*llama_cpp(["a", "b"])[:4], DONE], "upstream_incomplete"),  # [DONE] without finish_reason
        ([DONE], "upstream_incomplete"),
        ([], "upstream_incomplete"),
        ([b"".join(llama_cpp(["a"]))[:-3]], "upstream_incomplete"),  # EOF inside [DONE]
    ],
)
def test_success_is_a_finish_reason_and_done(cut: list[bytes], code: str) -> None:
    for slices in (cut, [b"".join(cut)], [bytes([byte]) for byte in b"".join(cut)]):
        said = say(slices)
        assert said.error is not None
        assert said.error.code == code
        assert TERMINAL not in said.data
        error = collect(slices)
        assert isinstance(error, ApiError)
        assert error.code == code


def test_what_follows_done_is_not_said() -> None:
    late = data(compact({"choices": [{"delta": {"content": "too late"}, "finish_reason": None}]}))
    for slices in ([*llama_cpp(["a"]), late], [b"".join(llama_cpp(["a"])) + late]):
        said = say(slices)
        assert (said.error, said.texts()) == (None, "a")
        answer = collect(slices)
        assert isinstance(answer, dict)
        assert answer["choices"][0]["message"]["content"] == "a"


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        "many",
        [],
        {"prompt_tokens": -5, "completion_tokens": -1},
        {"prompt_tokens": 10**12, "completion_tokens": 10**12},
        {"prompt_tokens": "7", "completion_tokens": None},
        {"prompt_tokens": True, "completion_tokens": 1},
        {"prompt_tokens": 1.5, "completion_tokens": 2},
    ],
)
def test_a_usage_that_cannot_be_is_replaced_by_what_was_counted(wrong: Any) -> None:
    events = [event for event in llama_cpp(["a", "b", "c"]) if b'"usage"' not in event]
    for choices in ([], [{"index": 0, "delta": {}, "finish_reason": "stop"}]):
        said = say([*events[:-1], data(compact({"choices": choices, "usage": wrong})), DONE])
        assert said.error is None
        assert said.reading.tally.usage().to_wire() == {"prompt_tokens": 0, "completion_tokens": 3, "total_tokens": 3}


def test_usage_is_what_the_runtime_said_last() -> None:
    events = llama_cpp(["a", "b"])
    events.insert(2, data(compact({"choices": [], "usage": usage(1)})))
    assert say(events).reading.tally.completion_tokens == 2


def test_a_usage_of_nothing_is_not_told() -> None:
    events = [event for event in llama_cpp(["a", "b"]) if b'"usage"' not in event]
    nothing = data(compact({"choices": [], "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}}))
    assert say([*events[:-1], nothing, DONE]).reading.tally.completion_tokens == 2


def test_a_usage_with_every_event_is_right_at_the_end_of_each() -> None:
    """vLLM's ``continuous_usage_stats``."""
    reading = reading_for()
    normaliser = StreamNormaliser(reading, SURFACES["chat"], True)
    for count in range(1, 5):
        choices = [{"index": 0, "delta": {"content": "a"}, "finish_reason": None}]
        normaliser.feed(data(compact({"choices": choices, "usage": usage(count)})))
        assert reading.tally.completion_tokens == count


def test_a_usage_told_early_lifts_no_limit() -> None:
    begin, _, word, *_ = llama_cpp(["a"])
    early = data(compact({"choices": [], "usage": usage(0)}))
    said = say([begin, early, *[word] * 50], max_tokens=10)
    assert (said.error, said.reasons) == (None, ["length"])
    assert said.reading.tally.usage() == Usage(7, 11)


def test_a_runtime_that_ignores_max_tokens_is_ended_here() -> None:
    endless = [llama_cpp(["a"])[0]] + [llama_cpp(["a"])[2]] * 50
    said = say(endless, max_tokens=10)
    assert said.error is None
    assert said.reasons == ["length"]
    assert said.reading.tally.completion_tokens == 11  # the one too many is how it was noticed
    assert said.data.endswith(TERMINAL)


# -- errors -----------------------------------------------------------------------------------------------------------

CONTEXT = "The number of tokens to keep is greater than the context length (4096) of the loaded model."
TOO_LONG = "context_length_exceeded"
ERRORS = {
    "data": (data(compact({"error": {"message": "decode failed", "type": "a", "code": 500}})), "runtime_error"),
    "data, spaced": (data(json.dumps({"error": {"message": "decode failed"}}).encode()), "runtime_error"),
    "text": (data(compact({"error": "llama runner process has terminated"})), "runtime_error"),
    "in a chunk": (data(compact({"choices": [], "error": {"message": "no"}})), "runtime_error"),
    "event": (b"event: error\n" + data(compact({"error": {"message": CONTEXT}, "message": CONTEXT})), TOO_LONG),
    "event behind its data": (data(compact({"message": "boom"}))[:-1] + b"event: error\n\n", "runtime_error"),
    "event with text": (b"event: error\n" + data(b"the worker died"), "runtime_error"),
    "event with a JSON text": (b"event: error\n" + data(b'"the worker died"'), "runtime_error"),
    "field": (b'error: {"code":500,"message":"decode failed"}\n\n', "runtime_error"),
    "field with context": (b'error: {"code":400,"message":"exceeds the available context size"}\n\n', TOO_LONG),
    "flat": (data(compact({"object": "error", "message": "the scheduler died", "code": 500})), "runtime_error"),
    "busy": (data(compact({"error": {"message": "queue is full", "code": 503}})), "overloaded"),
    "CRLF": (data(compact({"error": {"message": "no"}})).replace(b"\n", b"\r\n"), "runtime_error"),
    "not JSON": (data(b"not json at all"), "upstream_invalid"),
    "cut JSON": (data(b'{"choices":[{"delta":'), "upstream_invalid"),
    "an array": (data(b"[1,2]"), "upstream_invalid"),
    "too deep": (data(b"[" * 200_000), "upstream_invalid"),
    "content of another type": (data(compact({"choices": [{"delta": {"content": 7}}]})), "upstream_invalid"),
    "content as parts": (data(compact({"choices": [{"delta": {"content": [{"text": "a"}]}}]})), "upstream_invalid"),
    "over 1 MiB": (data(b'{"choices":[{"delta":{"content":"' + b"x" * MAX_EVENT_BYTES + b'"}}]}'), "upstream_invalid"),
}  # fmt: skip
BEFORE = llama_cpp(["said", " before"])[:4]


@pytest.mark.parametrize("shape", ERRORS)
def test_an_error_instead_of_an_answer(shape: str) -> None:
    error, code = ERRORS[shape]
    for slices in ([error], [error, DONE], [error + DONE], [b": ping\n\n", error]):
        said = say(slices)
        assert said.error is not None
        assert (said.error.code, said.notes, said.data) == (code, b"", b"")
        whole = collect(slices)
        assert isinstance(whole, ApiError)
        assert whole.code == code


@pytest.mark.parametrize("shape", ERRORS)
def test_an_error_in_the_middle_comes_after_what_was_said(shape: str) -> None:
    error, code = ERRORS[shape]
    rest = llama_cpp(["after"])[2:]
    tail = error[-40:] if len(error) > 4096 else error  # of a huge one only the last bytes are of interest one by one
    cuts = [error[: len(error) - len(tail)], *(bytes([byte]) for byte in tail)]
    for slices in (
        [*BEFORE, error, *rest],
        [b"".join(BEFORE), error + b"".join(rest)],
        [*BEFORE, *cuts, *rest],
    ):
        said = say(slices)
        assert said.error is not None
        assert said.error.code == code
        assert said.texts() == "said before"
        assert TERMINAL not in said.data
        whole = collect(slices)
        assert isinstance(whole, ApiError)
        assert whole.code == code


@pytest.mark.parametrize("shape", [shape for shape, (error, _) in ERRORS.items() if len(error) < 4096])
def test_an_error_in_one_slice_with_what_was_said_before(shape: str) -> None:
    error, code = ERRORS[shape]
    for slices in each_split(b"".join(BEFORE) + error + DONE, step=5):
        said = say(slices)
        assert said.error is not None
        assert (said.error.code, said.texts()) == (code, "said before")


def test_errors_do_not_repeat_what_the_runtime_wrote() -> None:
    for secret in ("the prompt was: hunter2", "model hunter2 not found"):
        for error in (data(compact({"error": {"message": secret}})), b"error: %s\n\n" % secret.encode()):
            failed = say([error]).error
            assert failed is not None
            assert "hunter2" not in failed.message


@given(st.binary(max_size=200), st.booleans())
def test_garbage_fails_with_a_typed_error(garbage: bytes, begun: bool) -> None:
    slices = [*BEFORE, garbage] if begun else [garbage]
    said = say(slices)
    assert said.error is not None
    assert said.error.code in {"upstream_invalid", "upstream_incomplete", "runtime_error"}
    assert isinstance(collect(slices), ApiError)


JSON_VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)
DELTA = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("content", "reasoning", "reasoning_content", "tool_calls"), JSON_VALUE)
)
CHOICE = JSON_VALUE | st.fixed_dictionaries({}, optional={"delta": JSON_VALUE | DELTA, "finish_reason": JSON_VALUE})
CHUNK = st.fixed_dictionaries(
    {},
    optional={
        "choices": JSON_VALUE | st.lists(CHOICE, max_size=2),
        **dict.fromkeys(("id", "model", "created", "usage", "error", "object"), JSON_VALUE),
    },
)


@given(st.lists(CHUNK, max_size=4))
def test_chunks_of_any_shape_give_an_answer_or_a_typed_error(chunks: list[Any]) -> None:
    slices = [*(data(compact(chunk)) for chunk in chunks), *llama_cpp(["end"])]
    said = say(slices)
    assert said.error is not None or said.data.endswith(TERMINAL)
    whole = collect(slices)
    assert isinstance(whole, ApiError) is (said.error is not None)


# -- bounds -----------------------------------------------------------------------------------------------------------


def test_an_endless_event_is_refused_in_bounded_memory() -> None:
    for feed in (StreamNormaliser(reading_for(), SURFACES["chat"], True).feed, WholeAnswer(reading_for()).feed):
        tracemalloc.start()
        with pytest.raises(ApiError, match="1 MiB") as refused:
            feed(b'data: {"choices":[{"delta":{"content":"')
            for _ in range(1000):
                feed(b"x" * 4096)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert refused.value.code == "upstream_invalid"
        assert peak < 3 * MAX_EVENT_BYTES


@pytest.mark.parametrize("flowing", [False, True])
def test_an_event_of_1_mib_passes_and_one_byte_more_does_not(flowing: bool) -> None:
    around = b'data: {"choices":[{"delta":{"content":""}}]}'
    before = BEFORE if flowing else []
    for size, passes in ((MAX_EVENT_BYTES, True), (MAX_EVENT_BYTES + 1, False)):
        event = around.replace(b'""', b'"%s"' % (b"x" * (size - len(around))))
        assert len(event) == size
        said = say([*before, event + b"\n\n", *llama_cpp(["."])])
        assert (said.error is None) is passes
        assert said.texts().count("x") == (size - len(around) if passes else 0)


def test_names_of_any_length_are_not_repeated_in_every_event() -> None:
    named = data(compact({"id": "i" * 5000, "model": "m" * 5000, "choices": [{"delta": {"content": "a"}}]}))
    said = say([named, *llama_cpp(["b"])])
    assert len(said.notes) < 500
    assert said.chunks[0]["id"] == "chatcmpl-ours"


def test_a_whole_answer_without_end_is_refused() -> None:
    answer = WholeAnswer(reading_for())
    event = data(compact({"choices": [{"delta": {"content": "x" * 900_000}}]}))
    with pytest.raises(ApiError) as refused:
        for _ in range(100):
            answer.feed(event)
    assert refused.value.code == "upstream_invalid"


# -- the older completions --------------------------------------------------------------------------------------------


def completion(*words: str) -> list[bytes]:
    """What llama.cpp says for ``logprobs: 1``: log probabilities in the shape of a chat's, and a chat's id."""
    events = []
    for word in words:
        one = {"token": word, "logprob": -0.5, "bytes": None, "top_logprobs": [{"token": "A", "logprob": -2.0}]}
        choice = {"finish_reason": None, "index": 0, "text": word, "logprobs": {"content": [one]}}
        events.append(data(compact({"choices": [choice], "object": "text_completion", "id": "chatcmpl-7"})))
    ending = {"finish_reason": "stop", "index": 0, "text": "", "logprobs": None}
    return [*events, data(compact({"choices": [ending], "object": "text_completion"})), DONE]


def completion_reading() -> CompletionReading:
    return CompletionReading(Tally(), MAX_TOKENS, "cmpl-ours", 1, upstream_errors.from_event)


def test_log_probabilities_of_a_whole_completion_have_its_own_shape() -> None:
    answer = WholeCompletion(completion_reading())
    for piece in completion("The", " rain"):
        answer.feed(piece)
    found = json.loads(answer.body({}))
    assert (found["id"], found["choices"][0]["text"]) == ("cmpl-7", "The rain")
    assert found["choices"][0]["logprobs"] == {
        "tokens": ["The", " rain"],
        "token_logprobs": [-0.5, -0.5],
        "top_logprobs": [{"A": -2.0}, {"A": -2.0}],
        "text_offset": [0, 3],
    }


def test_log_probabilities_of_a_streamed_completion_have_its_own_shape() -> None:
    """Also those of events that are like the one before."""
    stream = CompletionStream(completion_reading(), SURFACES["openai.completions"], False)
    said = b"".join(b"".join(stream.feed(piece)) for piece in completion("The", " rain", " rain"))
    told = [json.loads(event.data)["choices"][0]["logprobs"] for event in Decoder().feed(said)]
    assert [one["tokens"] for one in told] == [["The"], [" rain"], [" rain"]]
    assert [one["text_offset"] for one in told] == [[0], [3], [8]]


def test_log_probabilities_in_the_shape_of_a_completion_stay_as_they_are() -> None:
    """vLLM has that one (runtimes §3)."""
    own = {"tokens": ["a"], "token_logprobs": [-1.0], "top_logprobs": [None], "text_offset": [0]}
    stream = CompletionStream(completion_reading(), SURFACES["openai.completions"], False)
    choice = {"finish_reason": None, "index": 0, "text": "a", "logprobs": own}
    said = b"".join(stream.feed(data(compact({"choices": [choice]}))))
    assert [json.loads(event.data)["choices"][0]["logprobs"] for event in Decoder().feed(said)] == [own]


def test_log_probabilities_of_no_shape_end_a_completion() -> None:
    choice = {"finish_reason": None, "index": 0, "text": "a", "logprobs": {"content": [7]}}
    with pytest.raises(ApiError) as refused:
        WholeCompletion(completion_reading()).feed(data(compact({"choices": [choice]})))
    assert refused.value.code == "upstream_invalid"
