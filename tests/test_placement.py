"""Where a node listens that is not on loopback, as tailnet and network interface change. tailscaled is a fake one here
and so are the sockets; ``tests/tailnet/test_node_binding.py`` has both in earnest."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, cast

import aiohttp
import pytest
from loguru import logger

from node import placement as module
from node.app import run_node
from node.placement import InterfacePlacement, Placement, TailnetPlacement, settled
from shared import interfaces
from shared.addresses import OnAddress, OnTailnet
from shared.asgi.listener import CannotListen, Listener
from shared.asgi.server import Listening
from shared.link import SUBPROTOCOL
from shared.tailscale import tailnet as watching
from shared.tailscale.client import LocalClient
from shared.tailscale.tailnet import Tailnet
from tests.fake_localapi import FakeLocalAPI
from tests.fake_runtime import FakeRuntime
from tests.local_app import free_port
from tests.pair import settings_for
from tests.tailnet.shapes import node as described
from tests.tailnet.shapes import peer, whois
from tests.waiting import HANGS, wait_until

V4, V6 = "100.64.0.1", "fd7a:115c:a1e0::1"
NEW_V4, NEW_V6 = "100.64.0.7", "fd7a:115c:a1e0::7"


class Machine:
    """Sockets that can be opened at the addresses that ``has``; ``acts`` is what was done, in its order."""

    def __init__(self) -> None:
        self.has = {V4, V6, NEW_V4, NEW_V6, "127.0.0.1"}
        self.open_now: dict[str, Listener] = {}
        self.acts: list[tuple[str, str]] = []
        self.tried: list[str] = []

    async def open(self, listener: Listener) -> Listener:
        self.tried.append(listener.host)
        if listener.host not in self.has:
            raise CannotListen(f"{listener.host} is not an address of this machine.", errno.EADDRNOTAVAIL)
        self.open_now[listener.host] = listener
        self.acts.append(("open", listener.host))
        return listener

    async def shut(self, listener: Listener) -> None:
        del self.open_now[listener.host]
        self.acts.append(("shut", listener.host))


@contextlib.asynccontextmanager
async def placed(placement: Placement, machine: Machine) -> AsyncIterator[None]:
    task = asyncio.create_task(placement.run(cast(Listening, machine)))
    try:
        yield
        assert not task.done(), "nothing ends it but cancelling"
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_FIRST_PAUSE", "_INTERFACE_EVERY", "_SHIELDS_EVERY"):
        monkeypatch.setattr(module, name, 0.01)
    monkeypatch.setattr(module, "_LONGEST_PAUSE", 0.04)
    monkeypatch.setattr(watching, "_FIRST_PAUSE", 0.01)
    monkeypatch.setattr(watching, "_LONGEST_PAUSE", 0.02)


@pytest.fixture
def log() -> Iterator[list[str]]:
    """The lines of the placement, with their level."""
    lines: list[str] = []
    sink = logger.add(
        lambda message: lines.append(message.rstrip("\n")), format="{level} {message}", filter="node.placement"
    )
    yield lines
    logger.remove(sink)


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
async def fake(tmp_path: Path) -> AsyncIterator[FakeLocalAPI]:
    async with FakeLocalAPI(tmp_path) as fake:
        fake.own = peer(1, "gpu", tags=["tag:gpu"])
        yield fake


@pytest.fixture
async def placement(fake: FakeLocalAPI, machine: Machine) -> AsyncIterator[TailnetPlacement]:
    """Of a node that follows ``fake`` already."""
    async with LocalClient(str(fake.path), seconds=0.5) as client:
        tailnet = Tailnet(client)
        follows = asyncio.create_task(tailnet.run())
        placement = TailnetPlacement(8001, tailnet, client)
        async with placed(placement, machine):
            yield placement
        follows.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await follows


def stop(fake: FakeLocalAPI, state: str, number: int, **fields: Any) -> None:
    """tailscaled is in ``state``, for whoever asks; ``fake.tell(State=number)`` tells those who listen."""
    fake.state = number
    fake.status = {"BackendState": state, **fields}


async def start(fake: FakeLocalAPI) -> None:
    stop(fake, "Running", 6)
    await fake.tell(State=6)


async def up(fake: FakeLocalAPI, placement: Placement) -> None:
    """Until the node can be called and is told of changes."""
    await wait_until(lambda: not placement.reason and fake.watchers, what=lambda: placement.reason)


async def test_the_node_is_at_every_address_of_its_tailnet_and_nowhere_else(
    fake: FakeLocalAPI, placement: TailnetPlacement, machine: Machine, log: list[str]
) -> None:
    assert placement.reason
    await up(fake, placement)
    assert machine.acts == [("open", V4), ("open", V6)]
    assert {listener.rights for listener in machine.open_now.values()} == {"tailnet"}
    assert placement.addresses == (V4, V6)
    assert log == [f"INFO node listens on http://{V4}:8001", f"INFO node listens on http://[{V6}]:8001"]


async def test_only_addresses_of_the_tailnet_are_let_in(
    fake: FakeLocalAPI, placement: TailnetPlacement, machine: Machine, log: list[str]
) -> None:
    """A machine of the local network that routes 100.x here comes with an address of its own. Each is logged once, so
    that one which tries all the time hides no other, and a network full of them fills no disk."""
    await up(fake, placement)
    admits = machine.open_now[V4].admits
    assert admits is not None
    asked = ("100.64.0.2", "fd7a:115c:a1e0::2", "192.168.1.4", "10.99.0.3", "127.0.0.1", "fe80::1", "8.8.8.8")
    assert [admits(host) for host in asked] == [True, True, False, False, False, False, False]
    assert not admits("192.168.1.4")
    dropped = asked[2:]
    assert log[2:] == [
        f"WARNING dropped a connection from {host}, which did not come through the tailnet" for host in dropped
    ]
    assert not any(admits(f"10.0.{number // 250}.{number % 250}") for number in range(1000))
    assert len(log) == 2 + module._MOST_DROPPED


async def test_it_waits_for_the_login(
    fake: FakeLocalAPI, placement: TailnetPlacement, machine: Machine, log: list[str]
) -> None:
    stop(fake, "NeedsLogin", 2, TailscaleIPs=None, Self=None)
    await wait_until(lambda: "not logged in" in placement.reason and fake.watchers)
    assert machine.tried == []
    assert placement.tailnet["state"] == "NeedsLogin"
    await start(fake)
    await up(fake, placement)
    assert set(machine.open_now) == {V4, V6}
    assert [line for line in log if "not logged in" in line] == [log[0]]
    assert log[-1] == "INFO the node can be called again"


async def test_an_address_that_is_not_there_yet_is_tried_again(
    fake: FakeLocalAPI, placement: TailnetPlacement, machine: Machine, log: list[str]
) -> None:
    machine.has.clear()
    await wait_until(lambda: len(machine.tried) >= 8)
    assert "No interface has 100.64.0.1" in placement.reason
    assert set(machine.tried) == {V4, V6}, "nothing else is tried instead"
    machine.has |= {V4, V6}
    await up(fake, placement)
    assert set(machine.open_now) == {V4, V6}
    assert len([line for line in log if "cannot be called" in line]) == 1


async def test_a_missing_ipv6_address_is_one_warning(
    fake: FakeLocalAPI, placement: TailnetPlacement, machine: Machine, log: list[str]
) -> None:
    machine.has.discard(V6)
    await wait_until(lambda: machine.tried.count(V6) >= 8)
    assert placement.reason == ""
    assert placement.addresses == (V4,)
    assert [line for line in log if line.startswith("WARNING")] == [
        f"WARNING the node can be called at {V4} only: {V6} is not an address of this machine."
    ]
    machine.has.add(V6)
    await wait_until(lambda: placement.addresses == (V4, V6))


async def test_a_tailnet_without_ipv6_is_one_warning(
    fake: FakeLocalAPI, placement: TailnetPlacement, log: list[str]
) -> None:
    fake.own |= {"TailscaleIPs": [V4]}
    await up(fake, placement)
    await fake.tell(SelfChange=described(1, "gpu"))
    assert [line for line in log if "no IPv6 address" in line] == [line for line in log if line.startswith("WARNING")]


async def test_new_sockets_are_there_before_the_old_ones_go(
    fake: FakeLocalAPI, placement: TailnetPlacement, machine: Machine
) -> None:
    await up(fake, placement)
    fake.own = peer(7, "gpu")
    await fake.tell(SelfChange=described(7, "gpu"))
    await wait_until(lambda: set(machine.open_now) == {NEW_V4, NEW_V6})
    assert [act for act, _ in machine.acts] == ["open", "open", "open", "open", "shut", "shut"]


async def test_stopped_keeps_the_sockets_which_work_again_afterwards(
    fake: FakeLocalAPI, placement: TailnetPlacement, machine: Machine, log: list[str]
) -> None:
    await up(fake, placement)
    stop(fake, "Stopped", 4)
    await fake.tell(State=4)
    await wait_until(lambda: "sudo tailscale up" in placement.reason)
    await start(fake)
    await up(fake, placement)
    assert machine.acts == [("open", V4), ("open", V6)]
    assert log[2:] == [
        "WARNING the node cannot be called: Tailscale is stopped on this machine. Start it: sudo tailscale up",
        "INFO the node can be called again",
    ]


async def test_an_expired_key_is_said(fake: FakeLocalAPI, placement: TailnetPlacement) -> None:
    await up(fake, placement)
    fake.own |= {"Expired": True}
    await fake.tell(SelfChange=described(1, "gpu", Expired=True))
    await wait_until(lambda: "--force-reauth" in placement.reason)


async def test_a_tailscaled_that_goes_is_said_once_and_found_again(
    fake: FakeLocalAPI, placement: TailnetPlacement, machine: Machine, log: list[str]
) -> None:
    await up(fake, placement)
    await fake.stop()
    await wait_until(lambda: str(fake.path) in placement.reason)
    assert placement.tailnet["state"] is None
    said = [line for line in log if str(fake.path) in line]
    await fake.restart()
    await up(fake, placement)
    assert machine.acts == [("open", V4), ("open", V6)]
    assert len(said) == 1


async def test_userspace_networking_calls_on_loopback(
    fake: FakeLocalAPI, placement: TailnetPlacement, machine: Machine, log: list[str]
) -> None:
    fake.status |= {"TUN": False}
    await up(fake, placement)
    assert machine.tried == ["127.0.0.1"]
    listener = machine.open_now["127.0.0.1"]
    assert listener.rights == "tailnet", "those who come from there are of the tailnet"
    assert listener.admits is not None
    assert [listener.admits(host) for host in ("127.0.0.1", "100.64.0.2", "::1")] == [True, False, False]
    assert placement.tailnet == {
        "state": "Running",
        "reason": "",
        "addresses": [V4, V6],
        "userspace": True,
        "shields_up": placement.shields_up,
    }
    assert len([line for line in log if "userspace networking" in line]) == 1


async def test_from_userspace_networking_to_an_interface(
    fake: FakeLocalAPI, placement: TailnetPlacement, machine: Machine
) -> None:
    """tailscaled was started anew with another --tun: loopback is left, also where the address is not there yet."""
    fake.status |= {"TUN": False}
    await up(fake, placement)
    machine.has -= {V4, V6}
    fake.status |= {"TUN": True}
    await fake.restart()
    await wait_until(lambda: machine.acts[-1] == ("shut", "127.0.0.1"))
    await wait_until(lambda: "No interface has" in placement.reason)
    machine.has |= {V4, V6}
    await up(fake, placement)
    assert set(machine.open_now) == {V4, V6}


async def test_shields_up_is_one_warning(fake: FakeLocalAPI, placement: TailnetPlacement, log: list[str]) -> None:
    fake.prefs |= {"ShieldsUp": True}
    await wait_until(lambda: placement.shields_up)
    asked = len(fake.asked)
    await wait_until(lambda: len(fake.asked) > asked + 3)
    assert [line for line in log if "shields up" in line] == [
        "WARNING Tailscale lets nothing in here (shields up): tailscale set --shields-up=false"
    ]
    fake.prefs |= {"ShieldsUp": False}
    await wait_until(lambda: placement.shields_up is False)


async def test_what_callers_may_write_for_this_machine(fake: FakeLocalAPI, placement: TailnetPlacement) -> None:
    assert [host for host in ("gpu", "") if host in placement] == [], "nothing is known yet"
    await up(fake, placement)
    ours = ("gpu", "gpu.tail.test", V4, V6, "localhost", "127.0.0.1")
    assert [host for host in ours if host not in placement] == []
    assert [host for host in ("", "edge", "gpu.evil.test", NEW_V4, "tail.test") if host in placement] == []
    fake.own = peer(7, "gpu-1")
    await fake.tell(SelfChange=described(7, "gpu-1"))
    await wait_until(lambda: "gpu-1.tail.test" in placement and NEW_V4 in placement)
    assert V4 not in placement


async def test_auto_is_the_tailnet_where_tailscaled_answers(fake: FakeLocalAPI, log: list[str]) -> None:
    auto = OnTailnet(8001, certain=False)
    assert await settled(auto, str(fake.path)) == auto
    await fake.stop()
    fake.path.unlink(missing_ok=True)
    assert await settled(auto, str(fake.path)) == OnAddress("127.0.0.1", 8001)
    assert log == [
        f"INFO no tailscaled answers at {fake.path}, so the node stays on loopback, where no edge on another machine"
        ' reaches it; node.listen = "tailnet" waits for tailscaled'
    ]
    assert await settled(OnTailnet(9001), str(fake.path)) == OnTailnet(9001)


@pytest.mark.parametrize("left", ["socket", "folder"])
async def test_auto_warns_of_a_tailscaled_that_is_there_and_does_not_answer(
    tmp_path: Path, log: list[str], left: str
) -> None:
    """Its owner may well expect the node to be called through it."""
    path = tmp_path / "tailscale" / "tailscaled.sock"
    path.parent.mkdir()
    if left == "socket":
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
    assert await settled(OnTailnet(8001, certain=False), str(path)) == OnAddress("127.0.0.1", 8001)
    assert len(log) == 1 and log[0].startswith(f"WARNING no tailscaled answers at {path}, so the node stays on loop")


async def test_the_node_follows_an_interface(machine: Machine, log: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    has: list[str] = []
    monkeypatch.setattr(interfaces, "addresses_of", lambda name: tuple(has) if name == "wg0" else ())
    machine.has = {"10.8.0.2", "fd00::2"}
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    placement = InterfacePlacement("wg0", 9001, tls)
    assert placement.tailnet is None
    async with placed(placement, machine):
        await wait_until(lambda: "no network interface wg0" in placement.reason)
        has[:] = ["10.8.0.2"]
        await wait_until(lambda: not placement.reason)
        assert placement.addresses == ("10.8.0.2",)
        listener = machine.open_now["10.8.0.2"]
        assert (listener.rights, listener.tls, listener.admits, listener.port) == ("interface", tls, None, 9001)
        has[:] = ["fd00::2"]
        await wait_until(lambda: placement.addresses == ("fd00::2",))
        assert machine.acts == [("open", "10.8.0.2"), ("open", "fd00::2"), ("shut", "10.8.0.2")]
        has.clear()
        await wait_until(lambda: placement.reason and not machine.open_now)
    assert len([line for line in log if "can be called again" in line]) == 1


async def test_an_interface_with_an_address_that_cannot_be_bound_is_one_warning(
    machine: Machine, log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interfaces, "addresses_of", lambda name: ("10.8.0.2", "fd00::2"))
    machine.has = {"10.8.0.2"}
    placement = InterfacePlacement("wg0", 9001, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
    async with placed(placement, machine):
        await wait_until(lambda: machine.tried.count("fd00::2") >= 4)
        assert (placement.reason, placement.addresses) == ("", ("10.8.0.2",))
        assert [line for line in log if line.startswith("WARNING")] == [
            "WARNING the node can be called at 10.8.0.2 only: fd00::2 is not an address of this machine."
        ]
        machine.has = {"10.8.0.2", "fd00::2"}
        await wait_until(lambda: placement.addresses == ("10.8.0.2", "fd00::2"))


async def test_an_interface_is_followed_again_once_the_system_tells_of_it(
    machine: Machine, log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With too many files open it does not, and no socket can be had either."""
    full = [True]

    def addresses_of(name: str) -> tuple[str, ...]:
        if full[0]:
            raise OSError(errno.EMFILE, "Too many open files")
        return ("10.8.0.2",)

    monkeypatch.setattr(interfaces, "addresses_of", addresses_of)
    machine.has = {"10.8.0.2"}
    placement = InterfacePlacement("wg0", 9001, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
    async with placed(placement, machine):
        await wait_until(lambda: "Too many open files" in placement.reason)
        full[0] = False
        await wait_until(lambda: not placement.reason)
        full[0] = True
        await wait_until(lambda: "the node can be called at 10.8.0.2 only: The system" in log[-1])
        assert placement.reason == "", "who calls is answered all the while"


async def test_a_fault_that_ends_it_makes_the_node_unreachable_for_health(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interfaces, "addresses_of", lambda name: ("10.8.0.2",))
    machine.has = {"10.8.0.2"}
    placement = InterfacePlacement("wg0", 9001, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
    following = asyncio.create_task(placement.run(cast(Listening, machine)))
    await wait_until(lambda: not placement.reason)
    monkeypatch.setattr(placement, "_move", None)
    with pytest.raises(TypeError):
        await following
    assert placement.reason.startswith("A fault in the node") and "Restart it" in placement.reason


async def test_on_loopback_a_caller_of_the_tailnet_needs_what_it_needs_there(
    fake: FakeLocalAPI, runtime: FakeRuntime, tmp_path: Path
) -> None:
    """tailscaled in userspace networking calls the node for its peers wherever it listens, and here it starts late."""
    await fake.stop()
    fake.status |= {"TUN": False}
    node = {"listen": "127.0.0.1:0", "runtime": {"kind": "openai", "url": runtime.url}}
    settings = settings_for(tmp_path, {"node": node, "tailscale": {"socket": str(fake.path)}})
    async with run_node(settings) as running:

        async def livez() -> int:
            async with aiohttp.ClientSession() as caller, caller.get(f"{running.listener.url}/livez") as response:
                return response.status

        assert await livez() == 200
        fake.whois["127.0.0.1"] = whois(3, "phone", login="anna@example.com")
        await fake.restart()
        assert await livez() == 403
        fake.whois["127.0.0.1"] = whois(2, "edge", tags=["tag:edge"])
        assert await livez() == 200
        fake.whois.clear()
        assert await livez() == 200, "a program of this machine"


@pytest.mark.parametrize("listen", ["127.0.0.1", "127.0.0.2"])
async def test_a_link_comes_by_the_address_that_was_set_with_a_port_or_without(
    runtime: FakeRuntime, tmp_path: Path, listen: str
) -> None:
    """The port is left out where it is the scheme's own."""
    node = {"listen": f"{listen}:0", "runtime": {"kind": "openai", "url": runtime.url}}
    async with run_node(settings_for(tmp_path, {"node": node})) as running, aiohttp.ClientSession() as client:
        url, token = f"{running.listener.url}/link", running.state.node_token()
        for host in (f"{listen}:80", listen, "LOCALHOST", "[::1]:80", "[::1]"):
            headers = {"Authorization": f"Bearer {token}", "Host": host}
            async with client.ws_connect(url, protocols=(SUBPROTOCOL,), headers=headers) as link:
                assert link.protocol == SUBPROTOCOL
        others = {"127.0.0.3": 403, "rebound.test": 403, f"{listen}.rebound.test": 403, "": 400, "[": 400}
        for host, status in others.items():
            headers = {"Authorization": f"Bearer {token}", "Host": host}
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await client.ws_connect(url, protocols=(SUBPROTOCOL,), headers=headers)
            assert refused.value.status == status


async def test_health_says_why_nobody_can_call(fake: FakeLocalAPI, runtime: FakeRuntime, tmp_path: Path) -> None:
    """A whole node, which its owner asks at the socket in the state folder while the tailnet is away, and which a
    machine of the tailnet calls when it is there."""
    stop(fake, "NeedsLogin", 2, TailscaleIPs=None, Self=None, TUN=False)
    port = free_port()
    node = {"listen": f"tailnet:{port}", "runtime": {"kind": "openai", "url": runtime.url}}
    settings = settings_for(tmp_path, {"node": node, "tailscale": {"socket": str(fake.path)}})
    owner = aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(tmp_path / "node.sock")))
    async with run_node(settings), owner, aiohttp.ClientSession() as caller:
        await _health(owner, 503, "This machine is not logged in")
        stop(fake, "Running", 6, TUN=False)
        fake.whois["127.0.0.1"] = whois(2, "edge", tags=["tag:edge"])
        await fake.tell(State=6)
        health = await _health(owner, 200, "")
        assert health["status"] == "ok"
        assert health["tailnet"]["addresses"] == [V4, V6]
        async with caller.get(f"http://127.0.0.1:{port}/livez") as response:
            assert response.status == 200
        await fake.stop()
        health = await _health(owner, 503, "tailscaled")
        assert health["status"] == "unreachable"
        assert str(fake.path) in health["tailnet"]["reason"] == health["reason"]
    assert not (tmp_path / "node.sock").exists()


async def _health(client: aiohttp.ClientSession, status: int, reason: str) -> dict[str, Any]:
    """What health says once it answers with ``status`` and a reason that begins so."""
    said: Any = None
    try:
        async with asyncio.timeout(HANGS):
            while True:
                async with client.get("http://localhost/healthz") as response:
                    said = await response.json()
                    if response.status == status and said["reason"].startswith(reason):
                        return said
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(said) from None
