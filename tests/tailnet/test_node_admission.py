"""Who may call a node, shown on a real tailnet: an edge by its tag, a person only by a grant of the policy, and only
for as long as the policy says so."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from node.admission.callers import TailnetCallers
from shared.contract.errors import ApiError
from shared.link.call import Call
from shared.link.session import LinkClosed, Session
from shared.link.transports import DialledTransport, DialRefused
from shared.tailscale.client import LocalClient
from tests.fake_runtime import FakeRuntime
from tests.fake_scripts import normal
from tests.linked import EDGE_HELLO, call
from tests.pair import events_of, question
from tests.tailnet.deployed import NODE_TOKEN, Deployed, node_on
from tests.tailnet.member import Member
from tests.tailnet.runtime_on import RuntimeOn
from tests.tailnet.tailnet import CAPABILITY, PERSON, Tailnet, policy
from tests.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

# Seconds for what the control server must first tell others.
_SOON = 30.0
# A change of policy counts after 30 s; what is over that is for a slow machine.
_LOOKED_UP_AGAIN = 45.0
STREAMED = question(stream=True)
# Slow, since the node ends an answer after some hundred tokens.
LONG = normal(1000, 0.2)


def streamed() -> Call:
    return call(json.dumps(STREAMED).encode())


@dataclass(frozen=True, slots=True)
class Place:
    """A node, on the machine ``member``."""

    member: Member
    process: Deployed
    runtime: FakeRuntime
    url: str

    async def ask(self, caller: Member, token: str | None = NODE_TOKEN, path: str = "/v1/chat") -> tuple[int, str]:
        """Status and the error's code of a new connection's request."""
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        async with caller.machine.client(timeout=aiohttp.ClientTimeout(20)) as client:
            method, payload = ("POST", question()) if path == "/v1/chat" else ("GET", None)
            async with client.request(method, self.url + path, json=payload, headers=headers) as response:
                body = await response.read()
        return response.status, "" if response.status == 200 else json.loads(body)["error"]["code"]

    @asynccontextmanager
    async def link(self, caller: Member) -> AsyncIterator[tuple[Session, asyncio.Task[LinkClosed], DialledTransport]]:
        """A link as an edge on ``caller`` has it. Raises DialRefused."""
        async with caller.machine.client() as client:
            transport = await DialledTransport.dial(client, self.url.replace("http", "ws") + "/link", NODE_TOKEN)
            session = Session(transport, EDGE_HELLO, on_snapshot=lambda wire: None)
            running = asyncio.create_task(session.run())
            try:
                await asyncio.wait_for(session.ready.wait(), 5)
                yield session, running, transport
            finally:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)


@dataclass(frozen=True, slots=True)
class Ground:
    """``rack``'s tailscaled runs in userspace networking."""

    tailnet: Tailnet
    edge: Member
    phone: Member
    gpu: Place
    rack: Place

    @property
    def nodes(self) -> tuple[Place, Place]:
        return self.gpu, self.rack

    async def allow(self, *values: Any) -> None:
        """Open the nodes' port to the person, with ``values`` of the capability; all machines know when it returns."""
        app = {"app": {CAPABILITY: list(values)}} if values else {}
        grant = {"src": [f"{PERSON}@"], "dst": ["tag:gpu"], "ip": ["tcp:8001"], **app}
        await self.tailnet.policy(policy(grant))
        await self.phone.meets(*(node.member for node in self.nodes))


@asynccontextmanager
async def place(member: Member, folder: Path) -> AsyncIterator[Place]:
    async with (
        RuntimeOn(member.machine, normal()) as runtime,
        node_on(member, folder, runtime=runtime.settings) as process,
    ):
        await process.logged("node listens on")
        yield Place(member, process, runtime, f"http://{await member.address()}:8001")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def module_ground(tailnet: Tailnet, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Ground]:
    edge, gpu, rack, phone = await asyncio.gather(
        tailnet.member("edge", tags=["tag:edge"]),
        tailnet.member("gpu", tags=["tag:gpu"]),
        tailnet.member("rack", tags=["tag:gpu"], userspace=True),
        tailnet.member("phone", user=PERSON),
    )
    folder = tmp_path_factory.mktemp("nodes")
    async with place(gpu, folder) as on_gpu, place(rack, folder) as on_rack:
        ground = Ground(tailnet, edge, phone, on_gpu, on_rack)
        yield ground


