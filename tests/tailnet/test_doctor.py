"""``hearthlink doctor`` on a real tailnet, on the edge's machine and on the node's: well when they are well, and each
thing that breaks between them is named, with what mends it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from shared.addresses import NODE_PORT
from shared.tailscale.client import LocalClient
from shared.tailscale.errors import NotAnswering
from shared.tailscale.nodes import Path as PathKind
from tests.tailnet.deployed import Deployed, Report, edge_on, node_on
from tests.tailnet.member import Member
from tests.tailnet.tailnet import Tailnet, policy

pytestmark = pytest.mark.asyncio(loop_scope="module")

_SOON = 30.0


@dataclass(frozen=True)
class Members:
    edge: Member
    gpu: Member


@pytest_asyncio.fixture(loop_scope="module")
async def members(module_members: Members) -> Members:
    """Each test begins when they can call each other, whatever the one before has done to them."""
    await module_members.edge.meets(module_members.gpu)
    return module_members


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def module_members(tailnet: Tailnet) -> Members:
    return Members(
        *await asyncio.gather(tailnet.member("edge", tags=["tag:edge"]), tailnet.member("gpu", tags=["tag:gpu"]))
    )


@asynccontextmanager
async def deployed(members: Members, folder: Path, **upstream: Any) -> AsyncIterator[tuple[Deployed, Deployed]]:
    """An edge in front of one node; ``upstream`` is what its settings say besides the machine."""
    async with (
        node_on(members.gpu, folder) as node,
        edge_on(members.edge, folder, {"gpu": {"node": "gpu", **upstream}}) as edge,
    ):
        yield edge, node


async def until(edge: Deployed, cause: str) -> None:
    """Wait until the edge has noticed."""
    health: dict[str, Any] = {}
    for _ in range(int(_SOON / 0.2)):
        health = await edge.health()
        if [row.get("cause") for row in health.get("nodes", ())] == [cause]:
            return
        await asyncio.sleep(0.2)
    raise AssertionError(f"no {cause}: {json.dumps(health)}")


def assert_broken_by(report: Report, sentence: str) -> dict[str, Any]:
    """The edge's line about its node, which is broken and says ``sentence``."""
    line = dict(report.line("node", "link"))
    assert (report.status, line["state"]) == (2, "broken"), report
    assert sentence in line["text"], report
    return line


async def test_a_good_pair_is_well_on_both_machines(members: Members, tmp_path: Path) -> None:
    """Each doctor sees its own side: the path and the answer from the edge, addresses and rights from the node."""
    async with deployed(members, tmp_path) as (edge, node):
        await edge.ready()
        at_edge, at_node = await asyncio.gather(edge.doctor(), node.doctor())
    assert (at_edge.status, at_edge.faults) == (0, []), at_edge
    assert (at_node.status, at_node.faults) == (0, []), at_node
    assert "is direct" in at_edge.line("tailnet", "path")["text"]
    assert at_edge.line("edge", "stream")["state"] == "ok"
    assert "agree" in at_edge.line("node", "clock")["text"]
    assert "demo" in at_edge.line("runtime", "remote")["text"]
    assert at_node.line("edge", "process")["state"] == "absent"
    assert at_node.line("node", "process")["state"] == "ok"
    assert at_node.line("node", "exposed")["state"] == "ok"


async def test_a_path_without_udp_is_relayed(members: Members, tmp_path: Path) -> None:
    """A warning, since answers still come."""
    edge_machine, gpu_machine = members.edge.machine, members.gpu.machine
    async with deployed(members, tmp_path) as (edge, _):
        await edge_machine.lose_udp_to(gpu_machine)
        await gpu_machine.lose_udp_to(edge_machine)
        try:
            await edge.ready()
            # tailscaled trusts a direct path for some seconds after its last answer.
            async with LocalClient(str(members.edge.socket)) as client, asyncio.timeout(_SOON):
                while not await relayed(client, await members.gpu.address()):  # noqa: ASYNC110 - no event tells of it
                    await asyncio.sleep(0.2)
            report = await edge.doctor()
        finally:
            await edge_machine.deliver_udp_to(gpu_machine)
            await gpu_machine.deliver_udp_to(edge_machine)
    path = report.line("tailnet", "path")
    assert path["state"] == "warning" and "relayed (DERP" in path["text"], report
    assert report.status == 1 and report.line("edge", "stream")["state"] == "ok", report


async def relayed(client: LocalClient, address: str) -> bool:
    try:
        return (await client.ping(address, seconds=2)).path is PathKind.RELAYED
    except NotAnswering:
        return False


async def test_a_wrong_token(members: Members, tmp_path: Path) -> None:
    async with deployed(members, tmp_path, token="hln_" + "w" * 43) as (edge, _):
        await until(edge, "token_refused")
        line = assert_broken_by(await edge.doctor(), "refuses this edge's token")
    assert line["mend"].endswith(f"'{edge.settings}'") and line["where"] == ""


async def test_a_node_that_was_stopped(members: Members, tmp_path: Path) -> None:
    """Told on both machines, and told from a machine that is off."""
    async with deployed(members, tmp_path) as (edge, node):
        await edge.ready()
        await node.stop()
        await until(edge, "app_not_listening")
        at_edge, at_node = await asyncio.gather(edge.doctor(), node.doctor())
    line = assert_broken_by(at_edge, "nothing listens on its port 8001")
    assert (line["mend"], line["where"]) == ("hearthlink node --listen tailnet", "on gpu")
    mine = at_node.line("node", "process")
    assert (at_node.status, mine["state"], mine["mend"]) == (2, "broken", "hearthlink node --listen tailnet"), at_node


