"""Which machines of a tailnet the settings mean, and what the edge knows of each: against tailscaled's LocalAPI, played
by a fake. The links themselves are dialled in tests/tailnet."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from loguru import logger

from edge.metrics import Metrics, NodeState
from edge.upstreams import directory as module
from edge.upstreams.address import Address
from edge.upstreams.dialling import Unreached
from edge.upstreams.directory import Directory
from edge.upstreams.pool import Upstreams
from edge.upstreams.reach import Failure
from edge.upstreams.upstream import Upstream
from shared.tailscale.client import LocalClient
from shared.tailscale.states import State
from shared.tailscale.tailnet import Tailnet
from tests.fake_localapi import FakeLocalAPI
from tests.linked import EDGE_HELLO
from tests.tailnet.shapes import node, peer, ping
from tests.waiting import wait_until

GPU = peer(2, "gpu", tags=["tag:gpu"])


@dataclass
class Bench:
    fake: FakeLocalAPI
    upstreams: Upstreams
    tailnet: Tailnet
    busy: bool = False

    @property
    def names(self) -> list[str]:
        return [upstream.name for upstream in self.upstreams.all]

    def one(self, name: str) -> Upstream:
        return next(upstream for upstream in self.upstreams.all if upstream.name == name)

    async def named(self, *names: str) -> None:
        await wait_until(lambda: self.names == list(names), what=lambda: self.names)


@asynccontextmanager
async def bench(
    folder: Path, wanted: dict[str, str], *, links: bool = False, proxy: str | None = None, **fake: Any
) -> AsyncIterator[Bench]:
    """A directory of ``wanted`` (name to node) against a tailscaled with the attributes ``fake``; nothing is dialled
    without ``links``."""
    addresses = [
        Address(name, "", "hln_x", node=node, port=8001, setting=f"edge.upstreams.{name}", priority=number)
        for number, (name, node) in enumerate(wanted.items())
    ]
    async with FakeLocalAPI(folder) as api, LocalClient(str(api.path)) as client:
        for name, value in fake.items():
            setattr(api, name, value)
        tailnet, upstreams = Tailnet(client), Upstreams()
        made = Bench(api, upstreams, tailnet)
        directory = Directory(tailnet, client, upstreams, EDGE_HELLO, addresses, proxy=proxy, busy=lambda: made.busy)
        works = [tailnet.run(), directory.run(), *([upstreams.run()] if links else [])]
        running = [asyncio.create_task(work) for work in works]
        try:
            yield made
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """What the edge's upstreams log."""
    said: list[str] = []
    sink = logger.add(lambda line: said.append(line.rstrip("\n")), format="{level} {message}", filter="edge.upstreams")
    yield said
    logger.remove(sink)


# -- which machines ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", ["gpu", "GPU", "gpu.tail.test", "100.64.0.2", "fd7a:115c:a1e0::2"])
async def test_one_machine_by_its_name_or_address(tmp_path: Path, wanted: str) -> None:
    async with bench(tmp_path, {"x": wanted}, peers=[GPU, peer(3, "other")]) as made:
        assert made.names == ["x"]  # also before tailscaled has said anything
        upstream = made.one("x")
        assert (upstream.reason, upstream.cause, upstream.url) == ("not connected yet", None, "")
        host = "[fd7a:115c:a1e0::2]" if ":" in wanted else "100.64.0.2"
        await wait_until(lambda: upstream.url == f"ws://{host}:8001/link", what=lambda: upstream.url)
        assert made.upstreams.all == [upstream]


async def test_each_machine_of_a_tag_is_a_node_of_its_own(tmp_path: Path) -> None:
    two = [peer(3, "gpu-2", tags=["tag:gpu"]), peer(2, "gpu-1", tags=["tag:gpu"]), peer(4, "phone")]
    async with bench(tmp_path, {"x": "tag:gpu"}, peers=two) as made:
        assert made.names == ["x"]
        await made.named("x/gpu-1", "x/gpu-2")
        first = made.one("x/gpu-1")
        assert (first.address.key, first.address.token, first.address.node) == ("edge.upstreams.x", "hln_x", "tag:gpu")
        await made.fake.tell(PeersChanged=[node(5, "gpu-3", tags=["tag:gpu"])], PeersRemoved=[3])
        await made.named("x/gpu-1", "x/gpu-3")
        assert made.one("x/gpu-1") is first
        await made.fake.tell(PeersRemoved=[2, 5])
        await made.named("x")  # so that health still shows it, with the reason


