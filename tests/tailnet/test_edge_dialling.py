"""How the edge finds its nodes in a real tailnet, keeps its links through what happens there, and says what is wrong:
an edge as its own process, in front of a node that the test plays, or of a real one."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from tests.pair import events_of
from tests.tailnet.deployed import PUBLIC, Deployed, edge_on, node_on
from tests.tailnet.member import PROXY, Member
from tests.tailnet.stand_in import StandIn
from tests.tailnet.tailnet import PERSON, Tailnet, policy

pytestmark = pytest.mark.asyncio(loop_scope="module")

BY_NAME = {"x": {"node": "gpu"}}
# The promise: after a change in the tailnet the next request is answered within this many seconds.
PROMISED = 10.0
# Seconds for what tailscaled, or the control server, needs to notice by itself.
NOTICED = 40.0
# Every machine may reach tcp:22 of the node and nothing else of it: it is visible, and its port is closed.
ANOTHER_PORT: dict[str, Any] = {
    **policy(),
    "grants": [{"src": ["tag:edge"], "dst": ["tag:gpu"], "ip": ["tcp:22"]}],
}
# Both see a person's machine and not each other. To a machine that is to see nobody at all, the control server sends a
# list without entries when it connects anew, and tailscaled takes that for no change.
HIDDEN: dict[str, Any] = {
    **policy(),
    "grants": [{"src": ["tag:edge", "tag:gpu"], "dst": [f"{PERSON}@"], "ip": ["tcp:22"]}],
}


@dataclass(frozen=True)
class Members:
    edge: Member
    gpu: Member

    def side(self, name: str) -> Member:
        return self.edge if name == "edge" else self.gpu


@pytest_asyncio.fixture(loop_scope="module")
async def members(module_members: Members) -> Members:
    """Each test begins when they can call each other, whatever the one before has done to them."""
    await module_members.edge.meets(module_members.gpu)
    return module_members


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def module_members(tailnet: Tailnet) -> Members:
    return Members(
        *await asyncio.gather(
            tailnet.member("edge", tags=["tag:edge"]),
            tailnet.member("gpu", tags=["tag:gpu"]),
        )
    )


class Front:
    """An edge that is in front of something, and one who calls it."""

    def __init__(self, edge: Deployed, client: aiohttp.ClientSession, key: str) -> None:
        self.edge = edge
        self._client = client
        self._headers = {"Authorization": f"Bearer {key}"}

    async def node(self, name: str = "x") -> dict[str, Any]:
        """What full health says of a node; empty while it says nothing."""
        rows = (await self.edge.health()).get("nodes", [])
        return next((row for row in rows if row["name"] == name), {})

    async def says(self, wanted: Callable[[dict[str, Any]], object], seconds: float = NOTICED, name: str = "x") -> Any:
        """Wait until full health says of a node what is wanted; its row."""
        row: dict[str, Any] = {}
        try:
            async with asyncio.timeout(seconds):
                while not wanted(row := await self.node(name)):  # noqa: ASYNC110 - no event tells of it
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise AssertionError(
                f"not said within {seconds} s: {json.dumps(row)}\n{self.edge.log_text()[-4000:]}"
            ) from None
        return row

    async def caused(self, cause: str, *parts: str, seconds: float = NOTICED) -> None:
        """Wait for a cause whose sentence has ``parts``; it stands in the log as well."""
        row = await self.says(
            lambda row: row.get("cause") == cause and all(part in row["reason"] for part in parts), seconds
        )
        await self.edge.logged(json.dumps(f"node x: {row['reason']}"))

    async def known(self) -> None:
        """A running edge hears of a new key within a second."""
        async with asyncio.timeout(NOTICED):
            while True:
                async with self._client.get(f"{PUBLIC}/v1/me", headers=self._headers) as response:
                    if response.status == 200:
                        return
                await asyncio.sleep(0.2)

    async def ask(self) -> str:
        """One chat to its end: its text, or the code of its error."""
        async with self._open() as response:
            body = await response.read()
        if response.status != 200:
            return json.loads(body)["error"]["code"]
        return body.decode()

    async def answered(self, seconds: float = PROMISED) -> None:
        """Callers are told to try again soon: one of their requests must be answered in time."""
        said = ""
        try:
            async with asyncio.timeout(seconds):
                while "[DONE]" not in (said := await self.ask()):
                    assert said == "node_unavailable"
                    await asyncio.sleep(0.2)
        except TimeoutError:
            raise AssertionError(f"no answer within {seconds} s: {said}\n{self.edge.log_text()[-4000:]}") from None

    async def begun(self) -> asyncio.Task[bytes]:
        """A chat of which something has come, and that goes on; the task gives all that came."""
        first = asyncio.Event()

        async def read() -> bytes:
            received = b""
            with contextlib.suppress(aiohttp.ClientError):
                async with self._open() as response:
                    async for part in response.content.iter_any():
                        received += part
                        first.set()
            return received

        reading = asyncio.create_task(read())
        async with asyncio.timeout(NOTICED):
            await first.wait()
        return reading

    def _open(self) -> Any:
        body = {"messages": [{"role": "user", "content": "hi"}], "stream": True}
        return self._client.post(f"{PUBLIC}/v1/chat", json=body, headers=self._headers)


@asynccontextmanager
async def front(
    edge: Member, folder: Path, upstreams: dict[str, Any], *, ready: bool = True, **sections: Any
) -> AsyncIterator[Front]:
    async with edge_on(edge, folder, upstreams, **sections) as deployed, edge.machine.client() as client:
        made = Front(deployed, client, deployed.key())
        if ready:
            await deployed.ready()
            await made.known()
        yield made


def ended(stream: bytes) -> bool:
    """Whether a stream has exactly one end, its marker or an error that says what happened."""
    events = events_of(stream)
    done = sum(event.data == "[DONE]" for event in events)
    errors = [json.loads(event.data)["error"]["code"] for event in events if event.event == "error"]
    return done + len(errors) == 1 and set(errors) <= {"upstream_incomplete", "node_unavailable"}


# -- finding it -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("by", "name"), [("name", "x"), ("tag", "x/gpu"), ("address", "x"), ("IPv6 address", "x")])
async def test_a_node_is_found(members: Members, tmp_path: Path, by: str, name: str) -> None:
    gpu = members.gpu
    node = {"name": "gpu", "tag": "tag:gpu"}.get(by) or await gpu.address(6 if "6" in by else 4)
    async with StandIn(gpu), front(members.edge, tmp_path, {"x": {"node": node}}) as made:
        row = await made.says(lambda row: row["tailnet"]["rtt_ms"], name=name)
        assert (row["connected"], row["ready"], row["reason"], row["cause"]) == (True, True, "", None)
        address = node if "address" in by else await gpu.address()
        assert row["url"] == (f"ws://[{address}]:8001/link" if ":" in address else f"ws://{address}:8001/link")
        known = row["tailnet"]
        assert (known["machine"], known["address"], known["online"]) == ("gpu.tail.test", address, True)
        assert 0 < known["rtt_ms"] < 1000
        assert known["key_expiry"] is None, "a tagged machine's key does not expire"
        own = (await made.edge.health())["tailnet"]
        assert (own["state"], own["reason"], own["machine"]) == ("Running", "", "edge.tail.test")
        await made.answered()


async def test_one_machine_under_two_names_is_one_node(members: Members, tmp_path: Path) -> None:
    both = {"all": {"node": "tag:gpu"}, "x": {"node": "gpu"}}
    async with StandIn(members.gpu) as node, front(members.edge, tmp_path, both) as made:
        assert [row["name"] for row in (await made.edge.health())["nodes"]] == ["x"]
        assert node.links == 1


async def test_the_machines_of_a_tag_come_and_go(tailnet: Tailnet, members: Members, tmp_path: Path) -> None:
    async with StandIn(members.gpu), front(members.edge, tmp_path, {"x": {"node": "tag:gpu"}}) as made:
        spare = await tailnet.member("spare", tags=["tag:gpu"])
        async with StandIn(spare):
            await made.says(lambda row: row.get("ready"), name="x/spare")
            assert (await made.node("x/gpu"))["ready"]
            await tailnet.headscale.cli(
                "nodes", "delete", "-i", await tailnet.headscale.node_id(await spare.address()), "--force"
            )
            await made.says(lambda row: not row, name="x/spare")
            await made.answered()
        await spare.kill()


async def test_a_tailscaled_that_starts_after_the_edge_is_found(members: Members, tmp_path: Path) -> None:
    async with StandIn(members.gpu), front(members.edge, tmp_path, BY_NAME, ready=False) as made:
        await members.edge.kill()
        await made.caused("tailscaled_down")
        await members.edge.start(TS_DEBUG_BACKEND_DELAY_SEC="3")
        await members.edge.meets(members.gpu)
        await made.known()
        await made.answered()


async def test_an_edge_in_userspace_networking_needs_the_proxy_of_its_tailscaled(
    tailnet: Tailnet, members: Members, tmp_path: Path
) -> None:
    user = await tailnet.member("user", tags=["tag:edge"], userspace=True)
    await user.meets(members.gpu)
    async with StandIn(members.gpu) as node:
        async with front(user, tmp_path, BY_NAME, ready=False) as made:
            await made.caused("other", "userspace networking", "--outbound-http-proxy-listen=", "tailscale.proxy")
        async with front(user, tmp_path, BY_NAME, tailscale={"proxy": f"http://{PROXY}"}) as made:
            await made.answered()
            assert set(node.calls) == {await user.address()}
            await node.stop()
            await made.caused("app_not_listening", "gpu.tail.test is there")
    await user.kill()


# -- what is wrong ----------------------------------------------------------------------------------------------------


async def test_no_process_on_the_port(members: Members, tmp_path: Path) -> None:
    async with front(members.edge, tmp_path, BY_NAME, ready=False) as made:
        await made.caused("app_not_listening", "gpu.tail.test is there", "hearthlink node", "edge.upstreams.x.port")
        async with StandIn(members.gpu):
            await made.says(lambda row: row.get("ready"), PROMISED)


async def test_a_wrong_token(members: Members, tmp_path: Path) -> None:
    other = ["hln_" + "o" * 43]
    async with (
        node_on(members.gpu, tmp_path, tokens=other),
        front(members.edge, tmp_path, BY_NAME, ready=False) as made,
    ):
        await made.caused("token_refused", "edge.upstreams.x.token", "node.tokens")


async def test_a_machine_that_the_node_does_not_admit(tailnet: Tailnet, members: Members, tmp_path: Path) -> None:
    """The policy lets a person's machine through to the port, and gives it no capability."""
    phone = await tailnet.member("phone", user=PERSON)
    await tailnet.policy(policy({"src": [f"{PERSON}@"], "dst": ["tag:gpu"], "ip": ["tcp:8001"]}))
    try:
        async with node_on(members.gpu, tmp_path), front(phone, tmp_path, BY_NAME, ready=False) as made:
            await made.caused("machine_refused", "does not admit this machine", "tag:edge")
    finally:
        await tailnet.policy(policy())
        await phone.kill()


