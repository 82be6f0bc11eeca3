"""``infra/tailscale/policy.hujson``: headscale takes the file as it is, the tests in it refuse what would open more,
and under it the edge reaches the node's port, people reach the edge, and nobody anything else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from edge.plans import built_in
from shared.settings_sections import TailscaleSettings
from shared.tailscale.client import LocalClient
from shared.tailscale.whois import WhoIs
from tests.tailnet.member import Member
from tests.tailnet.tailnet import Tailnet

pytestmark = pytest.mark.asyncio(loop_scope="module")

POLICY = (Path(__file__).resolve().parent.parent.parent / "infra" / "tailscale" / "policy.hujson").read_text()
_SETTINGS = TailscaleSettings()
_PORTS = (22, 80, 443, 8001, 8700)  # something listens on all of them, everywhere
# Seconds. What the policy drops is never answered; what it lets through is, in milliseconds over a path that is used.
_DROPPED = 3.0


@dataclass(frozen=True)
class Members:
    edge: Member
    gpu: Member
    tester: Member
    owner: Member


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def members(tailnet: Tailnet) -> AsyncIterator[Members]:
    """The machines and the people that the file names, on ways that they have used once."""
    for name in ("tester", "owner"):
        await tailnet.headscale.cli("users", "create", name, "--email", f"{name}@example.com")
    edge, gpu, tester, owner = await asyncio.gather(
        tailnet.member("edge", tags=["tag:edge"]),
        tailnet.member("gpu", tags=["tag:gpu"]),
        tailnet.member("tester", user="tester"),
        tailnet.member("owner", user="owner"),
    )
    with ExitStack() as listening:
        for member in (edge, gpu, tester, owner):
            for port in _PORTS:
                sock = listening.enter_context(member.machine.socket())
                sock.bind(("0.0.0.0", port))
                sock.listen()
        await edge.meets(gpu, tester, owner)
        yield Members(edge, gpu, tester, owner)


async def test_headscale_takes_it_and_its_tests_pass(tailnet: Tailnet, members: Members) -> None:
    await tailnet.headscale.check(POLICY)


@pytest.mark.parametrize(
    ("grant", "failed"),
    [
        ('{"src": ["tag:edge"], "dst": ["tag:gpu"], "ip": ["tcp:22"]}', "tag:edge -> tag:gpu:22"),
        ('{"src": ["group:testers"], "dst": ["tag:gpu"], "ip": ["tcp:8001"]}', "group:testers -> tag:gpu:8001"),
        ('{"src": ["group:owners"], "dst": ["tag:gpu"], "ip": ["tcp:8001"]}', "group:owners -> tag:gpu:8001"),
        ('{"src": ["tag:gpu"], "dst": ["tag:edge"], "ip": ["udp:443"]}', "tag:gpu -> tag:edge:443"),
        ('{"src": ["*"], "dst": ["*"], "ip": ["*"]}', "tag:gpu -> tag:gpu:8001"),
    ],
)
async def test_its_tests_refuse_a_grant_that_opens_more(
    tailnet: Tailnet, members: Members, grant: str, failed: str
) -> None:
    opened = POLICY.replace('"grants": [', f'"grants": [{grant},', 1)
    with pytest.raises(AssertionError, match=f"{failed}.*: expected DENIED, got ALLOWED"):
        await tailnet.headscale.check(opened)


@pytest.mark.parametrize(
    ("written", "instead", "failed"),
    [
        ('"ip": ["tcp:8001"]', '"ip": ["tcp:8002"]', "tag:edge -> tag:gpu:8001"),
        ('"ip": ["tcp:80", "tcp:443"]', '"ip": ["tcp:80"]', "group:testers -> tag:edge:443"),
    ],
)
async def test_its_tests_refuse_to_lose_a_way(
    tailnet: Tailnet, members: Members, written: str, instead: str, failed: str
) -> None:
    with pytest.raises(AssertionError, match=f"{failed}.*: expected ALLOWED, got DENIED"):
        await tailnet.headscale.check(POLICY.replace(written, instead, 1))


async def test_who_reaches_what(members: Members) -> None:
    edge, gpu, tester, owner = members.edge, members.gpu, members.tester, members.owner
    allowed = {(edge, gpu): {8001}, (tester, edge): {80, 443}, (owner, edge): {80, 443}}
    ways = [*allowed, (gpu, edge), (tester, gpu), (owner, gpu), (edge, tester), (owner, tester)]
    found = await asyncio.gather(*(reaches(here, there) for here, there in ways))
    for way, ports in zip(ways, found, strict=True):
        assert ports == allowed.get(way, set()), " to ".join(member.name for member in way)


async def test_the_node_learns_that_the_edge_may_call(members: Members) -> None:
    found = await seen_by(members.gpu, members.edge)
    assert found.node.tags == ("tag:edge",)
    assert found.capabilities == {_SETTINGS.node_capability: ({"roles": ["infer"]},)}


async def test_the_edge_learns_what_people_may(members: Members) -> None:
    tester = await seen_by(members.edge, members.tester)
    assert tester.user.login == "tester@example.com"
    (granted,) = tester.capabilities[_SETTINGS.tester_capability]
    assert (granted["plan"], granted["roles"]) == ("beta", ["chat"])
    assert granted["limits"].keys() == built_in()["member"].limits().keys()
    owner = await seen_by(members.edge, members.owner)
    assert owner.capabilities[_SETTINGS.tester_capability] == ({"plan": "owner", "roles": ["chat", "admin"]},)


async def seen_by(here: Member, other: Member) -> WhoIs:
    async with LocalClient(str(here.socket)) as client:
        found = await client.whois(await other.address())
    assert found is not None
    return found


async def reaches(here: Member, there: Member) -> set[int]:
    """The ports of ``there`` that answer ``here``."""
    address = await there.address()
    answered = await asyncio.gather(*(connects(here, address, port) for port in _PORTS))
    return {port for port, answer in zip(_PORTS, answered, strict=True) if answer}


async def connects(here: Member, address: str, port: int) -> bool:
    with here.machine.socket() as sock, suppress(OSError):  # TimeoutError is one
        sock.setblocking(False)
        async with asyncio.timeout(_DROPPED):
            await asyncio.get_running_loop().sock_connect(sock, (address, port))
        return True
    return False
