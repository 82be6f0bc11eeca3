"""Flow control of the link: credit, turns, what goes first, and how much may ever wait (design §3.8)."""

from __future__ import annotations

import asyncio
import itertools
import json
import tracemalloc
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.contract.errors import ApiError
from shared.contract.usage import Usage
from shared.link import frames
from shared.link import session as session_module
from shared.link.call import Call, End, Outlet
from shared.link.frames import Kind, pack, pack_json, unpack
from shared.link.session import CLOSE_DENIED, CLOSE_PROTOCOL_ERROR, LinkClosed
from shared.link.streams import INITIAL_CREDIT, Reply, Responder
from tests.linked import BOTH, MemoryTransport, Peer, call, edge_session, linked, node_session, pack_call
from tests.waiting import HANGS, wait_until

END = End("stop", Usage(1, 1))


def event(size: int, letter: bytes = b"x") -> bytes:
    return b"data: " + letter * (size - 8) + b"\n\n"


class Writer:
    """Writes ``payloads``; ``written`` counts the bytes that ``data`` has taken."""

    def __init__(self, *payloads: bytes) -> None:
        self.payloads = payloads
        self.written = 0

    async def __call__(self, call: Call, out: Outlet) -> End:
        out.head({})
        for payload in self.payloads:
            await out.data(payload)
            self.written += len(payload)
        return END


async def read_all(reply: Reply) -> bytes:
    received = bytearray()
    while piece := await reply.read():
        received += piece
        reply.passed_on(len(piece))
    return bytes(received)


async def flood(run: asyncio.Task[LinkClosed], peer: Peer, message: Callable[[], bytes], messages: int) -> None:
    """Send until the session has closed the link, ``messages`` at most."""
    for _ in range(messages):
        sending = asyncio.ensure_future(peer.send(message()))
        await asyncio.wait({sending, run}, return_when=asyncio.FIRST_COMPLETED)
        if run.done():
            sending.cancel()
            return


async def settled(value: Callable[[], int]) -> int:
    """The value once it has not changed for a while."""
    before = -1
    while (now := value()) != before:
        before = now
        await asyncio.sleep(0.05)
    return now


# -- credit -----------------------------------------------------------------------------------------------------------


@BOTH
async def test_a_reader_that_does_not_read_stops_its_own_stream_only(over: str) -> None:
    events = [event(1000)] * 1000
    writers = {b"unread": Writer(*events), b"read": Writer(*events)}

    async def serve(call: Call, out: Outlet) -> End:
        return await writers[call.body](call, out)

    async with linked(over, serve) as link:
        unread, read = link.edge.open(call(b"unread")), link.edge.open(call(b"read"))
        assert await asyncio.wait_for(read_all(read), HANGS) == b"".join(events)
        stopped = await settled(lambda: writers[b"unread"].written)
        assert INITIAL_CREDIT - 1000 <= stopped <= INITIAL_CREDIT + 1000
        assert await asyncio.wait_for(read_all(unread), HANGS) == b"".join(events)  # and goes on when it is read
        assert unread.end == END


@BOTH
async def test_a_reader_that_takes_a_little_gets_a_little(over: str) -> None:
    writer = Writer(*[event(1000)] * 3000)
    async with linked(over, writer) as link:
        reply = link.edge.open(call())
        await settled(lambda: writer.written)
        received = 0
        for _ in range(3):
            piece = await reply.read()
            reply.passed_on(len(piece))
            received += len(piece)
            await settled(lambda: writer.written)
            assert writer.written <= received + INITIAL_CREDIT + 1000
        reply.cancel()
        await asyncio.wait_for(reply.ended(), HANGS)


@BOTH
@pytest.mark.parametrize("unread", [0, INITIAL_CREDIT - 1000, INITIAL_CREDIT - 9])
async def test_one_large_event_overdraws_and_cannot_deadlock(over: str, unread: int) -> None:
    large = event(frames.MAX_CONTENT_BYTES)
    before = [event(unread)] if unread else []
    writer = Writer(*before, large, event(100))
    async with linked(over, writer) as link:
        reply = link.edge.open(call())
        await reply.head()
        await settled(lambda: writer.written)
        assert writer.written == unread + len(large)  # taken whole, and then nothing more
        assert await asyncio.wait_for(read_all(reply), HANGS) == b"".join([*before, large, event(100)])


