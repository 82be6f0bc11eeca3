"""The frame codec by property: what is packed comes back, and nothing a peer sends does more than raise FrameError."""

from __future__ import annotations

import contextlib
import json
import math
import struct
import tracemalloc
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.contract.errors import CODES, ApiError
from shared.contract.snapshot import ChatTypeInfo, ModelInfo, NodeSnapshot
from shared.contract.surface import SURFACES
from shared.link import frames
from shared.link.call import Call, End, Usage
from shared.link.frames import FrameError, Kind, pack, pack_json, pack_open, read_json, read_open, unpack

STREAM = st.integers(0, 2**32 - 1)
FRAME = st.tuples(STREAM, st.integers(0, 255), st.binary(max_size=300))
# What JSON can hold, with the numbers that break arithmetic.
JSON_LEAF = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.just(10**400)
JSON_VALUE = st.recursive(
    JSON_LEAF, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
)


def fields(*names: str) -> st.SearchStrategy[dict[str, Any]]:
    """Objects that have some of ``names``, with anything in them."""
    return st.fixed_dictionaries({}, optional=dict.fromkeys(names, JSON_VALUE))


def header(stream: int, kind: int, length: int) -> bytes:
    return struct.pack("!IBI", stream, kind, length)


@given(st.lists(FRAME, min_size=1, max_size=40), st.data())
def test_any_frames_in_any_grouping_come_back(sent: list[tuple[int, int, bytes]], data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(1, len(sent)))) | {0, len(sent)})
    received = [
        frame
        for begin, end in pairwise(cuts)
        for frame in unpack(b"".join(pack(stream, kind, payload) for stream, kind, payload in sent[begin:end]))
    ]
    assert received == sent


@given(st.binary(max_size=400))
def test_garbage_raises_frame_error_and_nothing_else(message: bytes) -> None:
    try:
        got = list(unpack(message))
    except FrameError:
        return
    assert b"".join(pack(*frame) for frame in got) == message  # then it was no garbage


@given(st.lists(FRAME, min_size=1, max_size=5), st.binary(min_size=1, max_size=8))
def test_frames_before_the_fault_are_given(good: list[tuple[int, int, bytes]], fault: bytes) -> None:
    taken = []
    with pytest.raises(FrameError):
        for frame in unpack(b"".join(pack(*frame) for frame in good) + fault):  # shorter than any frame's header
            taken.append(frame)
    assert taken == good


@given(st.lists(FRAME, min_size=1, max_size=4), st.data())
def test_a_frame_never_spans_two_messages(sent: list[tuple[int, int, bytes]], data: st.DataObject) -> None:
    whole = b"".join(pack(*frame) for frame in sent)
    cut = data.draw(st.integers(1, len(whole) - 1))
    if cut in {len(b"".join(pack(*frame) for frame in sent[:n])) for n in range(len(sent))}:
        return  # between two frames: that is a message
    with pytest.raises(FrameError):
        list(unpack(whole[:cut]))


def test_an_empty_message_is_none() -> None:
    with pytest.raises(FrameError):
        list(unpack(b""))


@pytest.mark.parametrize(
    ("kind", "limit"),
    [
        (Kind.DATA, frames.MAX_CONTENT_BYTES),
        (Kind.NOTE, frames.MAX_CONTENT_BYTES),
        (Kind.OPEN, frames.MAX_OPEN_BYTES),
        (Kind.HELLO, 1 << 20),
        (Kind.CREDIT, 1 << 20),
        (200, 1 << 20),
    ],
)
def test_each_kind_has_a_largest_size(kind: int, limit: int) -> None:
    assert [len(payload) for _, _, payload in unpack(pack(1, kind, bytes(limit)))] == [limit]
    with pytest.raises(FrameError, match="too long"):
        list(unpack(pack(1, kind, bytes(limit + 1))))


