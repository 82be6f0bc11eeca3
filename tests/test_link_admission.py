"""Who is let in to the node's /link, and what happens to a client that is in and breaks the protocol, or
is let in no more (design §3.8)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
from typing import Any

import aiohttp
import pytest

from shared.contract.errors import ApiError
from shared.link import SUBPROTOCOL, frames
from shared.link.frames import Kind, pack, pack_json
from shared.link.session import LinkClosed
from shared.link.transports import DialledTransport
from tests.link_answers import Slow
from tests.link_client import HELLO, closing_code, dial, token_of
from tests.linked import BOTH, EDGE_HELLO, MemoryTransport, call, linked, node_session, pack_call
from tests.pair import Pair
from tests.waiting import HANGS, wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.parametrize(
    ("changes", "status", "code"),
    [
        ({"headers": {"Origin": "http://127.0.0.1"}}, 403, "origin_not_allowed"),
        ({"headers": {"Origin": "null"}, "token": "hln_wrong"}, 403, "origin_not_allowed"),
        ({"headers": {"Host": "rebound.test"}}, 403, "address_not_allowed"),
        ({"headers": {"Host": "rebound.test:8001"}, "token": "hln_wrong"}, 403, "address_not_allowed"),
        ({"token": "hln_wrong"}, 401, "invalid_token"),
        ({"headers": {"Authorization": "Basic aGk6aGk="}}, 401, "invalid_token"),
        ({"headers": {"Authorization": ""}}, 401, "invalid_token"),
        ({"headers": {"Authorization": None}}, 401, "missing_token"),
        ({"protocols": ()}, 400, "invalid_request"),
        ({"protocols": ("hearthlink.v2",)}, 400, "invalid_request"),
    ],
)  # fmt: skip
async def test_who_is_not_admitted_to_link_gets_the_envelope(
    shared_pair: Pair, changes: dict[str, Any], status: int, code: str
) -> None:
    options = {"token": token_of(shared_pair), "protocols": (SUBPROTOCOL,), **changes}
    handshake = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        "Authorization": f"Bearer {options['token']}",
        **({"Sec-WebSocket-Protocol": ", ".join(options["protocols"])} if options["protocols"] else {}),
        **options.get("headers", {}),
    }
    sent = {name: value for name, value in handshake.items() if value is not None}
    url = f"http://127.0.0.1:{shared_pair.node.listener.port}/link"
    async with shared_pair.client.get(url, headers=sent) as response:
        assert response.status == status
        body = await response.json()
        assert body["error"]["code"] == code
        assert body["request_id"] == response.headers["x-request-id"]
        assert response.headers["x-content-type-options"] == "nosniff"
        assert "hln_wrong" not in json.dumps(body)
    assert len(shared_pair.node.link.sessions) == 1


async def test_a_refused_handshake_is_no_error_of_the_server(
    shared_pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    """The node's own line about it is limited, this one would be written as often as somebody asks."""
    with pytest.raises(aiohttp.WSServerHandshakeError):
        async with dial(shared_pair, token="hln_wrong"):
            pass
    async with shared_pair.client.get(shared_pair.node.listener.url + "/livez") as response:
        assert response.status == 200  # the server has had its turn
    assert not [record for record in caplog.records if record.name.startswith("uvicorn")]


@pytest.mark.parametrize(
    ("messages", "code"),
    [
        ([b"\0"], 1002),
        ([b"\xff" * 5000], 1002),
        ([HELLO, b"\xff" * 5000], 1002),
        ([HELLO, b""], 1002),
        ([HELLO, pack(1, Kind.OPEN, b"\xff" * 100)], 1002),
        ([HELLO, pack(1, Kind.OPEN, b"\0\0\0\x02[]")], 1002),
        ([HELLO, pack_json(0, Kind.SNAPSHOT, {})], 1002),
        ([HELLO, HELLO], 1002),
        ([HELLO, pack(0, Kind.PING, b"{}") * 100_000], 1002),
        ([pack_json(0, Kind.HELLO, {**EDGE_HELLO.to_wire(), "protocol": 2})], 4400),
        (["text"], 1002),
    ],
)  # fmt: skip
async def test_a_client_that_breaks_the_protocol_loses_its_own_link(
    shared_pair: Pair, messages: list[Any], code: int
) -> None:
    async with dial(shared_pair) as socket:
        with contextlib.suppress(ConnectionError):  # closed before the last byte was written
            for message in messages:
                await (socket.send_str(message) if isinstance(message, str) else socket.send_bytes(message))
        assert await closing_code(socket) == code
    await wait_until(lambda: len(shared_pair.node.link.sessions) == 1)
    assert shared_pair.edge.services.upstreams.ready


async def test_a_message_that_is_too_long_is_refused_by_its_header(shared_pair: Pair) -> None:
    async with dial(shared_pair) as socket:
        await socket.send_bytes(HELLO)
        # A masked binary message that promises one byte too much, and not a byte of it.
        socket._writer.transport.write(struct.pack("!BBQ", 0x82, 0xFF, frames.MAX_WIRE_BYTES + 1) + bytes(4))
        assert await closing_code(socket) == 1009


async def test_another_version_is_told_which_side_to_upgrade(shared_pair: Pair) -> None:
    async with dial(shared_pair) as socket:
        await socket.send_bytes(pack_json(0, Kind.HELLO, {**EDGE_HELLO.to_wire(), "protocol": 2}))
        async with asyncio.timeout(HANGS):
            while (message := await socket.receive()).type is aiohttp.WSMsgType.BINARY:
                pass
        assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, 4400)
        assert "upgrade Hearthlink on this side" in str(message.extra)


# -- a link that is up, and let in no more -----------------------------------------------------------------------------


@BOTH
async def test_a_link_is_closed_with_the_code_and_the_reason_it_is_given(over: str) -> None:
    slow = Slow()
    async with linked(over, slow) as link:
        reply = link.edge.open(call())
        await slow.begun.wait()
        link.node.close(LinkClosed("the policy has changed", 1008))
        assert link.node_run is not None
        ended = await asyncio.wait_for(link.node_run, HANGS)
        assert (ended.code, ended.reason) == (1008, "the policy has changed")
        await asyncio.wait_for(reply.ended(), HANGS)
        assert slow.cancelled == 1
        if isinstance(link.node_transport, MemoryTransport):
            assert link.node_transport.closed_with == (1008, "the policy has changed")
        else:
            assert isinstance(link.edge_transport, DialledTransport)
            assert link.edge_transport.close_code == 1008


async def test_a_link_that_refuses_answers_new_streams_with_the_error_and_runs_the_others() -> None:
    slow = Slow()
    async with node_session(slow) as (node, peer, _):
        await peer.send(pack_call(1, call()))
        await slow.begun.wait()
        node.refusing = ApiError("node_unavailable", "Nobody can say who calls.")
        await peer.send(pack_call(2, call()))
        stream, _, payload = await peer.frame(Kind.ERROR)
        assert (stream, frames.read_json(payload)["code"]) == (2, "node_unavailable")
        assert (node.streams, slow.cancelled) == (1, 0)
        assert node.refusing.__traceback__ is None, "it holds nothing of the streams that were refused with it"
        node.refusing = None
        await peer.send(pack_call(3, call()))
        assert (await peer.frame(Kind.HEAD))[0] == 3
