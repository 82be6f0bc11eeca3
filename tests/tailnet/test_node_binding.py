"""A node that listens on its tailnet, where nothing stays as it is: addresses come late, go and change, tailscaled is
stopped, logged out and killed. What arrives is asked for by a machine tagged as an edge, as an edge would: again until
it is answered."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from shared.tls import client_context
from tests.certificates import Authority
from tests.fake_scripts import Speaking, normal
from tests.tailnet.deployed import NODE_TOKEN, Deployed, node_on
from tests.tailnet.member import Member
from tests.tailnet.namespaces import Namespace
from tests.tailnet.runtime_on import RuntimeOn
from tests.tailnet.tailnet import Tailnet
from tests.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

# Seconds in which the next request is answered after a change: the node's promise.
_PROMISED = 10.0
# Seconds of one attempt to call, and of those things that the control server tells at its leisure.
_ATTEMPT = 3.0
_SOON = 30.0
_NO_RUNTIME = {"kind": "openai", "url": "http://127.0.0.1:9"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def edge(tailnet: Tailnet) -> Member:
    return await tailnet.member("edge", tags=["tag:edge"])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gpu(tailnet: Tailnet) -> Member:
    return await tailnet.member("gpu", tags=["tag:gpu"])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def module_runtime(gpu: Member) -> AsyncIterator[RuntimeOn]:
    async with RuntimeOn(gpu.machine, normal()) as runtime:
        yield runtime


@pytest.fixture
def answers() -> Speaking:
    return Speaking(0.1)


@pytest.fixture
def runtime(module_runtime: RuntimeOn, answers: Speaking) -> RuntimeOn:
    """Its answers last until ``answers`` are enough."""
    module_runtime.script = answers.script
    return module_runtime


@pytest_asyncio.fixture(loop_scope="module")
async def node(edge: Member, gpu: Member, runtime: RuntimeOn, tmp_path: Path) -> AsyncIterator[Deployed]:
    """On ``gpu``, in front of ``runtime``, and ready to be called by ``edge``."""
    await edge.meets(gpu)
    async with node_on(gpu, tmp_path, runtime=runtime.settings) as node:
        await _health(node, lambda health: health["status"] == "ok")
        yield node


async def _health(node: Deployed, wanted: Callable[[dict[str, Any]], bool], seconds: float = _SOON) -> dict[str, Any]:
    """The node's health, asked for by its owner at the socket in the state folder, once it is as ``wanted``."""
    said: Any = None
    try:
        async with asyncio.timeout(seconds):
            while True:
                try:
                    connector = aiohttp.UnixConnector(str(node.state / "node.sock"))
                    async with (
                        aiohttp.ClientSession(connector=connector) as owner,
                        owner.get("http://localhost/healthz") as response,
                    ):
                        said = await response.json()
                        assert response.status == (200 if said["status"] == "ok" else 503)
                        if wanted(said):
                            return said
                except aiohttp.ClientError as error:
                    said = repr(error)
                assert node.running, node.log_text()
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise AssertionError(f"{json.dumps(said)}\n{node.log_text()}") from None


async def _reason(node: Deployed, words: str, seconds: float = _SOON) -> dict[str, Any]:
    """Health once it says ``words`` about why nobody can call."""
    health = await _health(node, lambda health: words in (health["tailnet"]["reason"]), seconds)
    assert (health["status"], health["reason"]) == ("unreachable", health["tailnet"]["reason"])
    return health


async def _answered(caller: Member, address: str, seconds: float = _PROMISED) -> None:
    """``caller`` gets an answer of the node at ``address`` within ``seconds``."""
    url = f"http://{f'[{address}]' if ':' in address else address}:8001/livez"
    said: object = None
    try:
        async with asyncio.timeout(seconds):
            while True:
                with contextlib.suppress(TimeoutError, aiohttp.ClientError, OSError):
                    async with (
                        asyncio.timeout(_ATTEMPT),
                        caller.machine.client() as client,
                        client.get(url) as response,
                    ):
                        said = (response.status, await response.text())
                        if response.status == 200:
                            return
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise AssertionError(f"{url} was not answered within {seconds} s: {said}") from None


async def _connect(machine: Namespace, address: str, seconds: float = _ATTEMPT) -> int:
    """What connecting to the node's port at ``address`` gives: 0, or the error's number."""
    family = 10 if ":" in address else 2
    with machine.socket(family) as sock:
        sock.setblocking(False)
        try:
            async with asyncio.timeout(seconds):
                await asyncio.get_running_loop().sock_connect(sock, (address, 8001))
        except TimeoutError:
            return errno.ETIMEDOUT
        except OSError as error:
            return error.errno or -1
    return 0


