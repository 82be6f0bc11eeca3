"""How the edge ends an answer early: CANCEL for its own stream, STOP for any chat of the node."""

from __future__ import annotations

import asyncio

from shared.contract.usage import Usage
from shared.link.call import Call, End, Outlet
from shared.link.frames import Kind, pack, pack_json
from tests.link_answers import EVENT, Slow, answer, content
from tests.linked import BOTH, call, edge_session, linked, node_session, pack_call
from tests.waiting import HANGS

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
        await asyncio.wait_for(reply.ended(), HANGS)
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
async def test_stop_on_a_link_that_is_lost_has_no_answer(over: str) -> None:
    async with linked(over) as link:
        assert link.node_run is not None
        stopping = asyncio.create_task(link.edge.stop("chat-1", "owner"))
        link.node_run.cancel()
        assert await asyncio.wait_for(stopping, HANGS) is None