@pytest_asyncio.fixture(loop_scope="module")
async def ground(module_ground: Ground) -> AsyncIterator[Ground]:
    """Each test begins with a policy that lets the edge in and nobody else."""
    for node in module_ground.nodes:
        node.runtime.script = "normal"
        node.runtime.chats.clear()
    await module_ground.tailnet.policy(policy())
    await module_ground.edge.meets(*(node.member for node in module_ground.nodes))
    yield module_ground


@pytest.fixture(params=["gpu", "rack"])
def node(ground: Ground, request: pytest.FixtureRequest) -> Place:
    """Both kinds of networking, one after the other."""
    return getattr(ground, request.param)


async def test_an_edge_is_let_in_by_its_tag_and_the_token(ground: Ground, node: Place) -> None:
    assert await node.ask(ground.edge) == (200, "")
    assert await node.ask(ground.edge, None, "/healthz") == (200, "")
    async with node.link(ground.edge) as (session, _, _):
        assert await session.open(streamed()).head()
    assert await node.ask(ground.edge, "hln_wrong") == (401, "invalid_token")
    assert await node.ask(ground.edge, None) == (401, "missing_token")
    await node.process.logged("refused edge.tail.test")


async def test_a_personal_device_does_not_reach_the_port(ground: Ground, node: Place) -> None:
    before = len(node.process.log_text())
    # The policy hides the machine from it altogether, or drops what it sends there.
    with pytest.raises((OSError, TimeoutError)):
        async with asyncio.timeout(5):
            await node.ask(ground.phone)
    assert PERSON not in node.process.log_text()[before:]
    assert not node.runtime.chats


async def test_a_personal_device_that_reaches_the_port_is_refused_by_name(ground: Ground, node: Place) -> None:
    await ground.allow()
    for path in ("/v1/chat", "/v1/models", "/healthz", "/livez", "/metrics"):
        assert await node.ask(ground.phone, NODE_TOKEN, path) == (403, "address_not_allowed")
    with pytest.raises(DialRefused) as refused:
        async with node.link(ground.phone):
            pass
    assert refused.value.status == 403
    address = "127.0.0.1" if node.member.userspace else await ground.phone.address()
    await node.process.logged(f"refused {PERSON} ({address}): The tailnet's policy does not let this caller in")
    assert not node.runtime.chats


async def test_a_machine_of_the_network_that_is_in_no_tailnet_gets_nothing(ground: Ground) -> None:
    # Linux answers for an address whichever interface a packet comes by; this one's sender is in no tailnet.
    stranger = await ground.tailnet.bridge.machine()
    node = ground.gpu
    address = await node.member.address()
    await stranger.call("ip", "route", "add", f"{address}/32", "via", node.member.machine.address)
    async with stranger.client(timeout=aiohttp.ClientTimeout(20)) as client:
        with pytest.raises((aiohttp.ClientError, OSError)) as raised:
            await client.get(f"{node.url}/livez")
    assert not isinstance(raised.value, aiohttp.ClientConnectorError), "it connected, and was dropped without a word"
    assert not node.runtime.chats


async def test_in_userspace_networking_a_program_beside_the_node_is_nobody(ground: Ground) -> None:
    async with ground.rack.member.machine.client() as client:
        headers = {"Authorization": f"Bearer {NODE_TOKEN}"}
        async with client.get("http://127.0.0.1:8001/v1/models", headers=headers) as response:
            assert (response.status, (await response.json())["error"]["code"]) == (403, "address_not_allowed")


async def test_a_node_on_loopback_knows_whom_userspace_networking_brings(ground: Ground, tmp_path: Path) -> None:
    """tailscaled calls at 127.0.0.1 for every peer that the policy lets to the port, asked for or not."""
    attic = await ground.tailnet.member("attic", tags=["tag:gpu"], userspace=True)
    url = f"http://{await attic.address()}:8001"
    async with (
        RuntimeOn(attic.machine, normal()) as runtime,
        node_on(attic, tmp_path, listen="127.0.0.1:8001", runtime=runtime.settings) as process,
    ):
        await process.logged("node listens on")
        node = Place(attic, process, runtime, url)
        await ground.allow()
        await attic.meets(ground.edge, ground.phone)
        for path in ("/v1/chat", "/v1/models", "/healthz", "/livez", "/metrics"):
            assert await node.ask(ground.phone, NODE_TOKEN, path) == (403, "address_not_allowed")
        await process.logged(f"refused {PERSON} (127.0.0.1): The tailnet's policy does not let this caller in")
        assert not runtime.chats
        assert await node.ask(ground.edge) == (200, "")
        beside = Place(attic, process, runtime, "http://127.0.0.1:8001")
        assert await beside.ask(attic) == (200, "")
        assert await beside.ask(attic, None, "/healthz") == (200, "")
    await attic.leave()