async def test_a_policy_without_the_port(tailnet: Tailnet, members: Members, tmp_path: Path) -> None:
    await tailnet.policy(ANOTHER_PORT)
    try:
        async with StandIn(members.gpu), front(members.edge, tmp_path, BY_NAME, ready=False) as made:
            await made.caused("policy_blocks", "gpu.tail.test answers", "port 8001", "policy", "grant")
            await tailnet.policy(policy())
            await made.says(lambda row: row.get("ready"), PROMISED)
    finally:
        await tailnet.policy(policy())


async def test_a_policy_that_hides_the_machine(tailnet: Tailnet, members: Members, tmp_path: Path) -> None:
    phone = await tailnet.member("visible", user=PERSON)
    try:
        async with StandIn(members.gpu), front(members.edge, tmp_path, BY_NAME) as made:
            await tailnet.policy(HIDDEN)
            await made.caused("policy_blocks", "not visible any more", "tcp:8001")
            await tailnet.policy(policy())
            await members.edge.meets(members.gpu)
            await made.answered()
    finally:
        await tailnet.policy(policy())
        await phone.kill()


async def test_no_such_machine(members: Members, tmp_path: Path) -> None:
    async with front(members.edge, tmp_path, {"x": {"node": "nobody"}}, ready=False) as made:
        await made.caused("no_such_machine", "no machine nobody", "edge.upstreams.x.node", "tailscale status")
        assert (await made.node())["tailnet"]["online"] is None


