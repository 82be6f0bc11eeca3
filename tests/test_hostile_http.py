"""Connections that mean harm: slow, endless, malformed, too many. Each is answered or closed; nobody else notices."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from shared.settings import Settings
from tests.fake_runtime import FakeRuntime
from tests.fake_scripts import normal
from tests.invariants import unharmed
from tests.pair import Pair, question, running_pair
from tests.raw_http import RawClient, encode_request

pytestmark = pytest.mark.asyncio(loop_scope="module")

NATIVE = "/v1/chat"
LIMIT = 0.6  # seconds for headers and for a body
CLOSED_WITHIN = LIMIT + 3.0
GET = b"GET /livez HTTP/1.1\r\nHost: a\r\n"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def strict_pair(
    tmp_path_factory: pytest.TempPathFactory, quick_ticks: None
) -> AsyncIterator[tuple[Pair, FakeRuntime]]:
    edge = {"header_timeout": LIMIT, "body_timeout": LIMIT, "max_body": "16KiB"}
    state = tmp_path_factory.mktemp("state")
    async with FakeRuntime(slots=64) as runtime, running_pair(runtime.url, state=state, edge=edge) as pair:
        yield pair, runtime


@pytest.fixture
def strict(strict_pair: tuple[Pair, FakeRuntime]) -> tuple[Pair, FakeRuntime]:
    strict_pair[1].chats.clear()
    return strict_pair


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def nothing_is_left(strict_pair: tuple[Pair, FakeRuntime]) -> AsyncIterator[None]:
    async with unharmed(strict_pair[0]):
        yield


def post(pair: Pair, *lines: str, body: bytes = b"") -> bytes:
    """A chat request with these header lines instead of a Content-Length."""
    head = [f"POST {NATIVE} HTTP/1.1", "Host: a", "Content-Type: application/json"]
    return "\r\n".join([*head, f"Authorization: Bearer {pair.key}", *lines, "", ""]).encode() + body


async def refusal(pair: Pair, data: bytes, seconds: float = CLOSED_WITHIN) -> tuple[int, str]:
    """(status, code) of the envelope that answers ``data``; the connection must be closed after it."""
    async with await RawClient.connect(pair.url) as raw:
        await raw.send(data)
        head = await raw.head(seconds)
        answer = await raw.json()
        assert head.headers["connection"] == "close"
        assert head.headers["x-request-id"] == answer["request_id"]
        assert head.headers["x-frame-options"] == "DENY"
        await raw.closed_by_peer(1)
        return head.status, answer["error"]["code"]


@pytest.mark.case("A8")
@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"GARBAGE\r\n\r\n", id="garbage"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(50), id="TLS"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", id="HTTP/2"),
        pytest.param(b"GET /livez HTTP/1.2\r\nHost: a\r\n\r\n", id="HTTP/1.2"),
        pytest.param(b"FOO /livez HTTP/1.1\r\nHost: a\r\n\r\n", id="unknown method"),
        pytest.param(b"GET /livez HTTP/1.1\nHost: a\n\n", id="bare LF"),
        pytest.param(GET + b"X : y\r\n\r\n", id="space before colon"),
        pytest.param(GET + b"X: y\r\n z\r\n\r\n", id="folded header"),
        pytest.param(GET + b"X: a\rb\r\n\r\n", id="CR in a header"),
        pytest.param(GET + b"X: a\0b\r\n\r\n", id="NUL in a header"),
        pytest.param(GET + b"no colon\r\n\r\n", id="no colon"),
        pytest.param(b"GET /\xff\xfe HTTP/1.1\r\nHost: a\r\n\r\n", id="bytes in the path"),
        pytest.param(b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n", id="CONNECT"),
    ],
)
async def test_what_is_not_http(strict: tuple[Pair, FakeRuntime], data: bytes) -> None:
    assert await refusal(strict[0], data) == (400, "invalid_request")


CHUNKED = "Transfer-Encoding: chunked"


@pytest.mark.case("A8")
@pytest.mark.parametrize(
    ("lines", "body"),
    [
        pytest.param(["Content-Length: 2", CHUNKED], b"0\r\n\r\n", id="length and chunks"),
        pytest.param(["Content-Length: 2", "Content-Length: 3"], b"{}", id="two lengths"),
        pytest.param(["Content-Length: 2, 2"], b"{}", id="a list of lengths"),
        pytest.param(["Content-Length: -1"], b"{}", id="a negative length"),
        pytest.param(["Content-Length: +2"], b"{}", id="a signed length"),
        pytest.param(["Content-Length: 0x2"], b"{}", id="a hexadecimal length"),
        pytest.param(["Content-Length: 99999999999999999999999"], b"{}", id="an overflowing length"),
        pytest.param(["Transfer-Encoding: xchunked"], b"0\r\n\r\n", id="xchunked"),
        pytest.param(["Transfer-Encoding: chunked, identity"], b"0\r\n\r\n", id="chunked is not last"),
        pytest.param(["Transfer-Encoding : chunked"], b"0\r\n\r\n", id="space before colon"),
        pytest.param([CHUNKED], b"2\n{}\n0\n\n", id="chunks with bare LF"),
        pytest.param([CHUNKED], b"ffffffffffffffffff\r\n{}", id="an overflowing chunk"),
        pytest.param([CHUNKED], b"-2\r\n{}\r\n0\r\n\r\n", id="a negative chunk"),
        pytest.param([CHUNKED], b"zz\r\n{}\r\n0\r\n\r\n", id="a chunk without a size"),
        pytest.param([CHUNKED], b"2\r\n{}xx\r\n0\r\n\r\n", id="a chunk longer than it says"),
    ],
)
async def test_framing_that_two_servers_could_read_differently(
    strict: tuple[Pair, FakeRuntime], lines: list[str], body: bytes
) -> None:
    pair, runtime = strict
    assert await refusal(pair, post(pair, *lines, body=body)) == (400, "invalid_request")
    assert not runtime.chats


@pytest.mark.case("A8")
@pytest.mark.parametrize(
    "lines",
    [
        ["Authorization: Bearer hlk_nobody"],
        ["X-API-Key: hlk_nobody", "X-API-Key: hlk_nobody"],
        ["Origin: http://app.test", "oRIGIN: http://evil.test"],
        ["Content-Type: text/plain"],
        ["Content-Encoding: identity", "Content-Encoding: gzip"],
    ],
)
async def test_a_header_that_decides_stands_there_once(strict: tuple[Pair, FakeRuntime], lines: list[str]) -> None:
    """Of two, a proxy may have checked the one and the edge would believe the other."""
    pair, runtime = strict
    body = json.dumps(question()).encode()
    assert await refusal(pair, post(pair, *lines, f"Content-Length: {len(body)}", body=body)) == (
        400,
        "invalid_request",
    )
    assert not runtime.chats


@pytest.mark.case("A12")
@pytest.mark.parametrize(
    ("data", "answer"),
    [
        pytest.param(GET + b"".join(b"X-%d: y\r\n" % i for i in range(64)) + b"\r\n", 431, id="65 headers"),
        pytest.param(GET + b"X: " + b"y" * (16 << 10) + b"\r\n\r\n", 431, id="16 KiB in one header"),
        pytest.param(GET + b"".join(b"X: " + b"y" * 1000 + b"\r\n" for _ in range(17)) + b"\r\n", 431, id="in 17"),
        pytest.param(GET + b"X: " + b"y" * 200_000, 431, id="a header without end"),
        pytest.param(GET + b"X: y\r\n" * 50_000, 431, id="headers without end"),
        pytest.param(b"GET /" + b"x" * (8 << 10) + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414, id="8 KiB of URL"),
        pytest.param(b"GET /?" + b"x" * 200_000, 414, id="a URL without end"),
    ],
)
async def test_caps_on_what_stands_before_a_body(strict: tuple[Pair, FakeRuntime], data: bytes, answer: int) -> None:
    code = {431: "headers_too_large", 414: "uri_too_long"}[answer]
    async with await RawClient.connect(strict[0].url) as raw:
        sending = asyncio.create_task(raw.send(data))  # it is answered before all of this has left
        head = await raw.head()
        assert (head.status, (await raw.json())["error"]["code"]) == (answer, code)
        await asyncio.gather(sending, return_exceptions=True)


async def test_what_fits_the_caps_is_answered(strict: tuple[Pair, FakeRuntime]) -> None:
    many = GET + b"".join(b"X-%d: y\r\n" % i for i in range(63)) + b"\r\n"
    large = GET + b"X: " + b"y" * 16_000 + b"\r\n\r\n"
    long = b"GET /livez?" + b"x" * 8000 + b" HTTP/1.1\r\nHost: a\r\n\r\n"
    for data in (many, large, long):
        async with await RawClient.connect(strict[0].url) as raw:
            await raw.send(data)
            assert (await raw.head()).status == 200


@pytest.mark.parametrize(
    "endless",
    [
        pytest.param(b"X: y\r\n" * 50, id="trailers"),
        pytest.param(b"X" * 300, id="one trailer"),
    ],
)
async def test_trailers_without_end(strict: tuple[Pair, FakeRuntime], endless: bytes) -> None:
    pair, runtime = strict
    async with await RawClient.connect(pair.url) as raw:
        await raw.send(post(pair, CHUNKED, body=b"2\r\n{}\r\n"))
        await asyncio.sleep(0.05)
        sent = 0
        await raw.send(b"0\r\n")
        with pytest.raises(ConnectionError):
            async with asyncio.timeout(CLOSED_WITHIN):
                while True:
                    await raw.send(endless)
                    sent += len(endless)
                    await asyncio.sleep(0)
        assert sent < 8 << 20
    assert not runtime.chats


async def test_a_trailer_is_no_header(strict: tuple[Pair, FakeRuntime]) -> None:
    pair, _ = strict
    body = json.dumps(question()).encode()
    chunks = b"%x\r\n%s\r\n0\r\nAccept: text/event-stream\r\nX-Request-Id: chosen-later\r\n\r\n" % (len(body), body)
    async with await RawClient.connect(pair.url) as raw:
        await raw.send(post(pair, CHUNKED, body=chunks))
        head = await raw.head()
        assert (head.status, head.headers["content-type"]) == (200, "application/json")
        assert head.headers["x-request-id"] != "chosen-later"


async def test_a_body_in_many_small_chunks_is_a_body(strict: tuple[Pair, FakeRuntime]) -> None:
    pair, _ = strict
    body = json.dumps(question("x" * 3000)).encode()
    chunks = b"".join(b"1;why=not\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    async with await RawClient.connect(pair.url) as raw:
        await raw.send(post(pair, CHUNKED, body=chunks))
        assert (await raw.head()).status == 200


@pytest.mark.case("A6")
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(
    ("line", "piece"),
    [
        ("Transfer-Encoding: chunked", b"10000\r\n" + b"x" * 65536 + b"\r\n"),
        ("Content-Length: 9999999999", b"x" * 65536),
    ],
)
async def test_a_body_that_was_refused_is_not_read_on(
    strict: tuple[Pair, FakeRuntime], line: str, piece: bytes, known: bool
) -> None:
    """Not even thrown away: reading gigabytes for nobody is work too. The answer is there before the end of it."""
    pair, _ = strict
    head = post(pair, line) if known else post(pair, line).replace(pair.key.encode(), b"hlk_nobody")
    sent = 0
    async with await RawClient.connect(pair.url) as raw:

        async def send_on() -> None:
            nonlocal sent
            while True:
                await raw.send(piece)
                sent += len(piece)

        await raw.send(head)
        sending = asyncio.create_task(send_on())
        answer = await raw.head()
        assert (answer.status, (await raw.json())["error"]["code"]) == (
            (413, "payload_too_large") if known else (401, "invalid_token")
        )
        with pytest.raises(ConnectionError):
            async with asyncio.timeout(CLOSED_WITHIN):
                await sending
    assert sent < 32 << 20  # most of it waits in the kernel's buffers


@pytest.mark.case("A6")
async def test_a_usual_body_that_was_refused_is_read_away(strict: tuple[Pair, FakeRuntime]) -> None:
    """So that a caller who sends all of it before reading gets the answer, and can go on with the connection."""
    async with await RawClient.connect(strict[0].url) as raw:
        for _ in range(3):
            await raw.post(NATIVE, b" " * (1 << 20), {"Authorization": "Bearer hlk_nobody"})
            assert (await raw.head()).status == 401
            assert (await raw.json())["error"]["code"] == "invalid_token"
        await raw.send(GET + b"\r\n")
        assert (await raw.head()).status == 200


@pytest.mark.case("A7", "A10", "A11")
async def test_silence_is_answered_408_and_closed(strict: tuple[Pair, FakeRuntime]) -> None:
    pair, runtime = strict

    async def silent(data: bytes, trickle: bytes = b"") -> None:
        began = time.monotonic()
        async with await RawClient.connect(pair.url) as raw:
            await raw.send(data)
            sending = asyncio.create_task(raw.trickle(trickle, 0.1))
            try:
                head = await raw.head(CLOSED_WITHIN)
                assert (head.status, (await raw.json())["error"]["code"]) == (408, "request_timeout"), data
                assert time.monotonic() - began >= LIMIT
                await raw.closed_by_peer()
            finally:
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)

    await asyncio.gather(
        silent(b""),
        silent(b"GET /li"),
        silent(GET),
        silent(GET + b"X: ", trickle=b"y" * 1000),
        silent(post(pair, "Content-Length: 100", body=b"{")),
        silent(post(pair, "Content-Length: 100"), trickle=b" " * 99),
        silent(post(pair, CHUNKED, body=b"5\r\n{}")),
        silent(post(pair, CHUNKED), trickle=b"1\r\nx\r\n" * 100),
    )
    assert not runtime.chats


@pytest.mark.case("A7", "A9", "A10", "A11")
async def test_the_deadlines_that_are_promised() -> None:
    """The tests here wait for shorter ones."""
    assert (Settings().edge.header_timeout, Settings().edge.body_timeout) == (10, 20)


async def test_who_was_too_slow_is_in_the_record(strict: tuple[Pair, FakeRuntime]) -> None:
    """One line each, with the outcome: also of a body that the chat was waiting for. A connection on which nothing was
    sent leaves none: browsers make them in advance."""
    pair, _ = strict
    pair.audit.clear()

    async def silent(data: bytes) -> str:
        async with await RawClient.connect(pair.url) as raw:
            await raw.send(data)
            return (await raw.head(CLOSED_WITHIN)).headers["x-request-id"]

    ids = await asyncio.gather(silent(GET), silent(post(pair, "Content-Length: 9")), silent(b""))
    lines = [(line["route"], line["status"], line["outcome"]) for line in pair.audit]
    assert sorted(lines) == [(NATIVE, 408, "request_timeout"), ("other", 408, "request_timeout")]
    assert ids[0] in {line["request_id"] for line in pair.audit}


async def test_an_idle_connection_is_kept(strict: tuple[Pair, FakeRuntime]) -> None:
    """The deadline is for a request that has begun; between two, a connection may rest."""
    async with await RawClient.connect(strict[0].url) as raw:
        for pause in (LIMIT * 2, 0):
            await raw.send(GET + b"\r\n")
            assert (await raw.head()).status == 200
            assert await raw.json() == {"status": "ok"}
            await asyncio.sleep(pause)
        await raw.send(b"GET /li")  # begun
        assert (await raw.head(CLOSED_WITHIN)).status == 408


@pytest.mark.case("A9")
async def test_500_trickling_connections_are_closed_while_a_healthy_caller_goes_on(
    strict: tuple[Pair, FakeRuntime],
) -> None:
    pair, runtime = strict
    runtime.script = normal(5, 0.01)

    async def trickle() -> float:
        """Seconds until this connection was closed; it sends a byte every 0.2 s and never a whole header."""
        began = time.monotonic()
        async with await RawClient.connect(pair.url) as raw:
            sending = asyncio.create_task(raw.trickle(GET + b"X: " + b"y" * 1000, 0.2))
            try:
                await raw.closed_by_peer(CLOSED_WITHIN + 2)
            finally:
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
        return time.monotonic() - began

    slow = [asyncio.create_task(trickle()) for _ in range(500)]
    answered = 0
    while not all(task.done() for task in slow):
        async with pair.post(NATIVE, question(stream=True)) as response:
            assert (await response.read()).endswith(b"[DONE]\n\n")
        answered += 1
    lived = [await task for task in slow]
    assert min(lived) >= LIMIT
    assert max(lived) < CLOSED_WITHIN + 2
    assert answered >= 3, "the healthy caller waited for them"
    runtime.script = "normal"


@pytest.mark.case("A17")
async def test_50_pipelined_requests_are_answered_in_order(strict: tuple[Pair, FakeRuntime]) -> None:
    pair, _ = strict
    ids = [f"pipelined-{number:03}" for number in range(50)]
    body = json.dumps(question()).encode()
    requests = []
    for number, one in enumerate(ids):
        headers = {"X-Request-Id": one, "Content-Type": "application/json", **pair.bearer()}
        if number % 3 == 0:
            requests.append(encode_request("POST", NATIVE, headers, body))
        elif number % 3 == 1:
            requests.append(encode_request("GET", "/v1/me", headers))
        else:
            requests.append(encode_request("GET", "/nope", headers))
    async with await RawClient.connect(pair.url) as raw:
        await raw.send(b"".join(requests))
        for number, one in enumerate(ids):
            head = await raw.head()
            assert head.headers["x-request-id"] == one
            assert head.status == (200, 200, 404)[number % 3]
            answer = await raw.json()
            assert answer.get("request_id", one) == one
            assert ("choices" in answer, "principal" in answer, "error" in answer).index(True) == number % 3


async def test_garbage_behind_a_running_stream_never_looks_like_part_of_it(tmp_path: Path) -> None:
    async with FakeRuntime("slow") as runtime, running_pair(runtime.url, state=tmp_path) as pair:
        async with await RawClient.connect(pair.url) as raw:
            await raw.post(NATIVE, question(stream=True), pair.bearer())
            await raw.head()
            stream = await raw.read_until(b"one ")
            await raw.send(b"GARBAGE\r\n\r\n")
            with pytest.raises((EOFError, ConnectionError)):
                while piece := await raw.read_some():
                    stream += piece
        assert b"HTTP/1.1" not in stream
        await (await runtime.chat(0)).peer_left()
        await pair.idle()


@pytest.mark.case("A8")
async def test_requests_with_a_few_bytes_changed_are_answered_or_refused(strict: tuple[Pair, FakeRuntime]) -> None:
    """Whatever they turn into: never an error of the edge's own, never silence. Changed by a fixed seed."""
    pair, _ = strict
    dice = random.Random(6)
    body = json.dumps(question()).encode()
    chunks = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    good = (
        GET + b"\r\n",
        post(pair, f"Content-Length: {len(body)}", body=body),
        post(pair, CHUNKED, body=chunks),
        encode_request("DELETE", NATIVE + "/some-chat", pair.bearer()),
        encode_request("OPTIONS", NATIVE, {"Origin": "http://app.test", "Access-Control-Request-Method": "POST"}),
    )
    bits = (
        b"",
        b"\r",
        b"\n",
        b"\r\n",
        b"\0",
        b"\xff",
        b":",
        b" ",
        b"\t",
        b"0",
        b"%",
        b"/",
        b"X: y\r\n",
        b"Host: b\r\n",
    )

    def changed(data: bytes) -> bytes:
        for _ in range(dice.randint(1, 3)):
            at = dice.randrange(len(data))
            data = data[:at] + dice.choice(bits) + data[at + dice.randrange(3) :]
        return data

    async def status(data: bytes) -> int:
        async with await RawClient.connect(pair.url) as raw:
            await raw.send(data)
            return (await raw.head(CLOSED_WITHIN)).status

    for _ in range(6):
        requests = [changed(dice.choice(good)) for _ in range(100)]
        found = await asyncio.gather(*map(status, requests))
        assert all(number in (200, 204) or 400 <= number < 500 for number in found), found