@given(STREAM, st.integers(0, 255), st.integers(9 << 20, 2**32 - 1))
def test_a_promised_length_is_refused_before_it_is_buffered(stream: int, kind: int, length: int) -> None:
    tracemalloc.start()
    with pytest.raises(FrameError, match="too long"):
        list(unpack(header(stream, kind, length) + b"x"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 << 10


def test_a_message_is_256_kib_or_one_larger_frame() -> None:
    half = pack(1, Kind.DATA, bytes(frames.MAX_MESSAGE_BYTES // 2 - frames.HEADER_BYTES))
    assert len(half) * 2 == frames.MAX_MESSAGE_BYTES
    assert len(list(unpack(half * 2))) == 2
    with pytest.raises(FrameError, match="several frames"):
        list(unpack(half * 2 + pack(0, Kind.PING, b"{}")))
    with pytest.raises(FrameError, match="several frames"):  # a million small frames in what one OPEN may be
        list(unpack(pack(0, Kind.PING, b"{}") * 100_000))
    assert len(list(unpack(pack(1, Kind.DATA, bytes(frames.MAX_MESSAGE_BYTES))))) == 1
    assert len(pack(1, Kind.OPEN, bytes(frames.MAX_OPEN_BYTES))) <= frames.MAX_WIRE_BYTES


@given(st.binary(max_size=200))
def test_control_payloads_are_objects_or_frame_errors(payload: bytes) -> None:
    try:
        value = read_json(payload)
    except FrameError:
        return
    assert isinstance(value, dict)


@pytest.mark.parametrize(
    "payload", [b"", b"[]", b"1", b"null", b"[" * 100_000, b'{"a":' * 100_000, b"9" * 5000, b"\xff", b"\x00{", b'{"a"']
)
def test_control_payloads_that_break_parsers(payload: bytes) -> None:
    with pytest.raises(FrameError):
        read_json(payload)


@given(st.dictionaries(st.text(max_size=10), st.text(max_size=20), max_size=5), st.binary(max_size=500))
def test_open_carries_head_and_body(head: dict[str, str], body: bytes) -> None:
    [(stream, kind, payload)] = unpack(pack_open(7, head, body))
    assert (stream, kind) == (7, Kind.OPEN)
    assert read_open(payload) == (head, body)


@given(st.binary(max_size=60))
def test_garbage_in_open(payload: bytes) -> None:
    with contextlib.suppress(FrameError):
        head, body = read_open(payload)
        assert isinstance(head, dict)
        assert payload.endswith(body)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\0\0\0",
        struct.pack("!I", 3) + b"{}",  # longer than the frame
        struct.pack("!I", 2**32 - 1) + b"{}",
        struct.pack("!I", (64 << 10) + 1) + b" " * (64 << 10) + b" ",
        struct.pack("!I", 2) + b"[]",
    ],
)
def test_open_heads_that_do_not_add_up(payload: bytes) -> None:
    with pytest.raises(FrameError):
        read_open(payload)


def test_an_open_head_too_long_to_send() -> None:
    with pytest.raises(FrameError):
        pack_open(1, {"request_id": "x" * (64 << 10)}, b"")


HEAD = {
    "surface": "chat",
    "chat_id": "c",
    "request_id": "r",
    "principal": "p",
    "stream": True,
    "deadline_ms": 1500,
    "max_tokens": None,
}


def test_a_call_survives_the_wire_and_its_deadline_is_what_remains() -> None:
    call = Call(SURFACES["chat"], b"{}", "chat-id", "request-id", "someone", True, deadline=100.0, max_tokens=64)
    wire = json.loads(json.dumps(call.to_wire(now=97.5)))
    assert wire["deadline_ms"] == 2500
    again = Call.from_wire(wire, b"{}", now=5000.0)
    assert again.deadline == 5002.5
    assert (again.surface, again.chat_id, again.request_id, again.principal) == (
        call.surface,
        call.chat_id,
        call.request_id,
        call.principal,
    )
    assert (again.stream, again.max_tokens, again.body) == (True, 64, b"{}")
    assert call.to_wire(now=200.0)["deadline_ms"] == 0


@given(fields(*HEAD))
def test_any_open_head_is_a_call_or_a_typed_error(wrong: dict[str, Any]) -> None:
    for head in (wrong, {**HEAD, **wrong}):
        try:
            call = Call.from_wire(head, b"", now=0.0)
        except (FrameError, ApiError):
            continue
        assert math.isfinite(call.deadline)


@pytest.mark.parametrize("name", ["deadline_ms", "max_tokens"])
@pytest.mark.parametrize("wrong", [math.inf, -math.inf, math.nan, "soon", [], {}])
def test_a_number_that_is_none_is_a_frame_error(name: str, wrong: Any) -> None:
    with pytest.raises(FrameError):
        Call.from_wire({**HEAD, name: wrong}, b"", now=0.0)


@pytest.mark.parametrize("wrong", [10**400, None])
def test_a_deadline_beyond_time_is_a_frame_error(wrong: Any) -> None:
    with pytest.raises(FrameError):
        Call.from_wire({**HEAD, "deadline_ms": wrong}, b"", now=0.0)


@pytest.mark.parametrize("surface", [[], {}, 5, None, ""])
def test_a_surface_that_is_no_name_is_not_supported(surface: Any) -> None:
    with pytest.raises(ApiError):
        Call.from_wire({**HEAD, "surface": surface}, b"", now=0.0)


def test_a_surface_of_a_newer_edge_is_not_supported() -> None:
    with pytest.raises(ApiError) as refused:
        Call.from_wire({**HEAD, "surface": "telepathy"}, b"", now=0.0)
    assert refused.value.code == "not_supported"
    assert "Upgrade the node" in refused.value.message


@given(fields("outcome", "usage", "model") | fields("usage").map(lambda wire: {**wire, "outcome": "stop"}))
def test_any_end_is_read(wire: dict[str, Any]) -> None:
    end = End.from_wire(json.loads(json.dumps(wire)))
    assert end.usage.prompt_tokens >= 0
    assert end.usage.completion_tokens >= 0


def test_an_end_survives_the_wire() -> None:
    end = End("length", Usage(3, 4), "some-model")
    assert End.from_wire(json.loads(json.dumps(end.to_wire()))) == end


@given(fields("code", "message", "param", "retry_after", "should_retry", "usage"))
def test_any_error_frame_is_an_error_that_can_be_shown(wire: dict[str, Any]) -> None:
    error = ApiError.from_wire(wire)
    assert error.code in CODES
    for name, value in error.headers():
        assert name.isascii()
        assert b"\n" not in value


@pytest.mark.parametrize("wrong", [math.inf, -math.inf, math.nan, 10**400, -1, "3", [], 86_401])
def test_a_retry_after_that_cannot_be_is_left_out(wrong: Any) -> None:
    error = ApiError.from_wire({"code": "rate_limited", "message": "Wait.", "retry_after": wrong})
    assert error.retry_after is None
    assert error.headers() == []


@pytest.mark.parametrize("code", CODES)
def test_every_error_survives_the_wire(code: str) -> None:
    error = ApiError(code, "What happened.", param="messages", retry_after=3.0, should_retry=False)
    again = ApiError.from_wire(json.loads(json.dumps(error.to_wire())))
    assert (again.code, again.message, again.param, again.retry_after, again.should_retry) == (
        code,
        "What happened.",
        "messages",
        3.0,
        False,
    )


SNAPSHOT = NodeSnapshot(
    "n",
    "b",
    models=(ModelInfo("m", 4096),),
    chat_types=(ChatTypeInfo("home", "Talk.", 512, 40),),
    runtime_state="ready",
)


def test_a_snapshot_survives_the_wire_and_a_newer_peer() -> None:
    wire = json.loads(json.dumps(SNAPSHOT.to_wire()))
    wire["colour"] = "blue"
    wire["models"][0]["parameters"] = 7
    assert NodeSnapshot.from_wire(wire) == SNAPSHOT


@given(fields(*SNAPSHOT.to_wire()))
def test_any_snapshot_is_one_or_a_value_error(wrong: dict[str, Any]) -> None:
    for wire in (wrong, {**SNAPSHOT.to_wire(), **wrong}):
        try:
            snapshot = NodeSnapshot.from_wire(wire)
        except ValueError:
            continue
        assert type(snapshot.seq) is int  # so that it can be put in order
        assert all(type(model.id) is str for model in snapshot.models)


def test_control_frames_are_compact_json() -> None:
    assert pack_json(0, Kind.CREDIT, {"bytes": 7}) == header(0, Kind.CREDIT, 11) + b'{"bytes":7}'
