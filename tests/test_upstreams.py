"""How the edge keeps its links: which snapshot counts, which link is used, what it says when there is none."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
from loguru import logger
from starlette.responses import PlainTextResponse

from edge.app import run_edge
from edge.upstreams.address import Address
from edge.upstreams.pool import Upstreams
from edge.upstreams.sockets import connector
from edge.upstreams.upstream import Upstream
from shared.asgi.listener import Listener
from shared.asgi.protocol import Limits
from shared.asgi.server import serving
from shared.asgi.types import App, Receive, Scope, Send
from shared.contract.errors import ApiError
from shared.contract.snapshot import ModelInfo, NodeSnapshot
from shared.contract.usage import Usage
from shared.link import SUBPROTOCOL
from shared.link import session as session_module
from shared.link.call import Call, End, Outlet
from shared.link.hello import Hello
from shared.link.session import Session
from shared.link.transports import AsgiTransport
from shared.settings_sections import TlsSettings
from shared.ticker import Ticker
from shared.tls import client_context, server_context
from tests.certificates import Authority
from tests.linked import EDGE_HELLO, call
from tests.local_app import free_port
from tests.pair import edge_settings
from tests.waiting import wait_until


class Nodes:
    """What stands behind one URL: each link gets a session that says it is ``boot`` at that moment."""

    def __init__(self) -> None:
        self.boot = "boot-1"
        self.sessions: list[Session] = []
        self.go_on = asyncio.Event()
        self.status: int | None = None  # refuse links with it

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        if self.status is not None:
            await send({"type": "websocket.http.response.start", "status": self.status, "headers": []})
            await send({"type": "websocket.http.response.body", "body": b""})
            return
        await send({"type": "websocket.accept", "subprotocol": SUBPROTOCOL})
        session = Session(AsgiTransport(receive, send), Hello("node", self.boot, "1"), serve=self.serve)
        self.sessions.append(session)
        await session.run()

    async def serve(self, call: Call, out: Outlet) -> End:
        out.head({})
        await self.go_on.wait()
        await out.data(b"data: [DONE]\n\n")
        return End("stop", Usage(1, 1))

    def say(self, number: int, boot: str, seq: int, **fields: Any) -> None:
        self.sessions[number].send_snapshot(
            NodeSnapshot("node", boot, seq, **{"runtime_state": "ready", **fields}).to_wire()
        )

    @property
    def live(self) -> list[Session]:
        return [session for session in self.sessions if not session.closed]


@asynccontextmanager
async def served(app: App) -> AsyncIterator[str]:
    """The URL of ``app``'s link."""
    async with serving(app, [Listener("tailnet", "127.0.0.1", 0)], Limits(), Ticker()) as listening:
        yield f"ws://127.0.0.1:{listening.listeners[0].port}/link"


def connected_to(port: int) -> Iterator[socket.socket]:
    """This process's sockets that are connected to ``port``, as copies that are closed afterwards."""
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(int(descriptor))) as sock:
            if sock.family == socket.AF_INET and sock.getpeername()[1] == port:
                yield sock


@asynccontextmanager
async def kept(nodes: Nodes, links: int = 1) -> AsyncIterator[Upstream]:
    """An upstream that keeps its links to ``nodes``."""
    async with (
        served(nodes) as url,
        running(Address("default", url, "hln_x", links=links)) as upstream,
    ):
        await wait_until(lambda: len(upstream.sessions) == links)
        yield upstream


@asynccontextmanager
async def running(address: Address) -> AsyncIterator[Upstream]:
    async with aiohttp.ClientSession(trust_env=False, connector=connector()) as client:
        upstream = Upstream(address, EDGE_HELLO)
        task = asyncio.create_task(upstream.run(client))
        try:
            yield upstream
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def seen(upstream: Upstream) -> tuple[str, int] | None:
    return (upstream.snapshot.boot_id, upstream.snapshot.seq) if upstream.snapshot is not None else None


async def settle() -> None:
    """Long enough for a frame to cross, were it sent."""
    await asyncio.sleep(0.1)


# -- snapshots --------------------------------------------------------------------------------------------------------


async def test_the_newest_snapshot_of_a_boot_counts() -> None:
    nodes = Nodes()
    async with kept(nodes) as upstream:
        assert not upstream.ready  # linked, but nothing is known
        for seq in (1, 3, 2):
            nodes.say(0, "boot-1", seq)
        await wait_until(lambda: seen(upstream) == ("boot-1", 3))
        await settle()
        assert seen(upstream) == ("boot-1", 3)
        assert upstream.ready
        nodes.say(0, "boot-1", 4, runtime_state="loading", models=(ModelInfo("m"),))
        await wait_until(lambda: not upstream.ready)