async def test_a_grant_with_the_role_lets_a_person_in_with_the_token(ground: Ground, node: Place) -> None:
    await ground.allow({"roles": ["infer"]})
    assert await node.ask(ground.phone) == (200, "")
    assert await node.ask(ground.phone, None, "/healthz") == (200, "")
    assert await node.ask(ground.phone, "hln_wrong") == (401, "invalid_token")
    async with node.link(ground.phone) as (session, _, _):
        assert await session.open(streamed()).head()


async def test_a_grant_that_is_taken_away_ends_links_and_streams_and_no_others(ground: Ground) -> None:
    await ground.allow({"role": "infer"})
    both_have_begun = asyncio.Barrier(3)

    async def loses(node: Place) -> None:
        node.runtime.script = LONG
        headers = {"Authorization": f"Bearer {NODE_TOKEN}"}
        async with (
            node.link(ground.edge) as (edge, edge_running, _),
            node.link(ground.phone) as (session, running, transport),
            ground.phone.machine.client() as client,
            client.post(f"{node.url}/v1/chat", json=STREAMED, headers=headers) as response,
        ):
            kept, lost = edge.open(streamed()), session.open(streamed())
            await asyncio.gather(kept.head(), lost.head(), response.content.readline())
            await both_have_begun.wait()
            async with asyncio.timeout(_LOOKED_UP_AGAIN):
                received, _ = await asyncio.gather(response.content.read(), running)
            assert transport.close_code == 1008
            assert json.loads(events_of(received)[-1].data)["error"]["code"] == "address_not_allowed"
            assert lost.error is not None
            # The edge's link began first, and has been looked up again as well.
            assert not edge_running.done() and kept.error is None
        assert await node.ask(ground.phone) == (403, "address_not_allowed")
        await node.runtime.idle()

    async with asyncio.TaskGroup() as group:
        for node in ground.nodes:
            group.create_task(loses(node))
        await both_have_begun.wait()
        await ground.allow({"role": "chat"})


async def test_a_running_stream_outlives_tailscaled(ground: Ground) -> None:
    node = ground.gpu
    node.runtime.script = LONG
    async with node.link(ground.edge) as (session, running, _):
        reply = session.open(streamed())
        await reply.head()
        await reply.read()
        await node.member.kill()
        await asyncio.sleep(1)
        await node.member.start()
        await ground.edge.meets(node.member)
        async with asyncio.timeout(_SOON):
            until = time.monotonic() + 3  # more than may have been on its way meanwhile
            while time.monotonic() < until:
                assert await reply.read()
        assert not running.done()
        node.runtime.script = "normal"
        await session.open(streamed()).head()


async def test_nobody_is_taken_for_a_stranger_while_tailscaled_starts(ground: Ground) -> None:
    """tailscaled says that it knows nobody while it starts. A link that is looked up just then must not be closed."""
    await ground.allow({"role": "infer"})
    gpu = ground.gpu.member
    seen: set[tuple[str, str]] = set()
    addresses = [await member.address() for member in (ground.edge, ground.phone)]

    async def all_are(what: str) -> None:
        await wait_until(lambda: seen >= {(what, address) for address in addresses}, _SOON, what=lambda: seen)

    async with LocalClient(str(gpu.socket), seconds=2) as client:
        callers = TailnetCallers(client, CAPABILITY, kept=0)

        async def look(address: str) -> None:
            scope = {"state": {"connection": {}}, "client": (address, 50000)}
            while True:
                try:
                    assert (await callers.who(scope)).roles == {"infer"}, address
                    seen.add(("known", address))
                except ApiError as error:
                    assert error.code == "node_unavailable"
                    seen.add(("trouble", address))
                await asyncio.sleep(0.01)

        async with asyncio.TaskGroup() as group:
            looking = [group.create_task(look(address)) for address in addresses]
            await all_are("known")
            await gpu.down()
            await asyncio.sleep(0.2)
            await gpu.up()
            await gpu.kill()
            seen.clear()
            await all_are("trouble")
            await gpu.start()
            await gpu.wait()
            seen.clear()
            await all_are("known")
            await asyncio.sleep(0.5)  # nor a moment later
            for task in looking:
                task.cancel()
