"""Who the node lets in by its tailnet's listener, for how long, and what the others are told. Callers come from
127.0.0.1, as in userspace networking; a fake tailscaled says who they are."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import httpx2
import pytest
from loguru import logger

from node.admission import Admission
from node.admission.callers import TailnetCallers
from node.api.link import LinkEndpoint
from node.app import Node, create_app, run_node
from shared.asgi.protocol import Limits
from shared.asgi.server import Listener, serving
from shared.contract.errors import ApiError
from shared.link import SUBPROTOCOL
from shared.link.session import LinkClosed, Session
from shared.link.transports import DialledTransport, DialRefused
from shared.tailscale.client import LocalClient
from tests.fake_localapi import FakeLocalAPI
from tests.fake_runtime import FakeRuntime
from tests.fake_scripts import normal
from tests.linked import EDGE_HELLO, call
from tests.local_app import free_port
from tests.pair import events_of, node_settings, question
from tests.raw_http import RawClient
from tests.tailnet.shapes import whois
from tests.waiting import HANGS, wait_until

TOKEN, NEXT_TOKEN = "hln_" + "a" * 43, "hln_" + "b" * 43
GATEWAY = "hearthlink.internal/cap/gateway"
HERE = "127.0.0.1"
# Seconds that an answer of tailscaled's holds in these tests.
KEPT = 0.3
CHAT = "/v1/chat"
# One of each kind of route: some want the bearer token, the others the machine alone.
GUARDED = ("/v1/models", "/v1/models/fake-model", "/v1/chat/types")
OPEN = ("/livez", "/healthz", "/metrics")
STREAMED = question(stream=True)
UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Protocol": SUBPROTOCOL,
}
# An answer that outlasts everything a test waits for.
LONG = normal(2000, 0.02)


def edge() -> dict[str, Any]:
    return whois(1, "edge", tags=["tag:edge"])


def anna(*values: Any) -> dict[str, Any]:
    """A person, with the values of the grant's capability."""
    return whois(3, "phone", login="anna@example.com", capabilities={GATEWAY: list(values)} if values else None)


@dataclass(slots=True)
class Ground:
    """A node with two doors: ``url`` is the tailnet's, ``node.listener`` is loopback. ``tailscaled`` knows callers by
    ``HERE``. ``log`` are the node's lines."""

    node: Node
    admission: Admission
    tailscaled: FakeLocalAPI
    runtime: FakeRuntime
    client: aiohttp.ClientSession
    url: str
    log: list[str] = field(default_factory=list)

    def knows(self, found: dict[str, Any] | None) -> None:
        self.tailscaled.whois = {} if found is None else {HERE: found}

    async def ask(self, path: str, token: str | None = TOKEN, url: str = "") -> tuple[int, dict[str, Any], str]:
        """Status, headers and the error's code of a GET, or of a POST to ``CHAT``."""
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        method, payload = ("POST", question()) if path == CHAT else ("GET", None)
        async with self.client.request(method, (url or self.url) + path, json=payload, headers=headers) as response:
            body = await response.read()
            code = json.loads(body)["error"]["code"] if response.status != 200 else ""
            return response.status, dict(response.headers), code

    @asynccontextmanager
    async def link(self, token: str = TOKEN) -> AsyncIterator[tuple[Session, asyncio.Task[LinkClosed], Any]]:
        """An edge's session, greeted. Raises DialRefused."""
        async with aiohttp.ClientSession(trust_env=False) as client:
            transport = await DialledTransport.dial(client, self.url.replace("http", "ws") + "/link", token)
            session = Session(transport, EDGE_HELLO, on_snapshot=lambda wire: None)
            running = asyncio.create_task(session.run())
            try:
                await asyncio.wait_for(session.ready.wait(), HANGS)
                yield session, running, transport
            finally:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)


@pytest.fixture
async def ground(tmp_path: Path, runtime: FakeRuntime) -> AsyncIterator[Ground]:
    log: list[str] = []
    sink = logger.add(log.append, format="{level} {message}", filter="node")
    settings = node_settings(tmp_path, runtime.url, {"tokens": [TOKEN, NEXT_TOKEN]})
    async with (
        FakeLocalAPI(tmp_path) as tailscaled,
        LocalClient(str(tailscaled.path), seconds=0.5) as local,
        run_node(settings) as node,
        aiohttp.ClientSession(trust_env=False) as client,
    ):
        await wait_until(lambda: node.services.models.status().state == "ready")
        admission = Admission([TOKEN, NEXT_TOKEN], TailnetCallers(local, GATEWAY, kept=KEPT))
        link = LinkEndpoint(node.services, admission, {HERE})
        app = create_app(node.services, link, admission)
        async with serving(app, [Listener("tailnet", HERE, 0)], Limits(), node.services.ticker) as listening:
            url = listening.listeners[0].url
            yield Ground(node, admission, tailscaled, runtime, client, url, log)
    logger.remove(sink)


