"""Connections of one caller: so many, each counted once and given back however it ends."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as some

from shared.asgi.connections import Connections, TooManyConnections
from tests.pair import Pair, running_pair
from tests.raw_http import RawClient
from tests.waiting import wait_until

MOST = 3


@pytest.fixture
async def crowded(tmp_path: Path) -> AsyncIterator[Pair]:
    """An edge that takes three connections of an address; loopback counts here, as nothing else can call in a test."""
    async with running_pair(state=tmp_path, edge={"connections_per_ip": MOST}, wait=False) as pair:
        pair.edge.services.connections.whose = lambda peer: peer
        yield pair


async def connect(pair: Pair, source: str = "127.0.0.1") -> RawClient:
    """A connection from ``source``, another address of this machine."""
    parts = urlsplit(pair.url)
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setblocking(False)
    sock.bind((source, 0))
    await asyncio.get_running_loop().sock_connect(sock, (parts.hostname, parts.port))
    return RawClient(sock)


async def answers(raw: RawClient) -> int:
    await raw.request("GET", "/livez")
    status = (await raw.head()).status
    await raw.body()
    return status


async def counted(pair: Pair, number: int) -> None:
    await wait_until(lambda: len(pair.edge.services.connections) == number, what=lambda: pair.edge.services.connections)


async def test_one_more_than_allowed_is_told_and_closed(crowded: Pair) -> None:
    """And its caller's other connections, and everybody else, notice nothing."""
    async with contextlib.AsyncExitStack() as stack:
        mine = [await stack.enter_async_context(await connect(crowded)) for _ in range(MOST)]
        assert [await answers(raw) for raw in mine] == [200] * MOST
        for _ in range(2):
            more = await stack.enter_async_context(await connect(crowded))
            head = await more.head()
            error = await more.json()
            assert (head.status, error["error"]["code"]) == (429, "concurrency_limited")
            assert head.headers["x-request-id"] == error["request_id"] and head.headers["retry-after"] == "1"
            assert head.headers["connection"] == "close"
            await more.closed_by_peer()
        other = await stack.enter_async_context(await connect(crowded, "127.0.0.2"))
        assert await answers(other) == 200
        assert [await answers(raw) for raw in mine] == [200] * MOST
        assert crowded.edge.services.connections.refused == 2
        async with crowded.client.get(crowded.ops_url + "/metrics") as response:
            assert "hearthlink_edge_connections_refused 2.0" in await response.text()


@pytest.mark.parametrize("end", ["close", "reset", "half_close", "garbage", "websocket"])
async def test_a_connection_is_given_back_however_it_ends(crowded: Pair, end: str) -> None:
    for _ in range(MOST + 1):  # else the last one would be refused
        async with await connect(crowded) as raw:
            assert await answers(raw) == 200
            if end == "garbage":
                await raw.send(b"GARBAGE\r\n\r\n")
                await raw.closed_by_peer()
            elif end == "websocket":
                upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
                await raw.request("GET", "/link", upgrade | {"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="})
                await raw.closed_by_peer()
            else:
                getattr(raw, end)()
            if end == "half_close":
                await raw.closed_by_peer()
            await counted(crowded, 0)


async def test_the_limit_may_change_while_the_edge_runs(crowded: Pair) -> None:
    async with await connect(crowded) as first, await connect(crowded) as second:
        assert await answers(first) == await answers(second) == 200
        crowded.edge.services.connections.most = 1
        assert await answers(first) == 200, "what is open stays open"
        async with await connect(crowded) as third:
            assert (await third.head()).status == 429
        crowded.edge.services.connections.most = None
        async with await connect(crowded) as fourth:
            assert await answers(fourth) == 200


async def test_the_listener_for_operations_does_not_count(crowded: Pair) -> None:
    """Health and metrics stay to be had whoever crowds the edge."""
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(MOST + 2):
            raw = await stack.enter_async_context(await RawClient.connect(crowded.ops_url))
            assert await answers(raw) == 200


async def test_this_machine_and_proxies_have_no_limit(tmp_path: Path) -> None:
    """Through one connection of a proxy, or of tailscaled or SSH on this machine, come requests of many."""
    async with (
        running_pair(state=tmp_path, edge={"connections_per_ip": 1}, wait=False) as pair,
        await connect(pair) as first,
        await connect(pair) as second,
    ):
        assert await answers(first) == await answers(second) == 200


@given(some.lists(some.tuples(some.sampled_from(["a", "b", "free"]), some.booleans())))
def test_the_count_is_of_those_that_are_open(steps: list[tuple[str, bool]]) -> None:
    """Whatever comes and goes in whatever order: never over the limit, never below nothing, and nothing left behind."""
    connections = Connections(2, lambda peer: None if peer == "free" else peer)
    there: list[str | None] = []
    for peer, comes in steps:
        if comes:
            full = peer != "free" and there.count(peer) == 2
            try:
                there.append(connections.enter(peer))
                assert not full
            except TooManyConnections:
                assert full
        elif there:
            connections.leave(there.pop())
        assert len(connections) == len([one for one in there if one is not None])
    for one in there:
        connections.leave(one)
    assert len(connections) == 0
