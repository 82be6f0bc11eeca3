"""When a link is asked whether it lives, doubted, and given up. The seconds of the contract are made shorter here."""

from __future__ import annotations

import asyncio

import pytest

from shared.contract.errors import ApiError
from shared.link import session as session_module
from shared.link.frames import Kind, pack, pack_json, unpack
from tests.linked import call, edge_session, linked, node_session
from tests.waiting import HANGS, wait_until


def test_the_contracts_seconds() -> None:
    assert (session_module.PING_AFTER, session_module.SUSPECT_AFTER, session_module.LOST_AFTER) == (5, 3, 12)
    assert session_module.PING_WAITING_AFTER == 2  # with a clock's two looks, well within the 10 s of design §4
    assert session_module.HELLO_WITHIN == 5


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A twentieth of the contract's seconds."""
    for name in ("PING_AFTER", "PING_WAITING_AFTER", "SUSPECT_AFTER", "LOST_AFTER", "_OPEN_PINGS_AFTER", "_TICK"):
        monkeypatch.setattr(session_module, name, getattr(session_module, name) / 20)


@pytest.mark.usefixtures("quick")
async def test_a_silent_peer_is_pinged_doubted_and_given_up() -> None:
    loop = asyncio.get_running_loop()
    for make in (edge_session, node_session):
        async with make() as (session, peer, run):
            began = loop.time()
            await peer.frame(Kind.PING)
            assert loop.time() - began >= session_module.PING_AFTER * 0.9
            assert not session.suspect
            await wait_until(lambda: session.suspect)
            assert not session.usable
            await peer.silence(Kind.PING, seconds=0.1)  # one is enough
            ended = await asyncio.wait_for(run, HANGS)
            assert "silent" in ended.reason
            assert loop.time() - began >= session_module.LOST_AFTER * 0.9


@pytest.mark.usefixtures("quick")
async def test_a_peer_that_owes_an_answer_is_asked_sooner() -> None:
    loop = asyncio.get_running_loop()
    async with edge_session() as (session, peer, _):
        began = loop.time()
        reply = session.open(call())
        await peer.frame(Kind.PING)
        asked = loop.time()
        assert session_module.PING_WAITING_AFTER * 0.9 <= asked - began < session_module.PING_AFTER * 0.9
        assert not session.suspect
        await wait_until(lambda: session.suspect)
        assert loop.time() - asked >= session_module.SUSPECT_AFTER * 0.9
        await peer.send(pack_json(reply.stream, Kind.END, {"outcome": "stop"}))
        await reply.ended()
        began = loop.time()
        await peer.frame(Kind.PING)
        assert loop.time() - began >= session_module.PING_AFTER * 0.9, "nothing is waited for any more"


@pytest.mark.usefixtures("quick")
async def test_any_frame_takes_the_doubt_away() -> None:
    for answer in (pack(0, Kind.PONG, b"{}"), pack(9, 200, b""), pack(0, Kind.PING, b"{}")):
        async with edge_session() as (session, peer, _):
            await wait_until(lambda: session.suspect)
            await peer.send(answer)
            await wait_until(lambda: session.usable)
            await peer.frame(Kind.PING)  # and silence after it is asked about again


@pytest.mark.usefixtures("quick")
async def test_a_peer_that_answers_is_never_doubted() -> None:
    for over in ("memory", "websocket"):
        async with linked(over) as link:
            assert link.edge_run is not None
            for _ in range(20):
                await asyncio.sleep(0.05)
                assert link.edge.usable
                assert link.node.usable
            assert not link.edge_run.done()


async def test_ping_is_answered_by_pong() -> None:
    async with node_session() as (_, peer, _):
        await peer.send(pack(0, Kind.PING, b"{}"))
        assert (await peer.frame())[:2] == (0, Kind.PONG)


@pytest.mark.usefixtures("quick")
async def test_an_open_on_a_silent_link_asks_with_it() -> None:
    async with edge_session() as (edge, peer, _):
        edge.open(call())
        assert [kind for _, kind, _ in unpack(await message(peer.transport.receive()))] == [Kind.OPEN]
        await asyncio.sleep(session_module._OPEN_PINGS_AFTER * 1.2)
        edge.open(call())
        assert [kind for _, kind, _ in unpack(await message(peer.transport.receive()))] == [Kind.OPEN, Kind.PING]


async def message(receiving: object) -> bytes:
    assert asyncio.iscoroutine(receiving)
    received = await asyncio.wait_for(receiving, HANGS)
    assert received is not None
    return received


@pytest.mark.usefixtures("quick")
async def test_streams_on_a_link_that_fell_silent_end_in_errors() -> None:
    async with edge_session() as (edge, peer, run):
        unanswered, begun = edge.open(call()), edge.open(call())
        await peer.send(pack_json(begun.stream, Kind.HEAD, {}))
        await begun.head()
        await asyncio.wait_for(run, HANGS)
        with pytest.raises(ApiError, match="silent") as before:
            await unanswered.head()
        with pytest.raises(ApiError, match="silent") as after:
            await begun.read()
        assert (before.value.code, after.value.code) == ("node_unavailable", "upstream_incomplete")


@pytest.mark.usefixtures("quick")
async def test_a_peer_that_does_not_read_cannot_keep_the_writer_for_ever() -> None:
    """Half-open: what is written vanishes into buffers that are full, and nothing comes back."""
    async with node_session() as (node, peer, run):
        transport = node._transport
        transport.gate.clear()  # type: ignore[attr-defined]
        node.send_snapshot({"seq": 1})
        ended = await asyncio.wait_for(run, HANGS)
        assert "silent" in ended.reason
        del peer