async def test_what_an_old_process_still_says_does_not_hide_the_new_one() -> None:
    nodes = Nodes()
    async with kept(nodes) as upstream:
        nodes.say(0, "boot-1", 7)
        await wait_until(lambda: seen(upstream) == ("boot-1", 7))
        reply = upstream.session().open(call())
        await reply.head()
        nodes.boot = "boot-2"
        nodes.sessions[0].go_away()  # a stream still runs on it
        await wait_until(lambda: len(nodes.sessions) == 2 and upstream.connected)
        nodes.say(1, "boot-2", 0)
        await wait_until(lambda: seen(upstream) == ("boot-2", 0))
        nodes.say(0, "boot-1", 99)
        await settle()
        assert seen(upstream) == ("boot-2", 0)
        nodes.go_on.set()
        assert await reply.read() == b"data: [DONE]\n\n"


async def test_an_unusable_snapshot_changes_nothing() -> None:
    nodes = Nodes()
    async with kept(nodes) as upstream:
        nodes.say(0, "boot-1", 1)
        await wait_until(lambda: seen(upstream) == ("boot-1", 1))
        for wrong in (
            {},
            {"node_id": "node", "boot_id": "boot-1", "seq": "2"},
            {"node_id": 1, "boot_id": [], "seq": 5},
        ):
            nodes.sessions[0].send_snapshot(wrong)
        await settle()
        assert seen(upstream) == ("boot-1", 1)
        assert upstream.connected


# -- links ------------------------------------------------------------------------------------------------------------


async def test_a_draining_link_is_replaced_and_closes_when_its_streams_have_ended() -> None:
    nodes = Nodes()
    async with kept(nodes) as upstream:
        old = upstream.session()
        reply = old.open(call())
        await reply.head()
        nodes.sessions[0].go_away()
        await wait_until(lambda: len(nodes.live) == 2 and upstream.sessions and old not in upstream.sessions)
        second = upstream.session().open(call())
        await second.head()
        assert (nodes.sessions[0].streams, nodes.sessions[1].streams) == (1, 1)  # new ones go to the new link
        nodes.go_on.set()
        assert await reply.read() == b"data: [DONE]\n\n"
        await wait_until(lambda: nodes.live == [nodes.sessions[1]])


async def test_two_links_share_the_streams() -> None:
    nodes = Nodes()
    async with kept(nodes, links=2) as upstream:
        for _ in range(10):
            upstream.session().open(call())
        await wait_until(lambda: [session.streams for session in nodes.sessions] == [5, 5])


async def test_a_lost_link_is_dialled_again() -> None:
    nodes = Nodes()
    async with kept(nodes) as upstream:
        nodes.sessions[0].close()
        await wait_until(lambda: len(nodes.sessions) == 2 and upstream.connected)
        assert "ended" in upstream.reason


async def test_leaving_closes_every_link() -> None:
    nodes = Nodes()
    async with kept(nodes, links=2) as upstream:
        reply = upstream.session().open(call())
        await reply.head()
    assert nodes.live == []
    with pytest.raises(ApiError):
        await reply.read()


async def test_a_node_of_another_version_is_named_with_what_to_upgrade(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = Nodes()
    monkeypatch.setattr(Hello.__init__, "__defaults__", (2, 1))  # protocol 2, contract 1
    async with (
        served(nodes) as url,
        running(Address("default", url, "hln_x")) as upstream,
    ):
        await wait_until(lambda: "upgrade Hearthlink on" in upstream.reason)
        assert not upstream.connected


# -- reasons ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (401, ["refuses this edge's token", "edge.upstreams.default.token", "node.tokens"]),
        (403, ["does not listen under that name", "edge.upstreams.default.url"]),
        (404, ["not a Hearthlink node", "404", "edge.upstreams.default.url"]),
        (200, ["not a Hearthlink node", "edge.upstreams.default.url"]),
        (503, ["restarting"]),
    ],
)
async def test_a_refusal_says_what_to_do(status: int, says: list[str]) -> None:
    nodes = Nodes()
    nodes.status = status
    async with (
        served(nodes) as url,
        running(Address("default", url, "hln_secret")) as upstream,
    ):
        await wait_until(lambda: all(part in upstream.reason for part in says), what=lambda: upstream.reason)
        assert "hln_secret" not in upstream.reason
        with pytest.raises(ApiError) as unavailable:
            upstream.session()
        assert unavailable.value.code == "node_unavailable"
        assert "127.0.0.1" not in unavailable.value.message  # callers are not told where the node is


async def test_a_web_server_is_no_node() -> None:
    async with (
        served(PlainTextResponse("It works!")) as url,
        running(Address("default", url, "hln_x")) as upstream,
    ):
        await wait_until(lambda: "not a Hearthlink node" in upstream.reason, what=lambda: upstream.reason)