@asynccontextmanager
async def _reading(
    caller: Namespace, address: str, tls: ssl.SSLContext | None = None
) -> AsyncIterator[asyncio.Task[str]]:
    """An answer that ``caller`` reads from the node, begun when the block is; the task gives its text."""
    body = {"messages": [{"role": "user", "content": "Where to?"}], "stream": True}
    headers = {"Authorization": f"Bearer {NODE_TOKEN}"}
    begun = asyncio.Event()

    async def read() -> str:
        said = ""
        url = f"{'https' if tls else 'http'}://{address}:8001/v1/chat/completions"
        async with (
            caller.client() as client,
            client.post(url, json=body, headers=headers, ssl=tls or True) as response,
        ):
            assert response.status == 200, await response.text()
            async for line in response.content:
                if line.startswith(b"data: {"):
                    said += "".join(c["delta"].get("content") or "" for c in json.loads(line[6:])["choices"])
                    begun.set()
        return said

    reading = asyncio.create_task(read())
    try:
        async with asyncio.timeout(_SOON):
            await begun.wait()
        yield reading
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)


async def test_it_is_at_both_addresses_and_nowhere_else(
    tailnet: Tailnet, edge: Member, gpu: Member, node: Deployed
) -> None:
    addresses = [await gpu.address(4), await gpu.address(6)]
    for address in addresses:
        await _answered(edge, address)
    for elsewhere in ("127.0.0.1", "::1", gpu.machine.address):
        assert await _connect(gpu.machine, elsewhere) == errno.ECONNREFUSED
    neighbour = await tailnet.bridge.machine()
    assert await _connect(neighbour, gpu.machine.address) == errno.ECONNREFUSED
    health = await _health(node, lambda health: True)
    assert health["tailnet"] == {
        "state": "Running",
        "reason": "",
        "addresses": addresses,
        "userspace": False,
        "shields_up": False,
    }
    assert node.log_text().count("node listens on") == 2


async def test_a_neighbour_that_routes_here_gets_nothing(tailnet: Tailnet, gpu: Member, node: Deployed) -> None:
    """Linux lets it connect, since the address is this machine's, whichever way it comes; it reads no byte."""
    address = await gpu.address()
    stranger = await tailnet.bridge.machine()
    await stranger.call("ip", "route", "add", address, "via", gpu.machine.address)
    with stranger.socket() as sock:
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(_SOON):
            await loop.sock_connect(sock, (address, 8001))
            with contextlib.suppress(ConnectionError):
                await loop.sock_sendall(sock, b"GET /livez HTTP/1.1\r\nHost: gpu\r\n\r\n")
                assert await loop.sock_recv(sock, 1000) == b""
    await node.logged(f"dropped a connection from {stranger.address}")


async def test_an_answer_goes_on_across_down_and_up(
    edge: Member, gpu: Member, node: Deployed, answers: Speaking
) -> None:
    address = await gpu.address()
    await _answered(edge, address, _SOON)
    async with _reading(edge.machine, address) as reading:
        await gpu.down()
        await _reason(node, "Tailscale is stopped")
        await gpu.up()
        await edge.meets(gpu)
        await _answered(edge, address)
        await _health(node, lambda health: health["status"] == "ok")
        answers.enough.set()
        async with asyncio.timeout(_SOON):
            assert [await reading] == answers.said, "every word of it, over the connection that was there before"
    assert node.log_text().count("Tailscale is stopped") == 1
    assert node.log_text().count("node listens on") == 2, "the sockets stayed"


async def test_it_moves_to_a_new_address(edge: Member, gpu: Member, node: Deployed) -> None:
    old = await gpu.address()
    await gpu.login_anew()
    new = await gpu.address()
    assert new != old
    await edge.meets(gpu)
    await _answered(edge, new)
    now = [new, await gpu.address(6)]
    await _health(node, lambda health: health["status"] == "ok" and health["tailnet"]["addresses"] == now)
    await node.logged(f"node listens no more on http://{old}:8001")


async def test_an_answer_goes_on_when_tailscaled_is_killed_and_started_again(
    edge: Member, gpu: Member, node: Deployed, answers: Speaking
) -> None:
    address = await gpu.address()
    await _answered(edge, address, _SOON)
    async with _reading(edge.machine, address) as reading:
        await gpu.kill()
        said = await _reason(node, str(gpu.socket))
        assert said["tailnet"]["state"] is None
        await gpu.start()
        await edge.meets(gpu)
        await _answered(edge, address)
        await _health(node, lambda health: health["status"] == "ok")
        answers.enough.set()
        async with asyncio.timeout(_SOON):
            assert [await reading] == answers.said


async def test_it_says_that_the_login_is_gone(tailnet: Tailnet, edge: Member, gpu: Member, node: Deployed) -> None:
    number = await tailnet.headscale.node_id(await gpu.address())
    await gpu.tailscale("logout")
    said = await _reason(node, "not logged in")
    assert said["tailnet"]["state"] == "NeedsLogin"
    await _join_again(tailnet, gpu, number)
    await edge.meets(gpu)
    await _answered(edge, await gpu.address())


async def test_it_says_that_the_key_has_expired(tailnet: Tailnet, edge: Member, gpu: Member, node: Deployed) -> None:
    number = await tailnet.headscale.node_id(await gpu.address())
    await tailnet.headscale.cli("nodes", "expire", "-i", number, "--force")
    await _reason(node, "key of this machine in the tailnet has expired")
    await _join_again(tailnet, gpu, number)
    await edge.meets(gpu)
    await _answered(edge, await gpu.address())


