"""Server-sent events in any slices. ``vectors/sse.json`` holds the rules as cases for every implementation of ours."""

from __future__ import annotations

import json
import re
import tracemalloc
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.contract.sse import MAX_EVENT_BYTES, Decoder, Event, Framer, SSEError, encode

CASES = json.loads((Path(__file__).parent / "vectors" / "sse.json").read_text(encoding="utf-8"))["cases"]
# Pieces of which streams are made, so that line ends, fields and odd bytes meet often.
PIECE = st.sampled_from(
    [
        *(b"\n", b"\r", b"\r\n", b"\n\n", b"\r\n\r\n", b"\r\r"),
        *(b"data: ", b"data:", b"data", b"event: error", b"id: 1", b"error: no", b": ping", b"retry: 1", b":", b" "),
        *(b"\xef\xbb\xbf", "é日🌍".encode(), b"\xff", b"\xe6\x97", b"\0", b"x" * 40, b"[DONE]"),
    ]
)
STREAM = st.lists(PIECE | st.binary(max_size=6), max_size=30).map(b"".join)


def slices_of(data: st.DataObject, stream: bytes) -> list[bytes]:
    """The stream cut at any places, sometimes twice at the same one, so that a slice is empty."""
    cuts = sorted([0, len(stream), *data.draw(st.lists(st.integers(0, len(stream)), max_size=12))])
    return [stream[begin:end] for begin, end in pairwise(cuts)]


def decode(slices: list[bytes], limit: int = MAX_EVENT_BYTES) -> list[Event]:
    decoder = Decoder(limit)
    return [event for piece in slices for event in decoder.feed(piece)]


def as_written(event: Event) -> dict[str, Any]:
    """As the vectors write events: absent fields left out."""
    fields = {"data": event.data, "event": event.event or None, "id": event.id, "error": event.error}
    return {name: value for name, value in fields.items() if value is not None}


def each_way_to_cut(stream: bytes) -> list[list[bytes]]:
    ways = [[stream], [stream[i : i + 1] for i in range(len(stream))]]
    return ways + [[stream[:cut], stream[cut:]] for cut in range(1, len(stream))]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_vectors(case: dict[str, Any]) -> None:
    given = [piece.encode("latin-1") for piece in case["slices"]]
    limit = case.get("limit", MAX_EVENT_BYTES)
    for slices in [given, *each_way_to_cut(b"".join(given))]:
        if case.get("fails"):
            with pytest.raises(SSEError):
                decode(slices, limit)
        else:
            assert [as_written(event) for event in decode(slices, limit)] == case["events"]


def test_vectors_are_usable_elsewhere() -> None:
    assert len({case["name"] for case in CASES}) == len(CASES)
    for case in CASES:
        assert set(case) <= {"name", "slices", "limit", "events", "fails"}
        assert ("events" in case) is not ("fails" in case)
        assert all(ord(letter) < 256 for piece in case["slices"] for letter in piece)


@given(STREAM, st.data())
def test_any_split_gives_the_same_events(stream: bytes, data: st.DataObject) -> None:
    assert decode(slices_of(data, stream)) == decode([stream])


def by_the_standard(stream: bytes) -> list[Event]:
    """WHATWG HTML §9.2.6 read word by word over the whole stream, and the ``error`` field that we add to it; ids do
    not last beyond their event, because nobody here reconnects by itself."""
    text = stream.decode("utf-8", "replace").removeprefix("\ufeff")
    lines = re.split("\r\n|\n|\r", text)[:-1]  # a line that nothing ends is dropped
    found: list[Event] = []
    fields: dict[str, str] = {}
    for line in lines:
        if not line:
            if "data" in fields or "error" in fields:
                data = fields.get("data", "").removesuffix("\n")
                found.append(Event(data, fields.get("event", ""), fields.get("id"), fields.get("error")))
            fields = {}
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            fields["data"] = fields.get("data", "") + value + "\n"
        elif name in ("event", "error") or (name == "id" and "\0" not in value):
            fields[name] = value
    return found


@given(STREAM, st.data())
def test_any_stream_is_read_as_the_standard_says(stream: bytes, data: st.DataObject) -> None:
    assert decode(slices_of(data, stream)) == by_the_standard(stream)


@given(st.binary(max_size=300), st.data())
def test_any_bytes_give_events_and_never_an_error_below_the_limit(stream: bytes, data: st.DataObject) -> None:
    assert decode(slices_of(data, stream)) == decode([stream])


@given(STREAM, st.data())
def test_the_limit_does_not_depend_on_the_slices(stream: bytes, data: st.DataObject) -> None:
    stream = stream.replace(b"\xef\xbb\xbf", b"")  # the three bytes of a BOM count only where a line is cut

    def outcome(slices: list[bytes]) -> list[Event] | str:
        try:
            return decode(slices, limit=24)
        except SSEError:
            return "too long"

    assert outcome(slices_of(data, stream)) == outcome([stream])


def test_an_event_comes_out_as_soon_as_its_blank_line_is_there() -> None:
    decoder = Decoder()
    assert decoder.feed(b"data: a\n") == []
    assert decoder.feed(b"\n") == [Event("a")]
    assert decoder.feed(b"data: b\r\n\r") == [Event("b")]
    assert decoder.feed(b"\ndata: c\r\r") == [Event("c")]


def test_an_endless_line_is_an_error_in_bounded_memory() -> None:
    for reader in (Decoder(), Framer()):
        tracemalloc.start()
        with pytest.raises(SSEError, match=str(MAX_EVENT_BYTES)):
            reader.feed(b"data: ")
            for _ in range(1000):
                reader.feed(b"x" * 4096)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 3 * MAX_EVENT_BYTES


@given(st.text().filter(lambda text: "\n" not in text and "\r" not in text), st.sampled_from([None, "error", "queued"]))
def test_what_is_encoded_is_decoded(data: str, name: str | None) -> None:
    stream = encode(data, name)
    assert decode([stream]) == [Event(data, name or "")]
    assert encode(data.encode(), name) == stream


# The framer: what the relay uses, which keeps bytes as they are.


@given(STREAM, st.data())
def test_framed_pieces_hold_the_same_events(stream: bytes, data: st.DataObject) -> None:
    framer = Framer()
    pieces = [framer.feed(piece) for piece in slices_of(data, stream)]
    assert all(piece.endswith(b"\n\n") for piece in pieces if piece)
    framed = b"".join(pieces)
    assert stream.replace(b"\r\n", b"\n").replace(b"\r", b"\n").startswith(framed)
    assert decode([framed]) == decode([stream])


@given(STREAM, st.data())
def test_passing_is_what_feeding_would_give(stream: bytes, data: st.DataObject) -> None:
    framer = Framer()
    for piece in slices_of(data, stream):
        passes = framer.passes(piece)
        fed = framer.feed(piece)
        assert not passes or fed == piece


def test_an_event_over_the_limit_is_an_error_even_when_it_comes_whole() -> None:
    event = b"data: " + b"x" * 20 + b"\n\n"
    for before, after in ((b"", b""), (b"data: a\n\n", b""), (b"", b"data: b"), (b"data: a\n\n", b"data: b\n\n")):
        assert Framer(limit=26).feed(before + event + after) == before + event + (after if after[-1:] == b"\n" else b"")
        with pytest.raises(SSEError):
            Framer(limit=25).feed(before + event + after)


def test_many_small_events_in_one_slice_are_no_long_event() -> None:
    stream = b"data: x\n\n" * 100
    assert Framer(limit=16).feed(stream) == stream
