"""A machine of the tailnet as the edge dials it: its path is warmed before each link, and known afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from loguru import logger

from edge.upstreams import directory as module
from edge.upstreams.address import Address
from edge.upstreams.directory import Directory
from edge.upstreams.machine import Machine
from edge.upstreams.pool import Upstreams
from edge.upstreams.upstream import Upstream
from shared.tailscale.client import LocalClient
from shared.tailscale.tailnet import Tailnet
from tests.fake_localapi import FakeLocalAPI
from tests.linked import EDGE_HELLO
from tests.tailnet.shapes import node, peer, ping
from tests.waiting import wait_until

WARMED = ["disco", "TSMP"]


class Dials:
    """Attempts to open a link, none of which comes to an end: ``warmed`` has the pings that there were before each."""

    def __init__(self, fake: FakeLocalAPI) -> None:
        self.warmed: list[list[tuple[str, str]]] = []
        self._fake = fake

    async def __call__(self, *of: object) -> None:
        pings = [asked.query for asked in self._fake.asked if asked.path.endswith("/ping")]
        self.warmed.append([(query["type"], query["ip"]) for query in pings])
        await asyncio.Event().wait()

    async def reached(self, number: int) -> list[tuple[str, str]]:
        """The pings before dial ``number``, all since the start."""
        await wait_until(lambda: len(self.warmed) >= number, what=lambda: self.warmed)
        assert len(self.warmed) == number
        return self.warmed[-1]


@pytest.fixture
async def fake(tmp_path: Path) -> AsyncIterator[FakeLocalAPI]:
    async with FakeLocalAPI(tmp_path) as fake:
        fake.peers = [peer(2, "gpu", tags=["tag:gpu"])]
        fake.pings.extend([ping("100.64.0.2", Endpoint="10.0.0.2:41641")] * 1000)
        yield fake


@pytest.fixture
def dials(fake: FakeLocalAPI, monkeypatch: pytest.MonkeyPatch) -> Dials:
    dials = Dials(fake)
    monkeypatch.setattr("edge.upstreams.upstream.dial", dials)
    monkeypatch.setattr(module, "_LOOK_AGAIN", 60.0)  # seconds: its pings would be among those of the dials
    return dials


@asynccontextmanager
async def followed(fake: FakeLocalAPI) -> AsyncIterator[tuple[Upstream, Machine]]:
    """The node "x" on the machine "gpu", as the edge keeps it: found, dialled and looked at."""
    async with LocalClient(str(fake.path)) as client:
        tailnet, upstreams = Tailnet(client), Upstreams()
        wanted = Address("x", "", "hln_x", node="gpu", port=8001, setting="edge.upstreams.x")
        directory = Directory(tailnet, client, upstreams, EDGE_HELLO, [wanted], busy=lambda: True)
        running = [asyncio.create_task(work) for work in (tailnet.run(), directory.run(), upstreams.run())]
        try:
            [upstream] = upstreams.all
            assert upstream.machine is not None
            yield upstream, upstream.machine
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)


@contextmanager
def lines() -> Iterator[list[str]]:
    """What is logged of the machine while the block runs."""
    said: list[str] = []
    sink = logger.add(
        lambda line: said.append(line.rstrip("\n")), format="{level} {message}", filter="edge.upstreams.machine"
    )
    try:
        yield said
    finally:
        logger.remove(sink)


async def test_the_path_is_warmed_again_before_each_dial(
    fake: FakeLocalAPI, dials: Dials, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.upstreams.machine._WARM_FOR", -1.0)
    once = [(kind, "100.64.0.2") for kind in WARMED]
    async with followed(fake) as (upstream, _):
        assert await dials.reached(1) == once
        for number in (2, 3):
            upstream.redial()
            assert await dials.reached(number) == once * number


async def test_a_path_that_was_warmed_just_now_is_warm_unless_the_address_is_another(
    fake: FakeLocalAPI, dials: Dials
) -> None:
    async with followed(fake) as (upstream, _):
        first = await dials.reached(1)
        upstream.redial()
        assert await dials.reached(2) == first
        await fake.tell(PeersChanged=[node(2, "gpu", tags=["tag:gpu"], Addresses=["100.64.0.9/32"])])
        assert await dials.reached(3) == [*first, *((kind, "100.64.0.9") for kind in WARMED)]


async def test_a_path_through_a_peer_is_told_from_the_others(
    fake: FakeLocalAPI, dials: Dials, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is slower than a direct one and needs no advice, so that only the end of a relayed one is a line."""
    for name in ("_LOOK_AGAIN", "_LOOK_EVERY"):
        monkeypatch.setattr(module, name, 0.02)
    monkeypatch.setattr("edge.upstreams.path.AGREE_AFTER", 0.05)
    monkeypatch.setattr(Upstream, "connected", True)
    paths: list[tuple[dict[str, Any], str]] = [
        ({"CurAddr": "10.0.0.2:41641"}, "direct"),
        ({"PeerRelay": "10.0.0.9:40000:7"}, "peer-relayed"),
        ({"Relay": "fra"}, "relayed"),
        ({"PeerRelay": "10.0.0.9:40000:7"}, "peer-relayed"),
    ]
    with lines() as said:
        async with followed(fake) as (_, machine):
            for fields, path in paths:
                fake.peers = [peer(2, "gpu", tags=["tag:gpu"], Active=True, **fields)]
                await wait_until(lambda path=path: machine.path == path, what=lambda: machine.path)
                assert machine.relayed == (path == "relayed")
    assert len(said) == 2 and said[0].startswith("WARNING node x is reached through the relay fra")
    assert said[1] == "INFO node x is reached through a peer again"