async def test_a_machine_that_is_named_is_not_also_one_of_its_tag(tmp_path: Path) -> None:
    peers = [GPU, peer(3, "gpu-2", tags=["tag:gpu"])]
    async with bench(tmp_path, {"all": "tag:gpu", "x": "gpu", "more": "tag:gpu"}, peers=peers) as made:
        await made.named("all/gpu-2", "x")


@pytest.mark.parametrize(
    ("wanted", "found"), [("tag:gpu", False), ("gpu", False), ("gpu.other.test", True), ("100.64.0.2", True)]
)
async def test_a_machine_of_another_tailnet_must_be_named(tmp_path: Path, wanted: str, found: bool) -> None:
    """Whoever shares a machine chooses its tags, and the edge would show it the node token."""
    foreign = peer(2, "gpu", tags=["tag:gpu"], DNSName="gpu.other.test.")
    async with bench(tmp_path, {"x": wanted}, links=True, peers=[foreign]) as made:
        upstream = made.one("x")
        await wait_until(lambda: upstream.url if found else upstream.cause == "no_such_machine")
        assert bool(upstream.url) == found


async def test_trouble_of_our_own_takes_no_node_away(tmp_path: Path) -> None:
    async with bench(tmp_path, {"x": "tag:gpu"}, peers=[GPU]) as made:
        await made.named("x/gpu")
        upstream = made.one("x/gpu")
        view = lambda: made.tailnet.view  # noqa: E731
        await made.fake.stop()
        await wait_until(lambda: view().failure is not None)
        assert made.upstreams.all == [upstream]
        made.fake.status, made.fake.state = {"BackendState": "NeedsLogin", "TailscaleIPs": None}, 2
        made.fake.peers = []
        await made.fake.restart()
        await wait_until(lambda: view().state is State.NEEDS_LOGIN and not view().peers, 10, what=view)
        assert made.upstreams.all == [upstream]
        assert upstream.url


# -- what is said of them ---------------------------------------------------------------------------------------------


async def test_a_node_that_is_not_to_be_found_says_so_and_is_dialled_when_it_comes(tmp_path: Path) -> None:
    async with bench(tmp_path, {"x": "gpu"}, links=True) as made:
        upstream = made.one("x")
        await wait_until(lambda: upstream.cause == "no_such_machine")
        made.fake.pings.extend(ping("100.64.0.2", Endpoint="10.0.0.2:41641") for _ in range(4))
        await made.fake.tell(PeersChanged=[node(2, "gpu")])
        await wait_until(lambda: any(asked.path.endswith("/ping") for asked in made.fake.asked))
        kinds = [asked.query["type"] for asked in made.fake.asked if asked.path.endswith("/ping")]
        await wait_until(lambda: upstream.machine is not None and upstream.machine.round_trip == 0.001)
        assert kinds[0] == "disco"


async def test_no_route_to_a_machine_that_has_just_come_is_tried_again_and_not_reported_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dialled = []

    async def dial(*of: object) -> None:
        dialled.append(made.one("x").reason)
        raise Unreached(Failure("unreachable", detail="Network is unreachable"))

    monkeypatch.setattr("edge.upstreams.upstream.dial", dial)
    monkeypatch.setattr("edge.upstreams.machine._NEW_FOR", 0.5)
    async with bench(tmp_path, {"x": "gpu"}, links=True, peers=[GPU]) as made:
        made.fake.pings.extend([ping("100.64.0.2", Endpoint="10.0.0.2:41641")] * 50)
        await wait_until(lambda: "unreachable" in made.one("x").reason, what=lambda: made.one("x").reason)
        assert dialled[:3] == ["not connected yet"] * 3


