"""One link's session: the order of frames, stream ids, and what crosses (design §3.8)."""

from __future__ import annotations

import asyncio
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.contract.errors import ApiError
from shared.contract.usage import Usage
from shared.link.call import Call, End, Outlet
from shared.link.frames import Kind, pack, pack_json
from shared.link.session import CLOSE_GOING_AWAY, CLOSE_PROTOCOL_ERROR
from tests.link_answers import EVENT, HEADERS, Slow, answer, closing, content, read_all
from tests.linked import BOTH, MemoryTransport, call, edge_session, linked, node_session, pack_call

# -- order ------------------------------------------------------------------------------------------------------------


@BOTH
async def test_an_answer_crosses_the_link(over: str) -> None:
    async with linked(over, answer) as link:
        reply = link.edge.open(call(b"hello"))
        assert await reply.head() == HEADERS
        assert await read_all(reply) == b": note\n\ndata: hello\n\ndata: [DONE]\n\n"
        assert reply.end == End("stop", Usage(3, 2), "small")
        assert reply.first_data_at is not None
        assert (link.edge.streams, link.node.streams) == (0, 0)


async def test_frames_stand_in_the_order_of_the_contract() -> None:
    async with node_session(answer) as (_, peer, _):
        await peer.send(pack_call(1, call()))
        kinds = [(await peer.frame())[1] for _ in range(5)]
        assert kinds == [Kind.HEAD, Kind.NOTE, Kind.DATA, Kind.DATA, Kind.END]
        await peer.silence()


async def test_a_header_of_any_length_fits_a_frame() -> None:
    """A longer frame would close the link of everybody."""

    async def boast(call: Call, out: Outlet) -> End:
        out.head({"Hearthlink-Long": "x" * (2 << 20)})
        await out.data(b"data: x\n\n")
        return End("stop", Usage())

    async with linked("memory", boast) as link:
        reply = link.edge.open(call())
        assert (await reply.head())["Hearthlink-Long"] == "x" * 8192
        assert await reply.read()


@BOTH
async def test_a_refusal_is_an_error_alone(over: str) -> None:
    async def refuse(call: Call, out: Outlet) -> End:
        raise ApiError("overloaded", "All busy.", retry_after=7, param="messages", should_retry=False)

    async with linked(over, refuse) as link:
        reply = link.edge.open(call())
        with pytest.raises(ApiError, match="All busy") as refused:
            await reply.head()
        error = refused.value
        assert (error.code, error.retry_after, error.param, error.should_retry) == ("overloaded", 7, "messages", False)
        assert not reply.has_head
        if isinstance(link.node_transport, MemoryTransport):
            assert link.node_transport.kinds(1) == [Kind.ERROR]


@BOTH
async def test_an_error_after_content_comes_after_it_with_the_usage(over: str) -> None:
    async def fail(call: Call, out: Outlet) -> End:
        out.head(HEADERS)
        await out.data(EVENT)
        call.tally.prompt_tokens, call.tally.completion_tokens = 4, 1
        raise ApiError("upstream_incomplete", "Cut.")

    async with linked(over, fail) as link:
        reply = link.edge.open(call())
        await reply.head()
        assert await reply.read() == EVENT
        with pytest.raises(ApiError, match="Cut"):
            await reply.read()
        assert reply.error_usage == Usage(4, 1).to_wire()


@BOTH
async def test_a_bug_in_an_answer_is_an_internal_error_that_tells_nothing(over: str) -> None:
    async def broken(call: Call, out: Outlet) -> End:
        raise RuntimeError("the prompt was hunter2")

    async with linked(over, broken) as link:
        with pytest.raises(ApiError) as failed:
            await link.edge.open(call()).head()
        assert failed.value.code == "internal_error"
        assert "hunter2" not in failed.value.message
        assert link.edge.usable


async def test_an_end_without_an_answer_is_invalid() -> None:
    async with edge_session() as (edge, peer, _):
        reply = edge.open(call())
        await peer.send(pack_json(1, Kind.END, End("stop", Usage()).to_wire()))
        with pytest.raises(ApiError) as failed:
            await reply.head()
        assert failed.value.code == "upstream_invalid"


@pytest.mark.parametrize(
    "wrong",
    [
        [pack(1, Kind.DATA, EVENT)],
        [pack(1, Kind.NOTE, EVENT)],
        [pack_json(1, Kind.HEAD, {}), pack_json(1, Kind.HEAD, {})],
        [pack(1, Kind.HEAD, b"[]")],
        [pack(1, Kind.ERROR, b"\xff")],
        [pack_json(2, Kind.OPEN, {})],
        [pack(0, Kind.SNAPSHOT, b"no")],
        [pack(1, Kind.DATA, EVENT)[:-1]],
        [b"\0"],
        [b""],
    ],
)
async def test_a_node_that_breaks_the_order_loses_the_link(wrong: list[bytes]) -> None:
    async with edge_session() as (edge, peer, run):
        reply = edge.open(call())
        await peer.send(*wrong)
        assert (await closing(run)).code == CLOSE_PROTOCOL_ERROR
        with pytest.raises(ApiError, match="link to the node was lost"):
            await reply.head()
            await reply.read()