@pytest.mark.parametrize("path", ["/link", "/v1/chat", "/"])
async def test_there_is_no_websocket_at_the_edge(strict: tuple[Pair, FakeRuntime], path: str) -> None:
    upgrade = {
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Protocol": "hearthlink.v1",
    }
    assert await refusal(strict[0], encode_request("GET", path, upgrade)) == (404, "not_found")


WEBSOCKET = (
    b"GET /x HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
QUESTION = json.dumps(question()).encode()
H2C = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__")
FRAMED = pytest.mark.parametrize("framing", [b"Content-Length: 10\r\n", b"Transfer-Encoding: chunked\r\n"])


@FRAMED
async def test_a_handshake_with_a_body_is_refused(strict: tuple[Pair, FakeRuntime], framing: bytes) -> None:
    assert await refusal(strict[0], WEBSOCKET + framing + b"\r\n") == (400, "invalid_request")


@FRAMED
async def test_a_handshake_that_the_node_cannot_read_is_refused(
    strict: tuple[Pair, FakeRuntime], framing: bytes
) -> None:
    """The node has a WebSocket, and uvicorn answers nothing where its reader gives up."""
    url = strict[0].node.listener.url
    for wrong in (WEBSOCKET + framing, WEBSOCKET + b"X: %s\r\n" % (b"y" * 9000)):
        async with await RawClient.connect(url) as raw:
            await raw.send(wrong + b"\r\n")
            assert (await raw.head(CLOSED_WITHIN)).status == 400
            assert (await raw.json())["error"]["code"] == "invalid_request"
            await raw.closed_by_peer(1)


async def test_a_body_behind_an_offer_of_http2_is_no_second_request(strict: tuple[Pair, FakeRuntime]) -> None:
    """The parser ends a request that offers another protocol at its headers."""
    pair, runtime = strict
    smuggled = encode_request("GET", "/v1/me", pair.bearer())
    assert await refusal(pair, post(pair, *H2C, f"Content-Length: {len(smuggled)}", body=smuggled)) == (
        400,
        "invalid_request",
    )
    assert not runtime.chats


async def test_an_offer_of_http2_is_passed_over_and_the_connection_closed(strict: tuple[Pair, FakeRuntime]) -> None:
    """What comes behind it may be meant as HTTP/2: it is not answered as if it were HTTP/1.1."""
    async with await RawClient.connect(strict[0].url) as raw:
        await raw.send(GET + "\r\n".join([*H2C, "", ""]).encode() + GET + b"\r\n")
        head = await raw.head()
        assert (head.status, head.headers["connection"]) == (200, "close")
        assert await raw.json() == {"status": "ok"}
        await raw.closed_by_peer(1)


@pytest.mark.parametrize("behind", [WEBSOCKET + b"\r\n", GET + b"X : y\r\n\r\n"], ids=["handshake", "malformed"])
async def test_what_may_not_stand_behind_a_chat_is_not_answered_in_its_place(
    strict: tuple[Pair, FakeRuntime], behind: bytes
) -> None:
    pair, _ = strict
    async with await RawClient.connect(pair.url) as raw:
        await raw.send(post(pair, f"Content-Length: {len(QUESTION)}", body=QUESTION) + behind)
        head = await raw.head()
        assert (head.status, head.headers["connection"]) == (200, "close")
        assert "choices" in await raw.json()
        await raw.closed_by_peer(1)


@pytest.mark.parametrize("behind", [WEBSOCKET + b"\r\n", GET + b"X : y\r\n\r\n"], ids=["handshake", "malformed"])
async def test_a_chat_does_not_run_on_for_nobody(tmp_path: Path, behind: bytes) -> None:
    """Whatever stands behind it, its caller's leaving is noticed."""
    async with FakeRuntime("stall_mid_stream") as runtime, running_pair(runtime.url, state=tmp_path) as pair:
        async with await RawClient.connect(pair.url) as raw:
            await raw.post(NATIVE, question(stream=False), pair.bearer())
            exchange = await runtime.chat(0)
            await raw.send(behind)
            with pytest.raises(TimeoutError):
                await raw.head(0.3)
        await exchange.peer_left()
        await pair.idle()