async def test_userspace_networking_without_its_proxy_says_what_to_set(tmp_path: Path) -> None:
    async with bench(tmp_path, {"x": "gpu"}, links=True, peers=[GPU], status={"TUN": False}) as made:
        upstream = made.one("x")
        await wait_until(lambda: "userspace" in upstream.reason, what=lambda: upstream.reason)
        assert "--outbound-http-proxy-listen=" in upstream.reason
        assert "tailscale.proxy" in upstream.reason


async def test_a_proxy_that_is_not_there_says_so(tmp_path: Path) -> None:
    proxy, status = "http://127.0.0.1:9", {"TUN": False}
    pings = [ping("100.64.0.2", Endpoint="10.0.0.2:41641")] * 50
    async with bench(tmp_path, {"x": "gpu"}, links=True, proxy=proxy, peers=[GPU], status=status) as made:
        made.fake.pings.extend(pings)
        upstream = made.one("x")
        await wait_until(
            lambda: "nothing answers at http://127.0.0.1:9" in upstream.reason, what=lambda: upstream.reason
        )


@pytest.mark.parametrize(("days", "tags", "warned"), [(6.9, [], True), (7.1, [], False), (6.9, ["tag:gpu"], False)])
async def test_a_key_that_expires_within_a_week_is_told_once(
    tmp_path: Path, lines: list[str], days: float, tags: list[str], warned: bool
) -> None:
    expiry = (datetime.now(UTC) + timedelta(days=days)).isoformat().replace("+00:00", "Z")
    machine = peer(2, "gpu", tags=tags, KeyExpiry=expiry)
    async with bench(tmp_path, {"x": "gpu"}, peers=[machine]) as made:
        known = made.one("x").machine
        assert known is not None
        await wait_until(lambda: known.online)
        await made.fake.tell(PeersChanged=[node(2, "gpu", Tags=tags or None, KeyExpiry=expiry, Online=False)])
        await wait_until(lambda: known.online is False)
        told = [line for line in lines if "expires on" in line]
        assert len(told) == warned
        if warned:
            assert "gpu.tail.test (node x)" in told[0]
            assert "--force-reauth" in told[0]


# -- by which path ----------------------------------------------------------------------------------------------------


async def test_a_change_to_the_relay_and_back_is_one_line_each(
    tmp_path: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_LOOK_AGAIN", "_LOOK_EVERY"):
        monkeypatch.setattr(module, name, 0.02)
    monkeypatch.setattr("edge.upstreams.path.AGREE_AFTER", 0.05)
    monkeypatch.setattr(Upstream, "connected", property(lambda upstream: made.busy))
    direct = peer(2, "gpu", Active=True, CurAddr="10.0.0.2:41641")
    relayed = peer(2, "gpu", Active=True, Relay="fra")
    async with bench(tmp_path, {"x": "gpu"}, peers=[direct]) as made:
        machine = made.one("x").machine
        assert machine is not None
        await wait_until(lambda: machine.node)
        await asyncio.sleep(0.2)
        assert machine.path == "unknown", "no chat runs and nothing was dialled"
        made.busy = True
        for peers, path in (([direct], "direct"), ([relayed], "relayed"), ([direct], "direct")):
            made.fake.peers = peers
            await wait_until(lambda path=path: machine.path == path)
    told = [line for line in lines if "reached" in line]
    assert len(told) == 2
    assert told[0].startswith("WARNING node x is reached through the relay fra")
    assert told[1] == "INFO node x is reached directly again"


# -- metrics ----------------------------------------------------------------------------------------------------------


def test_the_gauges_are_of_the_nodes_that_there_are() -> None:
    metrics = Metrics()
    nodes = [NodeState("x/gpu", True, online=True, relayed=False, round_trip=0.002), NodeState("url", False)]
    metrics.nodes(lambda: nodes)
    prefix = "hearthlink_edge_node_"
    told = [line.removeprefix(prefix) for line in metrics.render().decode().split("\n") if line.startswith(prefix)]
    assert told == [
        'connected{node="x/gpu"} 1.0',
        'connected{node="url"} 0.0',
        'online{node="x/gpu"} 1.0',
        'relayed{node="x/gpu"} 0.0',
        'round_trip_seconds{node="x/gpu"} 0.002',
    ]
    nodes.clear()
    assert b"gpu" not in metrics.render()
