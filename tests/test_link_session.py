"""One link's session: the order of frames, who may say what, and how requests and links end (design §3.8)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.contract.chat import Usage
from shared.contract.errors import ApiError
from shared.link import session as session_module
from shared.link.call import Call, End, Outlet
from shared.link.frames import Kind, pack, pack_json
from shared.link.session import CLOSE_GOING_AWAY, CLOSE_PROTOCOL_ERROR, CLOSE_VERSION, LinkClosed
from shared.link.streams import Reply
from tests.linked import Link, MemoryTransport, call, edge_session, linked, node_session, pack_call
from tests.waiting import wait_until

BOTH = pytest.mark.parametrize("over", ["memory", "websocket"])
HEADERS = {"content-type": "text/event-stream"}
EVENT = b'data: {"choices":[]}\n\n'


async def answer(call: Call, out: Outlet) -> End:
    """A good answer: a note, two events that repeat the body, END with two tokens."""
    out.head(HEADERS)
    out.note(b": note\n\n")
    await out.data(b"data: %s\n\n" % call.body)
    await asyncio.sleep(0)
    await out.data(b"data: [DONE]\n\n")
    return End("stop", Usage(3, 2), "small")


class Slow:
    """Answers without end: an event now, then silence until it is cancelled."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.cancelled = 0

    async def __call__(self, call: Call, out: Outlet) -> End:
        try:
            out.head(HEADERS)
            await out.data(EVENT)
            call.tally.prompt_tokens, call.tally.completion_tokens = 5, 1
            self.begun.set()
            await asyncio.Event().wait()
        finally:
            self.cancelled += 1
        raise AssertionError("not reached")


async def read_all(reply: Reply) -> bytes:
    received = b""
    while piece := await reply.read():
        received += piece
        reply.passed_on(len(piece))
    return received


async def closing(run: asyncio.Task[LinkClosed]) -> LinkClosed:
    return await asyncio.wait_for(run, 2)


def content(frame: tuple[int, int, bytes]) -> dict[str, Any]:
    return json.loads(frame[2])


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


# -- hello ------------------------------------------------------------------------------------------------------------


@BOTH
async def test_both_sides_know_each_other(over: str) -> None:
    async with linked(over) as link:
        assert (link.edge.peer["id"], link.edge.peer["boot"]) == ("node-id", "node-boot")
        assert (link.node.peer["id"], link.node.peer["boot"]) == ("edge-id", "edge-boot")
        assert link.edge.usable


@pytest.mark.parametrize(
    ("changes", "upgrade"),
    [
        ({"protocol": 2}, "upgrade Hearthlink on this side"),
        ({"protocol": 0}, "upgrade Hearthlink on the other side"),
        ({"contract": 2}, "upgrade Hearthlink on this side"),
        ({"contract": 0}, "upgrade Hearthlink on the other side"),
    ],
)
async def test_another_major_version_closes_the_link_with_a_sentence(changes: dict[str, int], upgrade: str) -> None:
    for make in (node_session, edge_session):
        async with make(greet=False) as (_, peer, run):
            await peer.hello(**changes)
            ended = await closing(run)
            [(name, version)] = changes.items()
            assert ended.code == CLOSE_VERSION
            assert upgrade in ended.reason
            assert f"{name} {version} there, 1 here" in ended.reason
            assert await peer.transport.receive() is not None  # its own HELLO, so that the other side knows as well


@pytest.mark.parametrize(
    "first",
    [
        pack_json(0, Kind.PING, {}),
        pack_json(0, Kind.GOAWAY, {"last": 0}),
        pack(0, Kind.SNAPSHOT, b"{}"),
        pack(1, Kind.DATA, b""),
        pack(9, 200, b""),
        pack_json(0, Kind.HELLO, {}),
        pack_json(0, Kind.HELLO, {"protocol": "1", "contract": 1}),
        pack(0, Kind.HELLO, b"hello"),
    ],
)
async def test_nothing_comes_before_hello(first: bytes) -> None:
    for make in (node_session, edge_session):
        async with make(greet=False) as (session, peer, run):
            await peer.send(first)
            assert (await closing(run)).code == CLOSE_PROTOCOL_ERROR
            assert not session.ready.is_set()


async def test_an_open_before_hello_is_not_served() -> None:
    async with node_session(greet=False) as (_, peer, run):
        await peer.send(pack_call(1, call()))
        assert "before HELLO" in (await closing(run)).reason


async def test_a_second_hello_closes_the_link() -> None:
    async with node_session() as (_, peer, run):
        await peer.hello()
        assert "second HELLO" in (await closing(run)).reason


async def test_no_hello_in_time_closes_the_link(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "HELLO_WITHIN", 0.1)
    monkeypatch.setattr(session_module, "_TICK", 0.02)
    async with node_session(greet=False) as (_, _, run):
        ended = await closing(run)
        assert "no HELLO" in ended.reason


# -- cancel -----------------------------------------------------------------------------------------------------------


