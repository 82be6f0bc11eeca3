"""How a link ends: GOAWAY, a drain, retirement, or its connection is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from shared.contract.errors import ApiError
from shared.contract.usage import Usage
from shared.link import session as session_module
from shared.link.call import Call, End, Outlet
from shared.link.frames import Kind, pack, pack_json
from shared.link.session import CLOSE_GOING_AWAY
from shared.link.streams import Reply
from tests.link_answers import EVENT, Slow, answer, closing, content, read_all
from tests.linked import BOTH, Link, MemoryTransport, call, edge_session, linked, node_session, pack_call
from tests.waiting import HANGS, wait_until

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
        await asyncio.wait_for(draining, HANGS)


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
            await asyncio.wait_for(silent.head(), HANGS)
        assert before.value.code == "node_unavailable"
        assert await begun.read() == EVENT
        with pytest.raises(ApiError) as after:
            await asyncio.wait_for(begun.read(), HANGS)
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
            await asyncio.wait_for(reply.head(), HANGS)
        assert failed.value.code == "node_unavailable"
        reply.cancel()
        await asyncio.wait_for(reply.ended(), HANGS)
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


async def test_a_head_that_comes_after_a_reply_was_given_up_changes_nothing() -> None:
    """In the same turn of the loop: its reader has not run yet, and must find the loss, not the head."""
    async with edge_session() as (edge, peer, _):
        reply = edge.open(call())
        reading = asyncio.create_task(reply.head())
        await peer.frame(Kind.OPEN)
        reply.cancel()
        reply.lose("it is silent")
        assert reply.receive(Kind.HEAD, b"{}"), "what follows is of nobody's"
        with pytest.raises(ApiError) as lost:
            await reading
        assert (lost.value.code, reply.has_head) == ("node_unavailable", False)
        await peer.send(pack_json(reply.stream, Kind.HEAD, {}), pack(reply.stream, Kind.DATA, EVENT))
        await wait_until(lambda: not edge.streams)
        assert edge.usable