async def test_a_policy_that_closes_the_port(tailnet: Tailnet, members: Members, tmp_path: Path) -> None:
    """The grant that is missing is printed as it is written, and does mend it."""
    ssh_only = policy()
    ssh_only["grants"][0] = {"src": ["tag:edge"], "dst": ["tag:gpu"], "ip": ["tcp:22"]}
    await tailnet.policy(ssh_only)
    try:
        async with deployed(members, tmp_path) as (edge, node):
            await until(edge, "policy_blocks")
            at_edge, at_node = await asyncio.gather(edge.doctor(), node.doctor())
            line = assert_broken_by(at_edge, "policy does not allow")
            assert line["where"] == "in the tailnet's policy"
            assert at_node.line("tailnet", "dropped")["state"] == "warning", at_node
            await tailnet.policy(policy(json.loads(line["mend"])))
            await edge.ready()
    finally:
        await tailnet.policy(policy())


async def test_a_machine_that_the_node_does_not_admit(tailnet: Tailnet, members: Members, tmp_path: Path) -> None:
    """The port is open, and the caller has neither the tag nor the grant."""
    laptop = await tailnet.member("laptop", tags=["tag:gpu"])
    await tailnet.policy(policy({"src": ["tag:gpu"], "dst": ["tag:gpu"], "ip": ["tcp:8001"]}))
    await laptop.meets(members.gpu)
    try:
        async with (
            node_on(members.gpu, tmp_path),
            edge_on(laptop, tmp_path, {"gpu": {"node": "gpu"}}) as edge,
        ):
            await until(edge, "machine_refused")
            line = assert_broken_by(await edge.doctor(), "does not admit this machine")
    finally:
        await tailnet.policy(policy())
    assert json.loads(line["mend"])["app"] and line["where"] == "in the tailnet's policy"


async def test_tailscale_down_on_either_machine(members: Members, tmp_path: Path) -> None:
    async with deployed(members, tmp_path) as (edge, node):
        await edge.ready()
        await members.gpu.down()
        try:
            await until(edge, "machine_offline")
            at_edge, at_node = await asyncio.gather(edge.doctor(), node.doctor())
        finally:
            await members.gpu.up()
        line = assert_broken_by(at_edge, "gpu")
        assert (line["mend"], line["where"]) == ("sudo tailscale up", "on gpu")
        assert at_node.status == 2 and at_node.line("tailnet", "state")["mend"] == "sudo tailscale up", at_node
        await members.edge.down()
        try:
            await until(edge, "tailscaled_down")
            report = await edge.doctor()
        finally:
            await members.edge.up()
    assert_broken_by(report, "Tailscale is stopped")
    assert report.line("tailnet", "state")["mend"] == "sudo tailscale up", report


async def test_serve_that_leads_to_the_edge(members: Members, tmp_path: Path) -> None:
    """Not set up, set up, and set up for an edge that listens somewhere else by now."""
    async with deployed(members, tmp_path) as (edge, _):
        await edge.ready()
        assert (await edge.doctor()).line("tailnet", "serve")["state"] == "absent"
        await edge.command("setup", "tailnet")
        try:
            report = await edge.doctor()
            assert report.line("tailnet", "serve")["state"] == "ok", report
            await edge.stop()
            edge.configure({"edge": {"serve": "127.0.0.1:8702", "upstreams": {"gpu": {"node": "gpu"}}}})
            await edge.start()
            await until(edge, "token_refused")
            line = (await edge.doctor()).line("tailnet", "serve")
            assert (line["state"], line["mend"]) == ("broken", "hearthlink setup tailnet")
        finally:
            await edge.command("setup", "tailnet", "--off")


async def test_a_port_that_somebody_opens_to_the_network(members: Members, tmp_path: Path) -> None:
    """Such as a container that publishes the node's port: told with the address that it is reached at."""
    outside = members.gpu.machine.address
    publish = ("-m", "http.server", str(NODE_PORT), "--bind", outside, "--directory", str(tmp_path))
    async with node_on(members.gpu, tmp_path) as node:
        await node.logged("node listens on")
        program = await members.gpu.machine.start(sys.executable, *publish, log=tmp_path / "publish.log")
        try:
            await listens(members.gpu, outside)
            report = await node.doctor()
        finally:
            program.kill()
            await program.wait()
    line = report.line("node", "exposed")
    assert (report.status, line["state"]) == (2, "broken") and f"{outside} (eth0)" in line["text"], report
    assert line["mend"] == "sudo ufw deny in on eth0 to any port 8001 proto tcp"


async def listens(member: Member, address: str) -> None:
    """Wait until something does at the node's port of ``address``."""
    async with asyncio.timeout(_SOON):
        while True:
            with member.machine.socket() as sock, contextlib.suppress(ConnectionRefusedError):
                sock.setblocking(False)
                return await asyncio.get_running_loop().sock_connect(sock, (address, NODE_PORT))
            await asyncio.sleep(0.05)


async def test_without_an_edge_the_doctor_dials_itself(members: Members, tmp_path: Path) -> None:
    """The same causes, found by its own dial."""
    async with deployed(members, tmp_path) as (edge, node):
        await edge.ready()
        await edge.stop()
        report = await edge.doctor()
        assert report.line("edge", "process")["state"] == "broken"
        assert report.line("node", "link")["state"] == "ok", report
        await node.stop()
        assert_broken_by(await edge.doctor(), "nothing listens on its port 8001")