@pytest.mark.parametrize("how", ["its tailscaled is killed", "tailscale down"])
async def test_a_machine_that_is_gone(members: Members, tmp_path: Path, how: str) -> None:
    gpu = members.gpu
    async with StandIn(gpu), front(members.edge, tmp_path, BY_NAME) as made:
        await (gpu.down() if "down" in how else gpu.kill())
        try:
            await made.caused("machine_offline", "gpu.tail.test", "tailscale up")
        finally:
            if "down" not in how:
                await gpu.start()
            await gpu.up()
        await members.edge.meets(gpu)
        await made.answered()


async def test_a_node_whose_key_has_expired(tailnet: Tailnet, members: Members, tmp_path: Path) -> None:
    old = await tailnet.member("old", tags=["tag:gpu"])
    await members.edge.meets(old)
    async with StandIn(old), front(members.edge, tmp_path, {"x": {"node": "old"}}) as made:
        await tailnet.headscale.cli("nodes", "expire", "-i", await tailnet.headscale.node_id(await old.address()))
        await made.caused("key_expired", "key of old.tail.test", "--force-reauth")
    await old.kill()


async def test_an_edge_without_its_tailscaled(members: Members, tmp_path: Path) -> None:
    edge = members.edge
    async with StandIn(members.gpu), front(edge, tmp_path, BY_NAME) as made:
        await edge.kill()
        try:
            await made.caused("tailscaled_down", "systemctl start tailscaled")
            assert "tailscaled" in (await made.edge.health())["tailnet"]["reason"]
        finally:
            await edge.start()
        await edge.meets(members.gpu)
        await made.answered()