async def _join_again(tailnet: Tailnet, member: Member, number: str) -> None:
    """The control server takes a key of its own for a machine that it does not know any more only."""
    await tailnet.headscale.cli("nodes", "delete", "-i", number, "--force")
    await member.login()


async def test_it_starts_before_tailscaled(tailnet: Tailnet, edge: Member, tmp_path: Path) -> None:
    """As after a boot: no tailscaled, then one that nobody has logged in to, then an address."""
    late = await tailnet.machine("late", tags=["tag:gpu"])
    async with node_on(late, tmp_path, runtime=_NO_RUNTIME) as node:
        await _reason(node, str(late.socket))
        await late.start()
        await _reason(node, "not logged in")
        await late.login()
        await edge.meets(late)
        await _answered(edge, await late.address())
        await wait_until(lambda: node.log_text().count("node listens on") == 2, _SOON, what=node.log_text)
        assert await node.stop() == 0
    await late.leave()


async def test_an_interface_that_is_not_tailscales_wants_certificates(
    tailnet: Tailnet, gpu: Member, tmp_path: Path
) -> None:
    """On any other network a certificate says who calls; the tailnet's own address is not listened on then."""
    authority = Authority(tmp_path)
    paths = {name: str(path) for name, path in authority.issue("node").model_dump().items()}
    context = client_context(authority.issue("edge"))
    neighbour = await tailnet.bridge.machine()
    moved = "10.99.0.77"
    async with node_on(gpu, tmp_path, listen="interface:eth0", tls=paths, runtime=_NO_RUNTIME) as node:
        await node.logged(f"node listens on https://{gpu.machine.address}:8001")
        async with neighbour.client() as client:
            url = f"https://{gpu.machine.address}:8001/livez"
            async with client.get(url, ssl=context) as response:
                assert await response.json() == {"status": "ok"}
            context_without = ssl.create_default_context(cafile=str(authority.certificate))
            context_without.check_hostname = False
            with pytest.raises(aiohttp.ClientError):
                async with client.get(url, ssl=context_without):
                    pass
        assert await _connect(gpu.machine, await gpu.address()) == errno.ECONNREFUSED
        await gpu.machine.call("ip", "address", "add", f"{moved}/24", "dev", "eth0")
        try:
            await node.logged(f"node listens on https://{moved}:8001", _PROMISED)
        finally:
            await gpu.machine.call("ip", "address", "del", f"{moved}/24", "dev", "eth0")
        await node.logged(f"node listens no more on https://{moved}:8001", _PROMISED)
        assert await _connect(neighbour, gpu.machine.address) == 0


async def test_answers_go_on_while_their_interface_changes_its_addresses(
    tailnet: Tailnet, gpu: Member, runtime: RuntimeOn, answers: Speaking, tmp_path: Path
) -> None:
    """Of two addresses one goes and comes back, and the node leaves its socket there and makes another. The answer at
    the other address notices nothing; the answer at this one waits for the address and loses no word."""
    authority = Authority(tmp_path)
    paths = {name: str(path) for name, path in authority.issue("node").model_dump().items()}
    context = client_context(authority.issue("edge"))
    neighbour = await tailnet.bridge.machine()
    stays, moves = gpu.machine.address, "10.99.0.78"
    change = ("ip", "address"), (f"{moves}/24", "dev", "eth0")
    async with node_on(gpu, tmp_path, listen="interface:eth0", tls=paths, runtime=runtime.settings) as node:
        await gpu.machine.call(*change[0], "add", *change[1])
        try:
            await node.logged(f"node listens on https://{moves}:8001", _PROMISED)
            async with _reading(neighbour, stays, context) as one, _reading(neighbour, moves, context) as other:
                await gpu.machine.call(*change[0], "del", *change[1])
                await node.logged(f"node listens no more on https://{moves}:8001", _PROMISED)
                assert not one.done() and not other.done()
                await gpu.machine.call(*change[0], "add", *change[1])
                again = f"node listens on https://{moves}:8001"
                await wait_until(lambda: node.log_text().count(again) == 2, _PROMISED, what=node.log_text)
                answers.enough.set()
                async with asyncio.timeout(_SOON):
                    assert sorted([await one, await other]) == sorted(answers.said)
        finally:
            await gpu.machine.call(*change[0], "del", *change[1])


async def test_it_is_called_through_userspace_networking(tailnet: Tailnet, edge: Member, tmp_path: Path) -> None:
    """tailscaled hands the call over on loopback, the one place where this node listens. It was told nothing: "auto"
    found a tailscaled that answers."""
    member = await tailnet.member("userspace", tags=["tag:gpu"], userspace=True)
    async with node_on(member, tmp_path, listen="auto", runtime=_NO_RUNTIME) as node:
        await edge.meets(member)
        await _answered(edge, await member.address(), _SOON)
        health = await _health(node, lambda health: not health["tailnet"]["reason"])
        assert health["tailnet"]["userspace"] is True
        assert health["tailnet"]["addresses"][0] == await member.address()
        assert node.log_text().count("userspace networking") == 1
        assert await _connect(member.machine, member.machine.address) == errno.ECONNREFUSED
    await member.leave()