@BOTH
async def test_an_event_too_large_for_a_frame_ends_its_own_stream_only(over: str) -> None:
    writer = Writer(event(frames.MAX_CONTENT_BYTES + 1))
    async with linked(over, writer) as link:
        reply = link.edge.open(call())
        await reply.head()
        with pytest.raises(ApiError) as failed:
            await reply.read()
        assert failed.value.code == "upstream_invalid"
        assert link.edge.usable


async def test_cancel_reaches_a_writer_that_waits_for_credit() -> None:
    async with node_session(Writer(*[event(1000)] * 1000)) as (node, peer, _):
        await peer.send(pack_call(1, call()))
        transport = node._transport
        assert isinstance(transport, MemoryTransport)
        await wait_until(lambda: len(transport.frames()) > 250)
        await peer.send(pack(1, Kind.CANCEL, b"{}"))
        frame = await peer.frame(Kind.END)
        assert json.loads(frame[2])["outcome"] == "cancelled"
        assert node.streams == 0


async def test_credit_comes_back_in_steps_for_what_was_passed_on() -> None:
    async with edge_session() as (edge, peer, _):
        reply = edge.open(call())
        await peer.send(pack_json(1, Kind.HEAD, {}), *[pack(1, Kind.DATA, event(50_000))] * 2)
        await reply.head()
        piece = await reply.read()
        await peer.silence(Kind.CREDIT)  # read, but not gone to the client's socket
        reply.passed_on(50_000)
        await peer.silence(Kind.CREDIT)  # too little for a frame
        reply.passed_on(len(piece) - 50_000)
        assert json.loads((await peer.frame(Kind.CREDIT))[2]) == {"bytes": 100_000}


async def test_a_heartbeat_of_the_edge_costs_the_node_no_credit() -> None:
    async with edge_session() as (edge, peer, _):
        reply = edge.open(call())
        await peer.send(pack_json(1, Kind.HEAD, {}))
        await reply.head()
        for _ in range(50_000):
            reply.inject(b":\n\n")
            reply.passed_on(len(await reply.read()))
        await peer.silence(Kind.CREDIT)


@pytest.mark.parametrize("more", [1, 2**31, 2**70])
async def test_credit_for_more_than_was_sent_closes_the_link(more: int) -> None:
    async with node_session(Writer(event(5000))) as (_, peer, run):
        await peer.send(pack_call(1, call()))
        await peer.send(pack_call(2, call()))
        await peer.frame(Kind.DATA)
        await peer.send(pack_call(3, call()), pack_json(3, Kind.CREDIT, {"bytes": more}))
        assert (await asyncio.wait_for(run, HANGS)).code == CLOSE_PROTOCOL_ERROR


async def test_a_node_that_ignores_credit_loses_the_link() -> None:
    async with edge_session() as (edge, peer, run):
        edge.open(call())
        await peer.send(pack_json(1, Kind.HEAD, {}))
        tracemalloc.start()
        await flood(run, peer, lambda: pack(1, Kind.DATA, event(frames.MAX_DATA_BYTES)), messages=100)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert "credit" in run.result().reason
        assert peak < 8 << 20


# -- pieces -----------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(9, 200_000), min_size=1, max_size=8))
@settings(max_examples=40)
def test_content_is_cut_where_events_end(sizes: list[int]) -> None:
    async def check() -> None:
        taken: list[bytes] = []
        responder = Responder(1, lambda stream, frame: taken.append(next(iter(unpack(frame)))[2]))
        letters = itertools.cycle(b"abc")
        payload = b"".join(event(size, bytes([next(letters)])) for size in sizes)
        writing = asyncio.create_task(responder.data(payload))
        done = 0
        while not writing.done():
            await asyncio.sleep(0)
            total = sum(map(len, taken))
            responder.add_credit(total - done)
            done = total
        await writing
        assert b"".join(taken) == payload
        for piece in taken:
            assert piece.endswith(b"\n\n")
            assert len(piece) <= frames.MAX_DATA_BYTES or piece.count(b"\n\n") == 1

    asyncio.run(check())


async def test_a_json_answer_is_cut_anywhere() -> None:
    body = b"{" + b"x" * 300_000 + b"}"
    async with linked("memory", Writer(body)) as link:
        assert await read_all(link.edge.open(call())) == body
        assert isinstance(link.node_transport, MemoryTransport)
        sizes = [len(payload) for _, kind, payload in link.node_transport.frames(1) if kind == Kind.DATA]
        assert max(sizes) == frames.MAX_DATA_BYTES


# -- one message a tick, and whose turn it is -------------------------------------------------------------------------


