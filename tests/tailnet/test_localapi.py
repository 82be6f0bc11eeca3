"""``shared.tailscale`` against real tailscaleds in a tailnet of their own: an edge and a node, tagged, and the phone of
a person."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from shared.tailscale import serve
from shared.tailscale.client import LocalClient
from shared.tailscale.errors import (
    Changed,
    NotAnswering,
    NotRunning,
    NotSupported,
    Refused,
    Unreachable,
)
from shared.tailscale.nodes import Path
from shared.tailscale.paths import best_path, warm
from shared.tailscale.states import State
from shared.tailscale.tailnet import Tailnet as Watcher
from shared.tailscale.view import View
from tests.processes import ROOT
from tests.tailnet.member import Member
from tests.tailnet.tailnet import CAPABILITY, PERSON, Members, Tailnet, policy

pytestmark = pytest.mark.asyncio(loop_scope="module")

# Seconds for what the control server must first tell others.
_SOON = 30.0
_NOBODY = 65534  # a user without rights, on every Linux


@asynccontextmanager
async def asking(member: Member, seconds: float = 10.0) -> AsyncIterator[LocalClient]:
    async with LocalClient(str(member.socket), seconds=seconds) as client:
        yield client


@asynccontextmanager
async def watching(member: Member) -> AsyncIterator[Watcher]:
    async with asking(member) as client:
        watcher = Watcher(client)
        task = asyncio.create_task(watcher.run())
        try:
            yield watcher
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


async def seen(watcher: Watcher, wanted: Callable[[View], bool]) -> View:
    try:
        async with asyncio.timeout(_SOON):
            return await watcher.until(wanted)
    except TimeoutError:
        raise AssertionError(f"not seen within {_SOON} s; the last view: {watcher.view}") from None


async def eventually(check: Callable[[], Awaitable[bool]]) -> None:
    """Wait for what must be asked for."""
    async with asyncio.timeout(_SOON):
        while not await check():  # noqa: ASYNC110 - no event tells of it
            await asyncio.sleep(0.1)


async def test_status_tells_who_we_are_and_who_is_there(members: Members) -> None:
    async with asking(members.edge) as client:
        status = await client.status()
        assert client.capability_version >= 142
        assert (status.state, status.problem, status.tun) == (State.RUNNING, None, True)
        assert status.node is not None
        assert (status.node.name, status.node.tags) == ("edge.tail.test", ("tag:edge",))
        assert status.node.key_expiry is None, "a tagged machine's key does not expire"
        assert status.suffix == "tail.test"
        assert status.addresses == status.node.addresses
        assert [address.partition(":")[0] for address in status.addresses][1] == "fd7a"
        peers = {peer.node.host_name: peer.node for peer in status.peers}
        assert peers["gpu"].tags == ("tag:gpu",)
        assert peers["phone"].tags == ()
        assert status.users[peers["phone"].user].login == PERSON
        assert not (await client.status(peers=False)).peers


async def test_whois_knows_a_tagged_machine_and_its_capability(members: Members) -> None:
    async with asking(members.gpu) as client:
        for version in (4, 6):
            edge = await client.whois(await members.edge.address(version), 12345)
            assert edge is not None
            assert (edge.name, edge.node.tags) == ("edge.tail.test", ("tag:edge",))
            assert edge.capabilities[CAPABILITY] == ({"role": "infer"},)


async def test_whois_knows_a_person(members: Members) -> None:
    async with asking(members.edge) as client:
        phone = await client.whois(await members.phone.address(), 12345)
    assert phone is not None
    assert (phone.name, phone.user.login, phone.node.tags) == (PERSON, PERSON, ())
    assert CAPABILITY not in phone.capabilities


async def test_whois_knows_nobody_outside(members: Members) -> None:
    async with asking(members.gpu) as client:
        assert await client.whois(members.edge.machine.address, 12345) is None, "its address outside the tailnet"
        assert await client.whois("127.0.0.1", 1, protocol="tcp") is None
        assert await client.whois(await members.phone.address()) is None, "no grant makes the phone a peer of the node"


async def test_whois_refuses_what_is_no_address(members: Members) -> None:
    async with asking(members.gpu) as client:
        with pytest.raises(Refused, match="invalid 'addr' parameter"):
            await client.whois("no address")


async def test_a_changed_capability_is_seen_without_a_new_connection(tailnet: Tailnet, members: Members) -> None:
    async with asking(members.gpu) as client:
        address = await members.edge.address()

        async def roles() -> list[str]:
            caller = await client.whois(address)
            assert caller is not None
            return sorted(value["role"] for value in caller.capabilities.get(CAPABILITY, ()))

        assert await roles() == ["infer"]
        admin = {"src": ["tag:edge"], "dst": ["tag:gpu"], "ip": ["tcp:8001"], "app": {CAPABILITY: [{"role": "admin"}]}}
        await tailnet.policy(policy(admin))

        async def both() -> bool:
            return await roles() == ["admin", "infer"]

        async def one() -> bool:
            return await roles() == ["infer"]

        await eventually(both)
        await tailnet.policy(policy())
        await eventually(one)


async def test_the_watcher_sees_a_peer_leave_and_come_back(members: Members) -> None:
    async with watching(members.edge) as watcher:
        online = await seen(watcher, lambda view: any(peer.online for peer in view.find("gpu")))
        assert [peer.tags for peer in online.find("tag:gpu")] == [("tag:gpu",)]
        await members.gpu.down()
        await seen(watcher, lambda view: all(peer.online is False for peer in view.find("gpu")))
        await members.gpu.up()
        await seen(watcher, lambda view: all(peer.online for peer in view.find("gpu")))


async def test_the_watcher_sees_its_own_machine_stop_and_start(members: Members) -> None:
    async with watching(members.gpu) as watcher:
        before = await seen(watcher, lambda view: view.problem is None)
        await members.gpu.down()
        stopped = await seen(watcher, lambda view: view.state is State.STOPPED)
        assert isinstance(stopped.problem, NotRunning)
        assert "sudo tailscale up" in str(stopped.problem)
        await members.gpu.up()
        after = await seen(watcher, lambda view: view.problem is None)
        assert after.addresses == before.addresses


async def test_the_watchers_on_both_sides_see_a_new_address(members: Members) -> None:
    async with watching(members.gpu) as at_gpu, watching(members.edge) as at_edge:
        old = (await seen(at_gpu, lambda view: view.problem is None)).addresses
        await seen(at_edge, lambda view: any(peer.addresses == old for peer in view.find("gpu")))
        await members.gpu.login_anew()
        own = await seen(at_gpu, lambda view: view.problem is None and view.addresses not in ((), old))
        assert own.addresses[0] == await members.gpu.address()
        await seen(at_edge, lambda view: [peer.addresses for peer in view.find("tag:gpu")] == [own.addresses])


async def test_the_watcher_survives_tailscaled(members: Members) -> None:
    async with watching(members.edge) as watcher:
        await seen(watcher, lambda view: view.problem is None)
        await members.edge.kill()
        gone = await seen(watcher, lambda view: view.problem is not None)
        assert isinstance(gone.failure, Unreachable)
        assert gone.addresses, "what was known is still there"
        await members.edge.start()
        await seen(watcher, lambda view: view.problem is None)


async def test_a_direct_path_is_told_from_a_relayed_one(members: Members) -> None:
    edge, gpu = members.edge.machine, members.gpu.machine
    address = await members.gpu.address()
    async with asking(members.edge) as client:
        await warm(client, address)
        direct = await best_path(client, address)
        assert direct is not None
        assert (direct.path, direct.endpoint) == (Path.DIRECT, f"{gpu.address}:41641")
        assert direct.seconds is not None
        await eventually(lambda: _is(client, "gpu", Path.DIRECT))
        await edge.lose_udp_to(gpu)
        await gpu.lose_udp_to(edge)
        try:
            await eventually(lambda: _pinged(client, address, Path.RELAYED))
            relayed = await best_path(client, address, tries=3, pause=0.2)
            assert relayed is not None
            assert (relayed.path, relayed.region) == (Path.RELAYED, "test")
            await eventually(lambda: _is(client, "gpu", Path.RELAYED))
        finally:
            await edge.deliver_udp_to(gpu)
            await gpu.deliver_udp_to(edge)
        await eventually(lambda: _pinged(client, address, Path.DIRECT))


async def _path(client: LocalClient, name: str) -> Path:
    return next(peer.connection.path for peer in (await client.status()).peers if peer.node.host_name == name)


async def _is(client: LocalClient, name: str, path: Path) -> bool:
    await warm(
        client, next(peer.node.addresses[0] for peer in (await client.status()).peers if peer.node.host_name == name)
    )
    return await _path(client, name) is path


async def _pinged(client: LocalClient, address: str, path: Path) -> bool:
    try:
        return (await client.ping(address, seconds=2)).path is path
    except NotAnswering:
        return False


async def test_a_ping_to_nobody_is_an_error_in_words(members: Members) -> None:
    async with asking(members.edge) as client:
        answer = await client.ping("100.127.255.254")
        assert (answer.error, answer.path) == ("no matching peer", Path.UNKNOWN)
        own = await client.ping(await members.edge.address())
        assert "local Tailscale IP" in own.error


async def _rights(member: Member, user: int) -> dict[str, list[str]]:
    """For each call, "done" or the missing right, and the text for people."""
    argv = (sys.executable, "-m", "tests.tailnet.without_rights", member.socket, str(user))
    return json.loads(await member.machine.call(*argv, cwd=ROOT))


async def test_a_user_without_rights_reads_and_is_told_which_right_is_missing(members: Members) -> None:
    said = await _rights(members.edge, _NOBODY)
    assert {call: right for call, (right, _) in said.items()} == {
        "status": "done",
        "prefs": "done",
        "whois": "done",
        "metrics": "done",
        "change prefs": "write",
        "serve": "write",
        "serve a unix socket": "write",
        "certificate": "cert",
    }
    assert "sudo tailscale set --operator=nobody" in said["serve"][1]
    assert "TS_PERMIT_CERT_UID=nobody" in said["certificate"][1]


async def test_an_operator_may_serve_a_port_but_no_unix_socket(members: Members) -> None:
    await members.edge.tailscale("set", "--operator=nobody")
    try:
        said = await _rights(members.edge, _NOBODY)
    finally:
        await members.edge.tailscale("set", "--operator=")
    assert said["change prefs"][0] == said["serve"][0] == "done"
    assert said["serve a unix socket"][0] == "local admin"
    assert "sudo tailscale" in said["serve a unix socket"][1]


async def test_prefs_can_be_changed(members: Members) -> None:
    async with asking(members.gpu) as client:
        before = await client.prefs()
        assert (before.want_running, before.shields_up, before.accept_dns) == (True, False, False)
        assert (await client.change_prefs(ShieldsUp=True)).shields_up is True
        after = await client.change_prefs(ShieldsUp=False)
        assert after == before


async def test_what_we_serve_goes_beside_what_the_owner_serves(members: Members) -> None:
    target = "http://127.0.0.1:8710"
    async with asking(members.edge) as client:
        empty = await client.serve_config()
        assert dict(empty.config) == {}
        await members.edge.tailscale("serve", "--bg", "--http=8080", "http://127.0.0.1:9000")
        with pytest.raises(Changed):
            await client.set_serve_config({"TCP": {"80": {"HTTP": True}}}, empty.etag)
        owner = (await client.serve_config()).config
        assert "8080" in owner["TCP"]

        await serve.edit(client, lambda config: serve.with_proxy(config, "edge.tail.test", 80, target, https=False))
        both = (await client.serve_config()).config
        assert both["Web"]["edge.tail.test:80"]["Handlers"]["/"]["Proxy"] == target
        assert both["TCP"]["8080"] == owner["TCP"]["8080"]

        async with _answering(members.edge, 8710, b"from the edge"), members.phone.machine.client() as browser:
            url = f"http://{await members.edge.address()}/"
            async with browser.get(url, headers={"Host": "edge.tail.test"}) as response:
                assert await response.text() == "from the edge"

        await serve.edit(client, lambda config: serve.without_proxy(config, "edge.tail.test", 80, target))
        assert (await client.serve_config()).config == owner
        await members.edge.tailscale("serve", "reset")


@asynccontextmanager
async def _answering(member: Member, port: int, body: bytes) -> AsyncIterator[list[tuple[str, int]]]:
    """An HTTP server on loopback of ``member`` that says ``body``; the callers' addresses."""
    callers: list[tuple[str, int]] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        callers.append(writer.get_extra_info("peername")[:2])
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        await writer.drain()
        await reader.read()  # until the caller has gone, so that its connection can be asked about
        writer.close()

    listening = member.machine.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind(("127.0.0.1", port))
    async with await asyncio.start_server(answer, sock=listening):
        yield callers