@BOTH
async def test_cancel_ends_the_answer_with_its_usage(over: str) -> None:
    slow = Slow()
    async with linked(over, slow) as link:
        reply = link.edge.open(call())
        await reply.head()
        await slow.begun.wait()
        reply.cancel()
        reply.cancel()
        await asyncio.wait_for(reply.ended(), 2)
        assert reply.end == End("cancelled", Usage(5, 1))
        assert slow.cancelled == 1
        assert (link.edge.streams, link.node.streams) == (0, 0)


async def test_cancel_is_idempotent_and_valid_from_open_on() -> None:
    slow = Slow()
    async with node_session(slow) as (node, peer, _):
        await peer.send(pack_call(1, call()), pack(1, Kind.CANCEL, b"{}"))  # in one message, before it has begun
        assert content(await peer.frame(Kind.END))["outcome"] == "cancelled"
        await peer.send(pack_call(2, call()))
        await peer.send(*[pack(2, Kind.CANCEL, b"{}")] * 3)
        await peer.frame(Kind.END)
        await peer.send(pack(2, Kind.CANCEL, b"{}"), pack(3, Kind.CANCEL, b"{}"))  # ended, and not yet begun
        await peer.silence(Kind.END, Kind.ERROR)
        assert node.streams == 0


async def test_cancel_that_crosses_the_end_leaves_the_end() -> None:
    async with node_session(answer) as (_, peer, _):
        await peer.send(pack_call(1, call()))
        assert content(await peer.frame(Kind.END))["outcome"] == "stop"
        await peer.send(pack(1, Kind.CANCEL, b"{}"))
        await peer.silence(Kind.END, Kind.ERROR)


async def test_content_that_was_under_way_is_dropped_after_cancel() -> None:
    async with edge_session() as (edge, peer, _):
        reply = edge.open(call())
        await peer.send(pack_json(1, Kind.HEAD, {}), pack(1, Kind.DATA, EVENT))
        await reply.head()
        reply.cancel()
        await peer.send(pack(1, Kind.DATA, EVENT), pack_json(1, Kind.END, End("cancelled", Usage(1, 1)).to_wire()))
        await reply.ended()
        assert await reply.read() == b""


async def test_a_cancelled_answer_may_still_end_well() -> None:
    async def stubborn(call: Call, out: Outlet) -> End:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return End("stop", Usage(1, 1))
        raise AssertionError("not reached")

    async with node_session(stubborn) as (_, peer, _):
        await peer.send(pack_call(1, call()))
        await peer.send(pack(1, Kind.CANCEL, b"{}"))
        assert content(await peer.frame(Kind.END))["outcome"] == "stop"
        await peer.silence(Kind.END, Kind.ERROR)


# -- stop -------------------------------------------------------------------------------------------------------------


@BOTH
async def test_stop_asks_the_node_with_the_callers_principal(over: str) -> None:
    asked: list[tuple[str, str]] = []

    def on_stop(chat_id: str, principal: str) -> bool:
        asked.append((chat_id, principal))
        return principal == "edge-id:owner"

    async with linked(over, on_stop=on_stop) as link:
        assert await link.edge.stop("chat-1", "owner") is True
        assert await link.edge.stop("chat-1", "somebody") is False
        assert asked == [("chat-1", "edge-id:owner"), ("chat-1", "edge-id:somebody")]
        for order in (("owner", "somebody"), ("somebody", "owner")):
            answers = await asyncio.gather(*(link.edge.stop("chat-1", principal) for principal in order))
            assert dict(zip(order, answers, strict=True)) == {"owner": True, "somebody": False}


@BOTH
async def test_stop_on_a_link_that_is_lost_is_false(over: str) -> None:
    async with linked(over) as link:
        assert link.node_run is not None
        stopping = asyncio.create_task(link.edge.stop("chat-1", "owner"))
        link.node_run.cancel()
        assert await asyncio.wait_for(stopping, 1) is False


# -- going away -------------------------------------------------------------------------------------------------------


@BOTH
async def test_goaway_takes_no_new_streams_and_lets_old_ones_end(over: str) -> None:
    go_on = asyncio.Event()

    async def wait_then_answer(call: Call, out: Outlet) -> End:
        await go_on.wait()
        return await answer(call, out)

    async with linked(over, wait_then_answer) as link:
        running = link.edge.open(call(b"old"))
        await wait_until(lambda: link.node.streams == 1)
        link.node.go_away()
        crossing = link.edge.open(call(b"new"))
        with pytest.raises(ApiError) as refused:
            await crossing.head()
        assert refused.value.code == "draining"
        assert not link.edge.usable
        draining = asyncio.create_task(link.node.drained())
        await asyncio.sleep(0.1)
        assert not draining.done()
        go_on.set()
        assert await read_all(running) == b": note\n\ndata: old\n\ndata: [DONE]\n\n"
        await asyncio.wait_for(draining, 2)


async def test_an_open_that_crosses_goaway_gets_draining() -> None:
    async with node_session(answer) as (node, peer, _):
        await peer.send(pack_call(1, call()))
        await peer.frame(Kind.END)
        node.go_away()
        assert content(await peer.frame(Kind.GOAWAY)) == {"last": 1}
        await peer.send(pack_call(2, call()))
        frame = await peer.frame()
        assert (frame[0], frame[1], content(frame)["code"]) == (2, Kind.ERROR, "draining")


