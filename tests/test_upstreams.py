"""How the edge keeps its links: which snapshot counts, which link is used, what it says when there is none."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from starlette.responses import PlainTextResponse

from edge.upstreams import Address, Upstream, Upstreams
from shared.asgi.protocol import Limits
from shared.asgi.server import Listener, serving
from shared.asgi.types import Receive, Scope, Send
from shared.contract.chat import Usage
from shared.contract.errors import ApiError
from shared.contract.snapshot import ModelInfo, NodeSnapshot
from shared.link import SUBPROTOCOL
from shared.link import session as session_module
from shared.link.call import Call, End, Outlet
from shared.link.hello import Hello
from shared.link.session import Session
from shared.link.transports import AsgiTransport
from shared.ticker import Ticker
from tests.linked import EDGE_HELLO, call
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
async def kept(nodes: Nodes, links: int = 1) -> AsyncIterator[Upstream]:
    """An upstream that keeps its links to ``nodes``."""
    async with (
        serving(nodes, [Listener("tailnet", "127.0.0.1", 0)], Limits(), Ticker()) as bound,
        running(Address("default", f"ws://127.0.0.1:{bound[0].port}/link", "hln_x", links=links)) as upstream,
    ):
        await wait_until(lambda: len(upstream.sessions) == links, 3)
        yield upstream


@asynccontextmanager
async def running(address: Address) -> AsyncIterator[Upstream]:
    async with aiohttp.ClientSession(trust_env=False) as client:
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
        await wait_until(lambda: len(nodes.sessions) == 2 and upstream.connected, 3)
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
        reply = upstream.session().open(call())
        await reply.head()
        nodes.sessions[0].go_away()
        await wait_until(lambda: len(nodes.live) == 2 and len(upstream.sessions) == 1, 3)
        second = upstream.session().open(call())
        await second.head()
        assert (nodes.sessions[0].streams, nodes.sessions[1].streams) == (1, 1)  # new ones go to the new link
        nodes.go_on.set()
        assert await reply.read() == b"data: [DONE]\n\n"
        await wait_until(lambda: nodes.live == [nodes.sessions[1]], 3)


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
        await wait_until(lambda: len(nodes.sessions) == 2 and upstream.connected, 3)
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
        serving(nodes, [Listener("tailnet", "127.0.0.1", 0)], Limits(), Ticker()) as bound,
        running(Address("default", f"ws://127.0.0.1:{bound[0].port}/link", "hln_x")) as upstream,
    ):
        await wait_until(lambda: "upgrade Hearthlink on" in upstream.reason, 3)
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
        serving(nodes, [Listener("tailnet", "127.0.0.1", 0)], Limits(), Ticker()) as bound,
        running(Address("default", f"ws://127.0.0.1:{bound[0].port}/link", "hln_secret")) as upstream,
    ):
        await wait_until(lambda: all(part in upstream.reason for part in says), 3, what=lambda: upstream.reason)
        assert "hln_secret" not in upstream.reason
        with pytest.raises(ApiError) as unavailable:
            upstream.session()
        assert unavailable.value.code == "node_unavailable"
        assert "127.0.0.1" not in unavailable.value.message  # callers are not told where the node is


async def test_a_web_server_is_no_node() -> None:
    async with (
        serving(PlainTextResponse("It works!"), [Listener("tailnet", "127.0.0.1", 0)], Limits(), Ticker()) as bound,
        running(Address("default", f"ws://127.0.0.1:{bound[0].port}/link", "hln_x")) as upstream,
    ):
        await wait_until(lambda: "not a Hearthlink node" in upstream.reason, 3, what=lambda: upstream.reason)


async def test_nothing_there_says_what_to_start() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    async with running(Address("default", f"ws://127.0.0.1:{port}/link", "hln_x")) as upstream:
        await wait_until(lambda: "cannot reach the node" in upstream.reason, 3)
        for part in (f"ws://127.0.0.1:{port}/link", "refused", "hearthlink node", "edge.upstreams.default.url"):
            assert part in upstream.reason


async def test_a_port_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge.upstreams.DIAL_WITHIN", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts in the kernel, and nobody reads
        address = Address("default", f"ws://127.0.0.1:{silent.getsockname()[1]}/link", "hln_x")
        async with running(address) as upstream:
            await wait_until(lambda: "no answer" in upstream.reason, 3)


async def test_another_subprotocol_is_no_node() -> None:
    async def other(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await receive()

    async with (
        serving(other, [Listener("tailnet", "127.0.0.1", 0)], Limits(), Ticker()) as bound,
        running(Address("default", f"ws://127.0.0.1:{bound[0].port}/link", "hln_x")) as upstream,
    ):
        await wait_until(lambda: "not a Hearthlink node" in upstream.reason, 3, what=lambda: upstream.reason)


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