async def test_another_change_at_the_same_time_is_not_lost(members: Members) -> None:
    async with asking(members.edge) as client:
        changes = [
            serve.edit(
                client,
                lambda config, port=port: serve.with_proxy(
                    config, "edge.tail.test", port, "http://127.0.0.1:1", https=False
                ),
            )
            for port in (8081, 8082, 8083)
        ]
        await asyncio.gather(*changes)
        assert sorted((await client.serve_config()).config["TCP"]) == ["8081", "8082", "8083"]
        await members.edge.tailscale("serve", "reset")


async def test_packets_that_the_policy_keeps_out_are_counted(members: Members) -> None:
    async with asking(members.gpu) as client:
        before = (await client.metrics()).dropped_by_policy
        knock = members.edge.machine.socket()
        knock.setblocking(False)
        with knock, suppress(TimeoutError):
            async with asyncio.timeout(2):
                await asyncio.get_running_loop().sock_connect(knock, (await members.gpu.address(), 22))
        assert (await client.metrics()).dropped_by_policy > before


async def test_headscale_gives_no_certificates(members: Members) -> None:
    async with asking(members.edge) as client:
        with pytest.raises(NotSupported, match="HTTPS certificates"):
            await client.certificate("edge.tail.test")


async def test_a_machine_that_is_not_logged_in_says_so(tailnet: Tailnet, members: Members) -> None:
    fresh = await tailnet.machine("fresh", tags=["tag:gpu"])
    await fresh.start()
    async with asking(fresh) as client, watching(fresh) as watcher:
        view = await seen(watcher, lambda view: view.state is State.NEEDS_LOGIN)
        assert isinstance(view.problem, NotRunning)
        assert (view.addresses, dict(view.peers)) == ((), {})
        assert (await client.status()).node is None
        config = await client.serve_config()
        with pytest.raises(NotRunning):
            await client.set_serve_config({"TCP": {"80": {"HTTP": True}}}, config.etag)
        await fresh.login()
        joined = await seen(watcher, lambda view: view.problem is None and bool(view.find("edge")))
        assert joined.addresses
    await fresh.leave()