# -- at the door ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("found", [edge(), anna({"role": "infer"}), anna({"roles": ["admin"]})])
async def test_a_machine_of_the_policy_with_a_token_is_let_in(ground: Ground, found: dict[str, Any]) -> None:
    ground.knows(found)
    for path in (CHAT, *GUARDED):
        for token in (TOKEN, NEXT_TOKEN):
            assert (await ground.ask(path, token))[0] == 200
    for path in OPEN:
        assert (await ground.ask(path, None))[0] == 200
    async with ground.link() as (session, _, _):
        await session.open(call(json.dumps(STREAMED).encode())).head()


@pytest.mark.parametrize("token", [None, "hln_wrong", TOKEN])
@pytest.mark.parametrize("found", [None, anna(), anna({"role": "chat"}), whois(2, "gpu", tags=["tag:gpu"])])
async def test_any_other_machine_is_refused_on_every_route_whatever_it_shows(
    ground: Ground, found: dict[str, Any] | None, token: str | None
) -> None:
    ground.knows(found)
    for path in (CHAT, *GUARDED, *OPEN):
        status, headers, code = await ground.ask(path, token)
        assert (path, status, code) == (path, 403, "address_not_allowed")
        assert "www-authenticate" not in headers
    with pytest.raises(DialRefused) as refused:
        async with ground.link(token or ""):
            pass
    assert refused.value.status == 403
    assert not ground.runtime.chats


async def test_the_machine_does_not_stand_in_for_the_token(ground: Ground) -> None:
    ground.knows(edge())
    for path in (CHAT, *GUARDED):
        assert (await ground.ask(path, None))[::2] == (401, "missing_token")
        for token in ("hln_wrong", TOKEN[:-1], TOKEN + "a"):
            assert (await ground.ask(path, token))[::2] == (401, "invalid_token")
    with pytest.raises(DialRefused) as refused:
        async with ground.link("hln_wrong"):
            pass
    assert refused.value.status == 401
    assert not ground.runtime.chats


async def test_a_refusal_is_one_line_with_name_address_and_reason(ground: Ground) -> None:
    ground.knows(anna())
    for _ in range(5):
        for path in (CHAT, *OPEN):
            await ground.ask(path, "hln_wrong")
    ground.knows(edge())
    await asyncio.sleep(KEPT)
    for _ in range(5):
        await ground.ask(CHAT, "hln_wrong")
    person, machine = [line for line in ground.log if "refused" in line]
    assert person.startswith("WARNING refused anna@example.com (127.0.0.1): The tailnet's policy does not let")
    assert GATEWAY in person
    assert machine.startswith("WARNING refused edge.tail.test (127.0.0.1): The node token does not match")
    assert "hln_wrong" not in "".join(ground.log)


async def test_who_comes_by_the_owners_socket_has_no_address_and_is_named_after_it() -> None:
    lines: list[str] = []
    sink = logger.add(lines.append, format="{message}")
    try:
        Admission(["hln_x"]).refusal({"client": None}, "missing_token", "No token.")
    finally:
        logger.remove(sink)
    assert lines == ["refused node.sock: No token.\n"]


