"""The bench's pair on two machines: what it counts went through the tunnel."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest

from bench.client import Wave
from bench.processes import Cpus, Result
from bench.sections import Bench, body
from bench.tunnel import tunnelled_pair
from tests.tailnet.member import Member
from tests.tailnet.tailnet import Tailnet

pytestmark = pytest.mark.asyncio(loop_scope="module")

_EVENTS = 40


def _measured(bench: Bench, edge: Member, node: Member) -> Result:
    with tunnelled_pair(bench, bench.folder, edge, node) as target:
        return bench.run(target, [Wave(body(_EVENTS, 10), 2, workers=2, events=_EVENTS)]).checked()


async def test_events_of_the_pair_pass_both_tailscaleds(tailnet: Tailnet, tmp_path: Path) -> None:
    edge = await tailnet.member("edge", tags=["tag:edge"])
    node = await tailnet.member("gpu", tags=["tag:gpu"])
    await edge.meets(node)
    bench = Bench(tmp_path, Cpus.shared(), upstream_port=0, upstream_pid=os.getpid(), quick=True)
    sent_before = await _sent(node)
    result = await asyncio.to_thread(_measured, bench, edge, node)
    assert result.waves[0]["events"] == 2 * _EVENTS
    assert all(result.cpu[name] > 0 for name in ("edge", "node", "tailscaled of the edge", "tailscaled of the node"))
    assert await _sent(node) - sent_before > 2 * _EVENTS * len('{"content":"@0000000000000000"}')


async def _sent(member: Member) -> int:
    """Bytes that its tailscaled has sent to others."""
    status = json.loads(await member.tailscale("status", "--json"))
    return sum(peer["TxBytes"] for peer in status["Peer"].values())