@pytest.mark.parametrize(
    "wrong",
    [
        [pack_json(0, Kind.SNAPSHOT, {})],
        [pack(1, Kind.OPEN, b"")],
        [pack(0, Kind.CREDIT, b"{}")],
        [pack_json(1, Kind.CREDIT, {"bytes": -1})],
        [pack_json(1, Kind.CREDIT, {"bytes": "many"})],
        [pack(0, Kind.STOP, b"1")],
        [pack(0, Kind.GOAWAY, b"")],
        [pack(0, Kind.PING, b"{}")[:-1]],
    ],
)
async def test_an_edge_that_breaks_the_order_loses_the_link(wrong: list[bytes]) -> None:
    async with node_session() as (_, peer, run):
        await peer.send(*wrong)
        assert (await closing(run)).code == CLOSE_PROTOCOL_ERROR


@given(message=st.binary(min_size=1, max_size=60))
@settings(max_examples=60)
def test_garbage_ends_the_link_and_nothing_else(message: bytes) -> None:
    async def check() -> None:
        slow = Slow()
        async with node_session(slow) as (_, peer, run):
            await peer.send(pack_call(1, call()))
            await peer.frame(Kind.DATA)
            await peer.send(b"\0" + message + b"\xff" * 20)
            ended = await closing(run)
            assert ended.code in (CLOSE_PROTOCOL_ERROR, CLOSE_GOING_AWAY)
            assert slow.cancelled == 1

    asyncio.run(check())


@BOTH
async def test_what_is_unknown_or_late_is_ignored(over: str) -> None:
    async with linked(over, answer) as link:
        await read_all(link.edge.open(call()))
        for session in (link.edge, link.node):
            session._send_control(pack(7, 200, b"from a newer peer"))
        for kind in (Kind.CANCEL, Kind.CREDIT):
            link.edge._send_control(pack_json(1, kind, {"bytes": 1}))
        for kind in (Kind.HEAD, Kind.NOTE, Kind.DATA, Kind.END, Kind.ERROR):
            link.node._send_control(pack(1, kind, b"{}"))
        assert await read_all(link.edge.open(call(b"again"))) == b": note\n\ndata: again\n\ndata: [DONE]\n\n"


# -- stream ids and calls ---------------------------------------------------------------------------------------------


async def test_ids_count_upwards_from_one() -> None:
    async with edge_session() as (edge, peer, _):
        assert [edge.open(call()).stream for _ in range(3)] == [1, 2, 3]
        assert [(await peer.frame(Kind.OPEN))[0] for _ in range(3)] == [1, 2, 3]


@pytest.mark.parametrize("ids", [[1, 1], [2, 1], [0]])
async def test_an_id_used_twice_or_backwards_closes_the_link(ids: list[int]) -> None:
    async with node_session(answer) as (_, peer, run):
        for stream in ids:
            await peer.send(pack_call(stream, call()))
        ended = await closing(run)
        assert (ended.code, "twice" in ended.reason) == (CLOSE_PROTOCOL_ERROR, True)


@BOTH
async def test_the_node_sees_the_call_as_it_was_made(over: str) -> None:
    seen: list[Call] = []

    async def look(call: Call, out: Outlet) -> End:
        seen.append(call)
        return await answer(call, out)

    async with linked(over, look) as link:
        made = call(b'{"a":"\xc3\xa9"}', chat_id="chat-1", principal="abc", seconds=9.0)
        await read_all(link.edge.open(made))
        [got] = seen
        assert (got.body, got.chat_id, got.request_id) == (b'{"a":"\xc3\xa9"}', "chat-1", "request-id")
        assert got.surface is made.surface
        assert got.principal == "edge-id:abc"  # two edges' principals never meet
        assert abs(got.deadline - made.deadline) < 1.0


async def test_an_open_of_a_newer_edge_is_refused_alone() -> None:
    async with node_session(answer) as (node, peer, _):
        newer = {**call().to_wire(0), "surface": "telepathy"}
        await peer.send(pack(1, Kind.OPEN, b"\0\0\0\x02{}"), pack_json(0, Kind.PING, {}))
        assert content(await peer.frame(Kind.ERROR))["code"] == "not_supported"
        text = json.dumps(newer).encode()
        await peer.send(pack(2, Kind.OPEN, len(text).to_bytes(4, "big") + text))
        assert content(await peer.frame(Kind.ERROR))["code"] == "not_supported"
        assert not node.closed


@BOTH
async def test_streams_do_not_mix(over: str) -> None:
    async with linked(over, answer) as link:
        replies = [link.edge.open(call(b"%d" % number)) for number in range(50)]
        texts = await asyncio.gather(*map(read_all, replies))
        assert texts == [b": note\n\ndata: %d\n\ndata: [DONE]\n\n" % number for number in range(50)]
