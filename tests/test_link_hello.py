"""The first frame on a link: who it is, and whether both sides speak the same versions."""

from __future__ import annotations

import pytest

from shared.link import session as session_module
from shared.link.frames import Kind, pack, pack_json
from shared.link.session import CLOSE_PROTOCOL_ERROR, CLOSE_VERSION
from tests.link_answers import closing
from tests.linked import BOTH, call, edge_session, linked, node_session, pack_call


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