async def test_the_log_takes_a_bounded_number_of_refusals(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.admission._MOST_LOGGED", 5)
    for number in range(20):
        ground.knows(whois(number, f"machine{number}", tags=["tag:other"]))
        # Another connection is another caller.
        async with aiohttp.ClientSession() as another, another.get(f"{ground.url}/livez") as response:
            assert response.status == 403
    assert len([line for line in ground.log if "refused" in line]) == 5


async def test_before_everything_else_link_looks_at_origin_and_host(ground: Ground) -> None:
    ground.knows(None)
    for headers, code in (
        ({"Origin": "http://127.0.0.1"}, "origin_not_allowed"),
        ({"Host": "rebound.test"}, "address_not_allowed"),
    ):
        async with ground.client.get(f"{ground.url}/link", headers=UPGRADE | headers) as response:
            assert (response.status, (await response.json())["error"]["code"]) == (403, code)
    assert not ground.tailscaled.asked, "no page can make the node ask who calls"


async def test_on_loopback_nobody_is_looked_up(ground: Ground) -> None:
    ground.knows(None)
    await ground.tailscaled.stop()
    url = ground.node.listener.url
    for path in (CHAT, *GUARDED, *OPEN):
        assert (await ground.ask(path, TOKEN, url))[0] == 200
    assert not ground.tailscaled.asked


async def test_a_certificate_has_said_who_calls_by_an_interface(ground: Ground) -> None:
    ground.knows(None)
    scope = {"state": {"listener": "interface", "connection": {}}, "client": ("10.8.0.2", 50000), "headers": []}
    await ground.admission.admit_machine(scope)
    with pytest.raises(ApiError) as raised:
        await ground.admission.admit(scope)
    assert raised.value.code == "missing_token"
    assert not ground.tailscaled.asked


@pytest.mark.parametrize("listener", ["public", "serve", "tailnet"])
async def test_without_a_tailnet_to_ask_no_other_listener_lets_anybody_in(listener: str) -> None:
    scope = {"state": {"listener": listener, "connection": {}}, "client": ("100.64.0.1", 50000), "headers": []}
    with pytest.raises(ApiError) as raised:
        await Admission([TOKEN]).admit_machine(scope)
    assert raised.value.code == "address_not_allowed"


async def test_an_answer_is_for_the_requests_of_one_connection(ground: Ground) -> None:
    """In userspace networking the next connection from the same port may be anybody's."""
    port = free_port()

    async def connected() -> RawClient:
        sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((HERE, port))
        await asyncio.get_running_loop().sock_connect(sock, (HERE, urlsplit(ground.url).port))
        return RawClient(sock)

    async def livez(raw: RawClient) -> int:
        await raw.request("GET", "/livez")
        status = (await raw.head()).status
        await raw.body()
        return status

    ground.knows(edge())
    async with await connected() as first:
        assert await livez(first) == 200
        ground.knows(None)
        assert await livez(first) == 200
        first.reset()  # leaves the port free at once
    async with await connected() as second:
        assert await livez(second) == 403
    assert len({asked.query["addr"] for asked in ground.tailscaled.asked if "addr" in asked.query}) == 1


@pytest.mark.parametrize("path", ["/livez", "/v1/models", "/link"])
@pytest.mark.parametrize(("machine", "status"), [("stranger", 403), ("edge", 401), ("unknown", 503)])
async def test_who_is_refused_loses_the_connection(ground: Ground, machine: str, status: int, path: str) -> None:
    """Otherwise those who may not call could hold as many as the node can have."""
    ground.knows(None if machine == "stranger" else edge())
    if machine == "unknown":
        await ground.tailscaled.stop()
    headers = {"Authorization": "Bearer hln_wrong"}
    if path == "/link":
        headers |= UPGRADE
    async with await RawClient.connect(ground.url) as raw:
        await raw.request("GET", path, headers)
        head = await raw.head()
        if (machine, path) == ("edge", "/livez"):  # wants no token
            assert head.status == 200 and "connection" not in head.headers
            return
        assert (head.status, head.headers["connection"]) == (status, "close")
        await raw.body()
        await raw.closed_by_peer()


async def test_who_is_refused_hears_it_whatever_was_sent(ground: Ground) -> None:
    """A connection that is closed on a body that nobody has read is reset, and the answer is lost with it."""
    body = json.dumps(question("x" * 6_000_000)).encode()
    headers = {"Content-Type": "application/json", "Authorization": "Bearer hln_wrong"}
    for found, status in ((None, 403), (edge(), 401)):
        ground.knows(found)
        async with httpx2.AsyncClient(trust_env=False) as client:
            answer = await client.post(ground.url + CHAT, content=body, headers=headers)
        assert (answer.status_code, answer.headers["connection"]) == (status, "close")


async def test_the_role_of_an_admin_is_another_than_that_of_an_edge(ground: Ground) -> None:
    scope = {
        "state": {"listener": "tailnet", "connection": {}},
        "client": (HERE, 50000),
        "headers": [(b"authorization", f"Bearer {TOKEN}".encode())],
    }
    ground.knows(edge())
    await ground.admission.admit(scope)
    with pytest.raises(ApiError) as raised:
        await ground.admission.admit(scope, "admin")
    assert (raised.value.code, "tag:edge" in raised.value.message) == ("address_not_allowed", False)
    ground.knows(anna({"role": "admin"}))
    scope["state"]["connection"] = {}
    await ground.admission.admit(scope, "admin")


# -- while tailscaled is away ------------------------------------------------------------------------------------------


async def test_nobody_is_let_in_unknown(ground: Ground) -> None:
    ground.knows(edge())
    await ground.tailscaled.stop()
    for path in (CHAT, *GUARDED, *OPEN):
        status, headers, code = await ground.ask(path)
        assert (path, status, code) == (path, 503, "node_unavailable")
        assert "retry-after" in {name.lower() for name in headers}
    with pytest.raises(DialRefused) as refused:
        async with ground.link():
            pass
    assert refused.value.status == 503
    assert [line for line in ground.log if "cannot tell who calls from 127.0.0.1: " in line and "tailscaled" in line]
    assert not ground.runtime.chats
    await ground.tailscaled.restart()
    assert (await ground.ask(CHAT))[0] == 200


async def test_a_link_keeps_its_streams_and_takes_new_ones_once_tailscaled_is_back(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.admission._RETRY", 0.1)
    ground.knows(edge())
    ground.runtime.script = LONG
    body = json.dumps(STREAMED).encode()
    async with ground.link() as (session, running, _):
        running_reply = session.open(call(body))
        await running_reply.head()
        await ground.tailscaled.stop()

        async def refused() -> bool:
            reply = session.open(call(body))
            try:
                await reply.head()
            except ApiError as error:
                assert (error.code, error.status) == ("node_unavailable", 503)
                return True
            reply.cancel()
            return False

        async def until(wanted: bool) -> None:
            for _ in range(100):
                if await refused() is wanted:
                    return
                await asyncio.sleep(0.05)
            raise AssertionError(f"new streams were {'not ' if wanted else ''}refused for 5 s")

        await until(True)
        for _ in range(3):  # the stream goes on for as long as that lasts
            await running_reply.read()
            await asyncio.sleep(KEPT / 2)
        assert await refused()
        await ground.tailscaled.restart()
        await until(False)
        assert await running_reply.read()
        assert not running.done()


async def test_an_answer_goes_on_without_tailscaled(ground: Ground) -> None:
    ground.knows(edge())
    ground.runtime.script = normal(50, 0.02)
    async with ground.client.post(
        ground.url + CHAT, json=STREAMED, headers={"Authorization": f"Bearer {TOKEN}"}
    ) as response:
        await response.content.readline()
        await ground.tailscaled.stop()
        received = await response.content.read()
    assert events_of(received)[-1].data == "[DONE]"
    assert ground.node.services.turns.running == 0


# -- once the policy has changed ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [None, anna(), anna({"role": "chat"})])
async def test_a_link_that_is_let_in_no_more_is_closed_with_its_streams(
    ground: Ground, after: dict[str, Any] | None
) -> None:
    ground.knows(anna({"role": "infer"}))
    ground.runtime.script = LONG
    async with ground.link() as (session, running, transport):
        reply = session.open(call(json.dumps(STREAMED).encode()))
        await reply.head()
        await asyncio.sleep(KEPT * 2)
        assert not running.done(), "as long as the policy lets it in, it stays"
        ground.knows(after)
        await asyncio.wait_for(running, HANGS)
        assert transport.close_code == 1008
        with pytest.raises(ApiError) as raised:
            while await reply.read():
                pass
        assert raised.value.code == "upstream_incomplete"
    await ground.runtime.idle()
    await wait_until(lambda: any("does not let this machine call the node any more" in line for line in ground.log))
    assert [line for line in ground.log if "refused anna@example.com (127.0.0.1)" in line], "also whom it hides now"
    with pytest.raises(DialRefused) as refused:
        async with ground.link():
            pass
    assert refused.value.status == 403


async def test_what_is_granted_later_counts_at_once(ground: Ground) -> None:
    ground.knows(anna())
    assert (await ground.ask(CHAT))[0] == 403
    ground.knows(anna({"role": "infer"}))
    assert (await ground.ask(CHAT))[0] == 200


async def test_a_stream_that_is_let_in_no_more_ends_in_an_error(ground: Ground) -> None:
    ground.knows(anna({"role": "infer"}))
    ground.runtime.script = LONG
    async with ground.client.post(
        ground.url + CHAT, json=STREAMED, headers={"Authorization": f"Bearer {TOKEN}"}
    ) as response:
        await response.content.readline()
        ground.knows(anna())
        async with asyncio.timeout(HANGS):
            received = await response.content.read()
    last = events_of(received)[-1]
    assert json.loads(last.data)["error"]["code"] == "address_not_allowed"
    assert b"[DONE]" not in received
    await ground.runtime.idle()
    assert ground.node.services.turns.running == 0


async def test_a_whole_answer_that_is_let_in_no_more_is_refused(ground: Ground) -> None:
    ground.knows(anna({"role": "infer"}))
    ground.runtime.script = LONG
    asking = asyncio.create_task(ground.ask(CHAT))
    await ground.runtime.chat(0)
    ground.knows(None)
    assert (await asyncio.wait_for(asking, HANGS))[::2] == (403, "address_not_allowed")
    await ground.runtime.idle()


async def test_nobody_is_looked_up_any_more_once_the_link_or_the_answer_has_ended(ground: Ground) -> None:
    ground.knows(edge())
    async with ground.link():
        assert (await ground.ask(CHAT))[0] == 200
    await wait_until(lambda: "link to edge" in "".join(ground.log))
    before = len(ground.tailscaled.asked)
    await asyncio.sleep(KEPT * 3)
    assert len(ground.tailscaled.asked) == before