@BOTH
async def test_a_drain_that_runs_out_ends_streams_with_an_error(over: str) -> None:
    slow = Slow()
    async with linked(over, slow) as link:
        reply = link.edge.open(call())
        await slow.begun.wait()
        link.node.go_away()
        link.node.fail_streams(ApiError("server_draining", "Restarting."))
        await link.node.drained()
        assert await reply.read() == EVENT
        with pytest.raises(ApiError) as failed:
            await reply.read()
        assert failed.value.code == "server_draining"
        assert reply.error_usage == Usage(5, 1).to_wire()


async def test_a_drain_in_the_tick_of_an_open_ends_it_too() -> None:
    slow = Slow()
    async with node_session(slow) as (node, peer, _):
        node._accept(1, pack_call(1, call())[9:])
        node.fail_streams(ApiError("server_draining", "Restarting."))
        assert content(await peer.frame(Kind.ERROR))["code"] == "server_draining"


@BOTH
async def test_close_ends_the_link_with_1001(over: str) -> None:
    async with linked(over) as link:
        assert link.node_run is not None
        assert link.edge_run is not None
        link.node.close()
        assert (await closing(link.node_run)).code == CLOSE_GOING_AWAY
        await closing(link.edge_run)
        if isinstance(link.node_transport, MemoryTransport):
            assert link.node_transport.closed_with is not None
            assert link.node_transport.closed_with[0] == CLOSE_GOING_AWAY
        else:
            assert getattr(link.edge_transport, "close_code", None) == CLOSE_GOING_AWAY


async def test_a_retired_link_closes_once_its_last_stream_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "_TICK", 0.02)
    async with edge_session() as (edge, peer, run):
        reply = edge.open(call())
        await peer.frame(Kind.OPEN)
        edge.retire()
        assert not edge.usable
        await asyncio.sleep(0.1)
        assert not run.done()
        await peer.send(pack_json(1, Kind.HEAD, {}), pack_json(1, Kind.END, End("stop", Usage()).to_wire()))
        await reply.ended()
        assert "newer link" in (await closing(run)).reason


# -- losing the link --------------------------------------------------------------------------------------------------


@asynccontextmanager
async def two_streams(over: str) -> AsyncIterator[tuple[Link, Slow, Reply, Reply]]:
    """A link with one stream before its HEAD and one after."""
    slow = Slow()

    async def serve(call: Call, out: Outlet) -> End:
        if call.body == b"silent":
            await asyncio.Event().wait()
        return await slow(call, out)

    async with linked(over, serve) as link:
        silent, begun = link.edge.open(call(b"silent")), link.edge.open(call())
        await begun.head()
        await wait_until(lambda: link.node.streams == 2)
        yield link, slow, silent, begun


@BOTH
@pytest.mark.parametrize("side", ["edge", "node"])
async def test_a_lost_link_fails_its_streams_and_cancels_the_answers(over: str, side: str) -> None:
    async with two_streams(over) as (link, slow, silent, begun):
        run = link.edge_run if side == "edge" else link.node_run
        assert run is not None
        run.cancel()
        with pytest.raises(ApiError) as before:
            await asyncio.wait_for(silent.head(), 2)
        assert before.value.code == "node_unavailable"
        assert await begun.read() == EVENT
        with pytest.raises(ApiError) as after:
            await asyncio.wait_for(begun.read(), 2)
        assert after.value.code == "upstream_incomplete"
        await wait_until(lambda: slow.cancelled == 1 and link.node.streams == 0)
        assert link.edge.streams == 0
        assert not link.edge.usable


@BOTH
async def test_a_request_on_a_link_that_has_just_closed_fails_at_once(over: str) -> None:
    async with linked(over) as link:
        assert link.edge_run is not None
        link.edge_run.cancel()
        await asyncio.gather(link.edge_run, return_exceptions=True)
        reply = link.edge.open(call())
        with pytest.raises(ApiError) as failed:
            await asyncio.wait_for(reply.head(), 1)
        assert failed.value.code == "node_unavailable"
        reply.cancel()
        await asyncio.wait_for(reply.ended(), 1)
        assert link.edge.streams == 0


async def test_run_returns_only_when_every_answer_is_over() -> None:
    cleaned = False

    async def careful(call: Call, out: Outlet) -> End:
        nonlocal cleaned
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.05)
            cleaned = True
        raise AssertionError("not reached")

    async with node_session(careful) as (node, peer, run):
        await peer.send(pack_call(1, call()))
        await wait_until(lambda: node.streams == 1)
        await asyncio.sleep(0)
        await peer.transport.close(1000, "")
        assert (await closing(run)).reason == "the other side closed it"
        assert cleaned


async def test_a_transport_that_fails_ends_the_link() -> None:
    async with node_session() as (node, _, run):
        transport = node._transport
        assert isinstance(transport, MemoryTransport)

        async def broken(message: bytes) -> None:
            raise ConnectionResetError("reset")

        transport.send = broken  # type: ignore[method-assign]
        node.send_snapshot({})
        assert "ConnectionResetError" in (await closing(run)).reason