async def test_an_edge_that_is_logged_out(tailnet: Tailnet, members: Members, tmp_path: Path) -> None:
    edge, headscale = members.edge, tailnet.headscale
    async with StandIn(members.gpu), front(edge, tmp_path, BY_NAME) as made:
        old = await headscale.node_id(await edge.address())
        await edge.tailscale("logout")
        try:
            await made.caused("not_logged_in", "not logged in to a tailnet")
            assert (await made.edge.health())["tailnet"]["state"] == "NeedsLogin"
        finally:
            await headscale.cli("nodes", "delete", "-i", old, "--force")
            await edge.login()
        await edge.meets(members.gpu)
        await made.answered()


# -- changes under way ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["edge", "gpu"])
async def test_down_and_up_mid_stream(members: Members, tmp_path: Path, side: str) -> None:
    member = members.side(side)
    async with StandIn(members.gpu, events=1000, pause=0.1) as node, front(members.edge, tmp_path, BY_NAME) as made:
        stream = await made.begun()
        await member.down()
        await asyncio.sleep(2)
        await member.up()
        await members.edge.meets(members.gpu)
        node.events = 3
        await made.answered()
        assert ended(await stream)


@pytest.mark.parametrize("side", ["edge", "gpu"])
async def test_another_address_mid_stream(members: Members, tmp_path: Path, side: str) -> None:
    member, before = members.side(side), await members.side(side).address()
    async with StandIn(members.gpu, events=1000, pause=0.1) as node, front(members.edge, tmp_path, BY_NAME) as made:
        stream = await made.begun()
        await member.login_anew()
        assert await member.address() != before
        await members.edge.meets(members.gpu)
        node.events = 3
        await made.answered()
        assert ended(await stream)
        assert (await made.node())["tailnet"]["address"] == await members.gpu.address()


@pytest.mark.parametrize("side", ["edge", "gpu"])
async def test_tailscaled_is_killed_and_starts_again_mid_stream(members: Members, tmp_path: Path, side: str) -> None:
    member = members.side(side)
    async with StandIn(members.gpu, events=1000, pause=0.1) as node, front(members.edge, tmp_path, BY_NAME) as made:
        stream = await made.begun()
        await member.kill()
        await asyncio.sleep(1)
        await member.start()
        await members.edge.meets(members.gpu)
        node.events = 3
        await made.answered()
        assert ended(await stream)


# -- the path ---------------------------------------------------------------------------------------------------------


async def test_without_udp_chats_go_through_the_relay_and_health_says_so(members: Members, tmp_path: Path) -> None:
    edge, gpu = members.edge.machine, members.gpu.machine
    async with StandIn(members.gpu, events=3, pause=0.1), front(members.edge, tmp_path, BY_NAME) as made:

        async def by(path: str) -> None:
            async with asyncio.timeout(NOTICED):
                while (await made.node())["tailnet"]["path"] != path:
                    assert "[DONE]" in await made.ask(), "paths are looked at while chats run"

        await by("direct")
        await asyncio.gather(edge.lose_udp_to(gpu), gpu.lose_udp_to(edge))
        try:
            await by("relayed")
            row = await made.node()
            assert (row["tailnet"]["relay"], row["ready"]) == ("test", True)
            await made.edge.logged("node x is reached through the relay test")
        finally:
            await asyncio.gather(edge.deliver_udp_to(gpu), gpu.deliver_udp_to(edge))
        await by("direct")
        await made.edge.logged("node x is reached directly again")
        assert made.edge.log_text().count("through the relay") == 1