async def test_nothing_there_says_what_to_start() -> None:
    port = free_port()
    async with running(Address("default", f"ws://127.0.0.1:{port}/link", "hln_x")) as upstream:
        await wait_until(lambda: "cannot reach the node" in upstream.reason)
        for part in (f"ws://127.0.0.1:{port}/link", "refused", "hearthlink node", "edge.upstreams.default.url"):
            assert part in upstream.reason


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("ws://gpu..example:8001/link", "not a valid address"),
        ("ws://gpu.invalid:8001/link", socket.gaierror(socket.EAI_NONAME, "Name or service not known").strerror),
    ],
)
async def test_a_wrong_host_name_is_said_and_ends_no_other_link(
    monkeypatch: pytest.MonkeyPatch, url: str, says: str
) -> None:
    known = socket.getaddrinfo

    def no_dns(host: Any, *of: Any, **more: Any) -> Any:
        if host == "gpu.invalid":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return known(host, *of, **more)

    monkeypatch.setattr(socket, "getaddrinfo", no_dns)
    nodes = Nodes()
    async with served(nodes) as good:
        wrong = Upstream(Address("wrong", url, "t"), EDGE_HELLO)
        upstreams = Upstreams([wrong, Upstream(Address("good", good, "t"), EDGE_HELLO)])
        task = asyncio.create_task(upstreams.run())
        try:
            await wait_until(lambda: says in wrong.reason, what=lambda: wrong.reason)
            await wait_until(lambda: upstreams.all[1].connected)
            assert "Correct edge.upstreams.wrong.url" in wrong.reason
            assert not task.done()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def test_an_edge_whose_links_cannot_be_kept_ends_with_the_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that its process fails, and its supervisor starts a whole one."""

    async def fail(upstreams: Upstreams) -> None:
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr(Upstreams, "run", fail)
    said: list[str] = []
    sink = logger.add(said.append, level="CRITICAL", format="{message}")
    try:
        with pytest.raises(RuntimeError, match="a mistake of ours"):
            async with run_edge(edge_settings(tmp_path, "ws://127.0.0.1:1/link"), lambda line: None):
                await asyncio.sleep(5)
    finally:
        logger.remove(sink)
    assert [line.startswith("the edge ends") for line in said] == [True]


async def test_a_port_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge.upstreams.dialling.DIAL_WITHIN", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts in the kernel, and nobody reads
        address = Address("default", f"ws://127.0.0.1:{silent.getsockname()[1]}/link", "hln_x")
        async with running(address) as upstream:
            await wait_until(lambda: "no answer" in upstream.reason)


async def test_another_subprotocol_is_no_node() -> None:
    async def other(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await receive()

    async with (
        served(other) as url,
        running(Address("default", url, "hln_x")) as upstream,
    ):
        await wait_until(lambda: "not a Hearthlink node" in upstream.reason, what=lambda: upstream.reason)


# -- certificates -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ours"))


@asynccontextmanager
async def with_certificates(of_node: TlsSettings, of_edge: TlsSettings) -> AsyncIterator[Upstream]:
    listener = Listener("interface", "127.0.0.1", 0, tls=server_context(of_node))
    async with serving(Nodes(), [listener], Limits(), Ticker()) as listening:
        url = f"wss://127.0.0.1:{listening.listeners[0].port}/link"
        async with running(Address("x", url, "hln_x", tls=client_context(of_edge))) as upstream:
            yield upstream


async def test_a_link_over_tls_needs_certificates_of_one_authority(authority: Authority) -> None:
    async with with_certificates(authority.issue("node"), authority.issue("edge")) as upstream:
        await wait_until(lambda: upstream.connected, what=lambda: upstream.reason)


@pytest.mark.parametrize("whose", ["node", "edge"])
async def test_a_certificate_of_another_authority_is_said(authority: Authority, tmp_path: Path, whose: str) -> None:
    stranger = Authority(tmp_path).issue("stranger")
    # Each trusts the same one, so that only the shown certificate is wrong.
    wrong = stranger.model_copy(update={"authority": authority.certificate})
    pair = {name: wrong if name == whose else authority.issue(name) for name in ("node", "edge")}
    async with with_certificates(pair["node"], pair["edge"]) as upstream:
        await wait_until(lambda: "TLS" in upstream.reason, what=lambda: upstream.reason)
        assert "edge.upstreams.x.tls" in upstream.reason
        assert upstream.cause == "other"


# -- the socket -------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="macOS calls some of them otherwise")
async def test_a_link_notices_a_dead_path_and_keeps_a_silent_one_warm() -> None:
    """The values are those of tailnet.md §6, on the socket that really carries the link."""
    nodes = Nodes()
    wanted = {
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE): 1,
        (socket.IPPROTO_TCP, socket.TCP_NODELAY): 1,
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE): 15,
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL): 5,
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT): 3,
        (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT): 20_000,
    }
    async with kept(nodes) as upstream:
        (found,) = [
            {(level, option): sock.getsockopt(level, option) for level, option in wanted}
            for sock in connected_to(urlsplit(upstream.url).port or 0)
        ]
    assert found == wanted


# -- elsewhere --------------------------------------------------------------------------------------------------------


async def test_a_redial_makes_a_new_link_and_running_streams_go_on() -> None:
    nodes = Nodes()
    async with kept(nodes) as upstream:
        old = upstream.session()
        reply = old.open(call())
        await reply.head()
        upstream.redial()
        assert upstream.connected, "the old link serves until there is a new one"
        await wait_until(lambda: len(nodes.live) == 2 and upstream.sessions and old not in upstream.sessions)
        second = upstream.session().open(call())
        await second.head()
        assert (nodes.sessions[0].streams, nodes.sessions[1].streams) == (1, 1)
        nodes.go_on.set()
        assert await reply.read() == b"data: [DONE]\n\n"
        await wait_until(lambda: nodes.live == [nodes.sessions[1]])


async def test_a_link_that_is_lost_gets_no_new_streams() -> None:
    nodes = Nodes()
    async with kept(nodes) as upstream:
        upstream.redial(lost=True)
        assert not upstream.connected
        await wait_until(lambda: upstream.connected and len(nodes.sessions) == 2)


async def test_a_node_that_is_taken_away_ends_its_streams_first() -> None:
    nodes = Nodes()
    async with kept(nodes) as upstream:
        reply = upstream.session().open(call())
        await reply.head()
        upstream.leave()
        assert not upstream.connected
        await settle()
        assert len(nodes.sessions) == 1, "it is not dialled again"
        nodes.go_on.set()
        assert await reply.read() == b"data: [DONE]\n\n"
        await wait_until(lambda: not nodes.live)


async def test_nodes_come_and_go_while_the_others_are_asked() -> None:
    nodes = Nodes()
    async with served(nodes) as url:
        upstreams = Upstreams([Upstream(Address("first", url, "t", priority=1), EDGE_HELLO)])
        task = asyncio.create_task(upstreams.run())
        try:
            await wait_until(lambda: upstreams.all[0].connected)
            preferred = Upstream(Address("second", url, "t"), EDGE_HELLO)
            upstreams.add(preferred)
            await wait_until(lambda: preferred.connected)
            assert upstreams.choose() is preferred
            reply = preferred.session().open(call())
            await reply.head()
            upstreams.remove(preferred)
            assert upstreams.choose().name == "first"
            assert [upstream.name for upstream in upstreams.all] == ["first"], "health would show its end as a fault"
            await settle()
            assert len(nodes.live) == 2, "its stream still runs"
            nodes.go_on.set()
            assert await reply.read() == b"data: [DONE]\n\n"
            await wait_until(lambda: nodes.live == nodes.sessions[:1])
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
    assert nodes.live == []


# -- which node is asked ----------------------------------------------------------------------------------------------


async def test_the_first_ready_node_is_asked_then_the_first_connected_one() -> None:
    first, second = Nodes(), Nodes()
    async with kept(first) as one, kept(second) as two:
        one.address = Address("one", one.address.url, "t", priority=1)
        two.address = Address("two", two.address.url, "t", priority=2)
        upstreams = Upstreams([two, one])
        assert upstreams.all == [one, two]
        assert not upstreams.ready
        assert upstreams.choose() is one  # its own refusal says more than ours
        second.say(0, "boot-1", 1)
        await wait_until(lambda: upstreams.ready)
        assert upstreams.choose() is two
        first.say(0, "boot-1", 1)
        await wait_until(lambda: one.ready)
        assert upstreams.choose() is one
        first.say(0, "boot-1", 2, runtime_state="loading", reason="half")
        await wait_until(lambda: upstreams.choose() is two)


async def test_no_link_is_node_unavailable() -> None:
    upstreams = Upstreams([Upstream(Address("default", "ws://127.0.0.1:1/link", "t"), EDGE_HELLO)])
    with pytest.raises(ApiError) as unavailable:
        upstreams.choose()
    assert (unavailable.value.code, unavailable.value.status) == ("node_unavailable", 503)


async def test_a_suspect_link_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "SUSPECT_AFTER", 0.0)
    nodes = Nodes()
    async with kept(nodes) as upstream:
        session = upstream.session()
        session._pinged_at = session._clock() - 1
        assert not upstream.connected
        with pytest.raises(ApiError):
            upstream.session()