async def test_what_became_ready_in_one_tick_leaves_in_one_message() -> None:
    async with node_session(Writer(event(100))) as (node, peer, _):
        transport = node._transport
        assert isinstance(transport, MemoryTransport)
        before = len(transport.sent)
        await peer.send(*[pack_call(stream, call()) for stream in range(1, 21)])
        await wait_until(lambda: len(transport.frames()) >= 61)
        assert len(transport.sent) - before <= 2
        assert [kind for _, kind, _ in transport.frames(20)] == [Kind.HEAD, Kind.DATA, Kind.END]


async def test_control_goes_before_content() -> None:
    async with linked("memory", Writer(*[event(60_000)] * 4)) as link:
        transport = link.node_transport
        assert isinstance(transport, MemoryTransport)
        transport.gate.clear()
        replies = [link.edge.open(call()) for _ in range(5)]
        await wait_until(lambda: len(link.node._outbox._content) >= 20)
        link.node.send_snapshot({"seq": 1})
        before = len(transport.sent)
        transport.gate.set()
        await wait_until(lambda: link.snapshots)
        waiting = [frame for message in transport.sent[before : before + 2] for frame in unpack(message)]
        # One message was in the writer's hand already; the next holds the snapshot.
        assert Kind.SNAPSHOT in {kind for _, kind, _ in waiting}
        for reply in replies:
            reply.cancel()
            await reply.ended()


async def test_streams_take_turns_when_much_is_waiting() -> None:
    async def serve(call: Call, out: Outlet) -> End:
        out.head({})
        for _ in range(int(call.body)):
            await out.data(event(1000))
        return END

    async with linked("memory", serve) as link:
        transport = link.node_transport
        assert isinstance(transport, MemoryTransport)
        first = link.edge.open(call(b"1"))
        await read_all(first)
        transport.gate.clear()
        long = [link.edge.open(call(b"250")) for _ in range(3)]
        await wait_until(lambda: link.node.streams == 0 and len(link.node._outbox._content) > 400)
        short = link.edge.open(call(b"3"))
        await wait_until(lambda: any(stream == short.stream for stream, _ in link.node._outbox._content))
        before = len(transport.sent)
        transport.gate.set()
        assert await asyncio.wait_for(read_all(short), HANGS) == event(1000) * 3
        reached = next(
            number
            for number, message in enumerate(transport.sent[before:])
            if (short.stream, Kind.END) in {(stream, kind) for stream, kind, _ in unpack(message)}
        )
        assert reached <= 1  # not behind the 750 KB of the others
        texts = await asyncio.gather(*map(read_all, long))
        assert texts == [event(1000) * 250] * 3  # taking turns keeps each stream's order


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 120_000)), max_size=40))
@settings(max_examples=60)
def test_messages_are_bounded_and_keep_each_streams_order(writes: list[tuple[int, int]]) -> None:
    async def check() -> None:
        async with node_session() as (node, _, _):
            # Written by hand, with no task between two frames, so that all of it waits at once.
            frames_in = [
                (stream, pack(stream, Kind.DATA, b"%d" % number + b"x" * size))
                for number, (stream, size) in enumerate(writes)
            ]
            for stream, frame in frames_in:
                node._send_content(stream, frame)
            messages = []
            while node._outbox:
                messages.append(node._outbox.next_message())
            assert all(len(message) <= frames.MAX_MESSAGE_BYTES for message in messages)
            out = [frame for message in messages for frame in unpack(message)]
            for stream in range(1, 5):
                expected = [next(iter(unpack(frame))) for number, frame in frames_in if number == stream]
                assert [frame for frame in out if frame[0] == stream] == expected

    asyncio.run(check())


# -- how much may wait ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Kind.PING, Kind.STOP, Kind.OPEN])
async def test_a_peer_that_sends_and_never_reads_loses_the_link(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "_MAX_WAITING", 10_000)

    async def refuse(call: Call, out: Outlet) -> End:
        raise ApiError("overloaded", "All busy.")

    async with node_session(refuse) as (node, peer, run):
        transport = node._transport
        assert isinstance(transport, MemoryTransport)
        transport.gate.clear()
        stream = itertools.count(1)
        one = {Kind.PING: pack(0, Kind.PING, b"{}"), Kind.STOP: pack_json(0, Kind.STOP, {"chat_id": "a"})}
        tracemalloc.start()
        await flood(
            run, peer, lambda: b"".join(one.get(kind) or pack_call(next(stream), call()) for _ in range(500)), 100
        )
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert run.done()
        assert (run.result().code, "does not read" in run.result().reason) == (CLOSE_DENIED, True)
        assert peak < 32 << 20