async def test_a_tailscaled_that_starts_slowly_is_waited_for(members: Members) -> None:
    await members.gpu.kill()
    await members.gpu.start(TS_DEBUG_BACKEND_DELAY_SEC="3")
    async with (
        asking(members.gpu) as client,
        asking(members.gpu, seconds=0.5) as hasty,
        watching(members.gpu) as watcher,
    ):
        assert await client.ready() is False
        with pytest.raises(NotAnswering):
            await hasty.status()
        await seen(watcher, lambda view: view.problem is None)
        assert await client.ready() is True


async def test_callers_of_a_userspace_machine_are_known_by_their_port(tailnet: Tailnet, members: Members) -> None:
    member = await tailnet.member("userspace", tags=["tag:gpu"], userspace=True)
    async with asking(member) as client, _answering(member, 8001, b"from the node") as callers:
        assert (await client.status()).tun is False
        await members.edge.meets(member)
        url = f"http://{await member.address()}:8001/"
        async with members.edge.machine.client() as http, http.get(url) as response:
            assert await response.text() == "from the node"
            host, port = callers[0]
            assert host == "127.0.0.1"
            caller = await client.whois(host, port, protocol="tcp")
            assert caller is not None
            assert caller.node.tags == ("tag:edge",)
            assert caller.capabilities[CAPABILITY] == ({"role": "infer"},)
    await member.leave()
