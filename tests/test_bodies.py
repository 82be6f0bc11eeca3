"""The body parser against bodies that nobody thought of: one reading, the same as another parser's, or a refusal."""

from __future__ import annotations

import json
import math
import re
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import from_json

from shared.contract.body import MAX_MESSAGES, parse_body
from shared.contract.chat import ChatBody
from shared.contract.chat_completions import ChatCompletionBody
from shared.contract.completions import CompletionBody
from shared.contract.embeddings import EmbeddingBody
from shared.contract.errors import ApiError
from shared.contract.messages import MessagesBody
from shared.contract.responses import ResponsesBody
from shared.contract.strict_json import MAX_DEPTH, loads_object
from shared.contract.surface import SURFACES

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
NUMBER = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
VALUE = st.recursive(
    st.none() | st.booleans() | NUMBER | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)
OBJECT = st.dictionaries(TEXT, VALUE, max_size=5)
# Pieces of which bodies are made, so that what is almost JSON is common.
PIECE = st.sampled_from(
    [
        *(
            b"{",
            b"}",
            b"[",
            b"]",
            b":",
            b",",
            b'"',
            b'"a"',
            b'"a":',
            b'{"a":1}',
            b'"\\u0061":',
            b"\\",
            b"\\u",
            b"\\ud83d",
        ),
        *(b"1", b"-", b"0", b".5", b"e", b"1e400", b"-1e-400", b"9" * 4400, b"NaN", b"Infinity", b"null", b"true"),
        *(b" ", b"\t", b"\n", b"\r", b"\0", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", "é🌍".encode(), b"//", b"'"),
    ]
)
MESSAGES = [{"role": "user", "content": "Where to?"}]
SECRET = "a sentence that nobody may see again"


def read(raw: bytes) -> dict[str, Any] | None:
    """What ``raw`` is read as; None when it is refused, which may only be as ``invalid_json``."""
    try:
        return loads_object(raw)
    except ApiError as error:
        assert error.code == "invalid_json"
        assert len(error.message) < 200
        error.envelope("request-id")  # and the refusal itself can be sent
        return None


def same(one: Any, other: Any) -> bool:
    """Equal as a runtime would see it: 1 is neither 1.0 nor true, -0.0 is not 0.0."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float):
        return one == other and math.copysign(1, one) == math.copysign(1, other)
    return one == other


@given(OBJECT, st.booleans(), st.sampled_from([None, 1]))
def test_every_plain_object_is_read_as_it_is(value: dict[str, Any], escaped: bool, indent: int | None) -> None:
    assert same(loads_object(json.dumps(value, ensure_ascii=escaped, indent=indent).encode()), value)


@pytest.mark.case("A1", "A2", "A4", "A5", "A13")
@given(st.lists(PIECE | st.binary(max_size=3), max_size=20).map(b"".join) | st.binary(max_size=60))
def test_what_is_read_is_read_alike_by_another_parser(raw: bytes) -> None:
    if (found := read(raw)) is not None:
        assert same(found, from_json(raw, allow_inf_nan=False))


@pytest.mark.case("A1", "A5", "A13")
@given(OBJECT, st.data())
def test_a_good_body_with_a_few_bytes_changed_is_read_alike_or_refused(
    value: dict[str, Any], data: st.DataObject
) -> None:
    raw = bytearray(json.dumps(value).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(raw)))
        raw[at : at + data.draw(st.integers(0, 2))] = data.draw(PIECE | st.binary(max_size=2))
    if (found := read(bytes(raw))) is not None:
        assert same(found, from_json(bytes(raw), allow_inf_nan=False))


@pytest.mark.case("A5")
@given(st.lists(st.tuples(TEXT, VALUE), min_size=1, max_size=5), st.data())
def test_a_key_that_stands_twice_is_refused_wherever_it_stands(
    members: list[tuple[str, Any]], data: st.DataObject
) -> None:
    members.insert(data.draw(st.integers(0, len(members))), (data.draw(st.sampled_from(members))[0], 1))
    spelled = (
        f"{json.dumps(key, ensure_ascii=data.draw(st.booleans()))}:{json.dumps(value)}" for key, value in members
    )
    inside = "{" + ",".join(spelled) + "}"
    for around in ("%s", '{"messages":[%s]}', '{"metadata":{"a":[1,%s]}}'):
        assert read((around % inside).encode()) is None


@pytest.mark.case("A3")
@given(st.integers(0, 2 * MAX_DEPTH) | st.integers(MAX_DEPTH - 2, MAX_DEPTH), st.data())
def test_only_the_depth_decides_whether_something_is_too_deep(depth: int, data: st.DataObject) -> None:
    kind = st.sampled_from([("[", "]"), ('{"a":', "}")])
    levels = data.draw(st.lists(kind, min_size=depth, max_size=depth))
    raw = '{"a":' + "".join(begin for begin, _ in levels) + "1" + "".join(end for _, end in reversed(levels)) + "}"
    assert (read(raw.encode()) is None) == (1 + len(levels) > MAX_DEPTH)


@pytest.mark.case("A3")
@pytest.mark.parametrize("kind", [ChatBody, ChatCompletionBody])
@pytest.mark.parametrize("field", ["metadata", "messages", "stop", "tools"])
@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
def test_no_depth_is_too_much_for_what_reads_the_body_after_it_was_parsed(
    kind: Any, field: str, opening: bytes
) -> None:
    """Also the depths at which the parser's stack is nearly used up, whichever they are for this test's own stack."""
    closing = b"]" if opening == b"[" else b"}"
    limit = sys.getrecursionlimit()
    for depth in (MAX_DEPTH - 2, *range(limit - 150, limit + 5)):
        nested = b'{"b":' + opening * depth + b"1" + closing * depth + b"}"
        asked = b"" if field == "messages" else b'"messages":[{"role":"user","content":"x"}],'
        try:
            parse_body(kind, b'{%s"%s":%s}' % (asked, field.encode(), nested))
        except ApiError as error:
            assert error.status == 400


FIELD = st.sampled_from(
    [*ChatBody.model_fields, *ChatCompletionBody.model_fields, "chatType", "clientId", "tools", "system"]
)
PLAUSIBLE = st.sampled_from(
    [MESSAGES, MESSAGES * 2, 1, 0.7, -1, 2**63, True, "home", "default", "chat:home", "", ["a"], {"city": "Rome"}, None]
)


@pytest.mark.case("A18")
@pytest.mark.parametrize("kind", [ChatBody, ChatCompletionBody])
@given(st.dictionaries(FIELD | TEXT, PLAUSIBLE | VALUE, max_size=6), st.booleans())
def test_every_object_is_a_body_within_bounds_or_a_400(
    kind: type[ChatBody | ChatCompletionBody], fields: dict[str, Any], asks: bool
) -> None:
    if asks:
        fields = {"messages": MESSAGES, **fields}
    try:
        body = parse_body(kind, json.dumps(fields).encode())
    except ApiError as error:
        assert (error.status, error.code) == (400, "invalid_request")
        return
    assert 1 <= len(body.messages) <= MAX_MESSAGES
    assert all(isinstance(message.content, str) for message in body.messages)
    if kind is ChatBody:
        assert {message.role for message in body.messages} <= {"user", "assistant"}
    assert body.max_tokens is None or 1 <= body.max_tokens <= 1_000_000
    assert body.temperature is None or 0 <= body.temperature <= 2
    assert body.top_p is None or 0 < body.top_p <= 1
    assert body.seed is None or -(2**63) <= body.seed < 2**63
    assert len(body.stop or ()) <= 4


@pytest.mark.parametrize("kind", [ChatBody, ChatCompletionBody])
@given(FIELD, st.data())
def test_no_refusal_quotes_a_value(kind: type[ChatBody | ChatCompletionBody], field: str, data: st.DataObject) -> None:
    value = data.draw(st.sampled_from([SECRET, [SECRET], {"role": SECRET}, [{"role": SECRET, "content": SECRET}], 7]))
    try:
        parse_body(kind, json.dumps({"messages": MESSAGES, field: value}).encode())
    except ApiError as error:
        assert SECRET not in error.message + (error.param or "")


TEXT_PART = {"type": "text", "text": ""}
CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": ""}}


@pytest.mark.parametrize(
    ("kind", "field", "message"),
    [
        (ChatCompletionBody, "messages", {"role": "user", "content": [TEXT_PART] * 64}),
        (ChatCompletionBody, "messages", {"role": "assistant", "tool_calls": [CALL] * 64}),
        (MessagesBody, "messages", {"role": "user", "content": [TEXT_PART] * 64}),
        (
            MessagesBody,
            "messages",
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": [TEXT_PART] * 63}]},
        ),
        (ResponsesBody, "input", {"role": "user", "content": [TEXT_PART] * 64}),
        (ResponsesBody, "input", {"type": "function_call_output", "call_id": "a", "output": [TEXT_PART] * 64}),
    ],
)
def test_parts_have_a_bound_together(kind: Any, field: str, message: dict[str, Any]) -> None:
    assert parse_body(kind, json.dumps({field: [message] * 64}).encode()).parts == 64
    with pytest.raises(ApiError) as refused:
        parse_body(kind, json.dumps({field: [message] * 65}).encode())
    assert (refused.value.param, "at most 4096 parts" in refused.value.message) == (field, True)


ASKED = {CompletionBody: {"prompt": "x"}, EmbeddingBody: {"input": "x"}}


@pytest.mark.case("A18")
@pytest.mark.parametrize("kind", list(ASKED))
@given(st.data())
def test_completions_and_embeddings_are_bodies_within_bounds_or_a_400(kind: Any, data: st.DataObject) -> None:
    """And no refusal quotes a value."""
    plausible = st.sampled_from([SECRET, [SECRET], {SECRET: 1}, {"role": SECRET}, [[SECRET]], 7, -1, 0.5, True, None])
    fields = data.draw(
        st.dictionaries(st.sampled_from([*kind.model_fields, "dimensions"]), plausible | VALUE, max_size=4)
    )
    try:
        body = parse_body(kind, json.dumps({**ASKED[kind], **fields}).encode())
    except ApiError as error:
        assert (error.status, error.code) == (400, "invalid_request")
        assert SECRET not in error.message + (error.param or "")
        return
    assert body.parts >= 1 and (body.asked_tokens is None or 0 <= body.asked_tokens <= 1_000_000)
    assert all(isinstance(text, str) and text for text in (body.input if kind is EmbeddingBody else [body.prompt]))


@pytest.mark.parametrize(
    ("surface", "fields"),
    [
        ("openai.completions", {"prompt": ["a", "b"]}),
        ("chat", {"messages": MESSAGES, "stop": ["a"] * 5}),
        ("chat", {"messages": MESSAGES, "client_id": "a b"}),
        ("openai.chat", {"messages": MESSAGES, "model": "a b"}),
        ("openai.chat", {"messages": [5]}),
        ("openai.chat", {"messages": MESSAGES, "top_logprobs": 3}),
    ],
)
def test_a_refusal_speaks_of_the_body_and_not_of_how_it_is_read(surface: str, fields: dict[str, Any]) -> None:
    with pytest.raises(ApiError) as refused:
        parse_body(SURFACES[surface].body, json.dumps(fields).encode())
    assert not re.search(r"Value error|validation|pattern|instance|Body|\\", refused.value.message)


def test_names_without_effect_are_few_and_short() -> None:
    """They go back in a header and into events: whoever makes names up decides how long neither is."""
    unknown = {f"{'n' * 100_000}{index}": 1 for index in range(100)}
    dropped = parse_body(ChatCompletionBody, json.dumps({"messages": MESSAGES, **unknown}).encode()).dropped
    assert dropped == ["n" * 64 + "..."] * 32
    exact = parse_body(ChatCompletionBody, json.dumps({"messages": MESSAGES, "n" * 64: 1}).encode()).dropped
    assert exact == ["n" * 64]
