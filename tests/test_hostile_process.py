"""A real edge after every kind of hostile request: it lives, it is as small as before, and its log can be read."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from bench import procfs
from tests.fake_runtime import FakeRuntime
from tests.pair import ORIGIN, question
from tests.processes import Processes, running_processes
from tests.raw_http import RawClient, encode_request
from tests.waiting import wait_until

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="memory and open files are read from /proc"),
]

NATIVE = "/v1/chat"
MIB = 1 << 20
# Of the caller's own making, and found again wherever it may not stand.
MARK = "mark" + secrets.token_hex(8)
_REQUESTS = re.compile(r"^hearthlink_edge_requests_total\{.*\} ([0-9.]+)$", re.MULTILINE)


@dataclass(frozen=True)
class Hostile:
    """One request, byte by byte, and the status and code that answer it."""

    data: bytes
    status: int
    code: str


def hostile(key: str) -> list[Hostile]:
    """One of each kind; no code more often than the log writes it in one second."""
    bearer = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    page = {"Content-Type": "application/json", "Origin": f"http://{MARK}.test"}
    good = json.dumps(question(MARK)).encode()

    def post(body: bytes = good, path: str = NATIVE, **headers: str) -> bytes:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return encode_request("POST", path, bearer | named, body)

    def get(path: str = "/v1/me", **headers: str) -> bytes:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return encode_request("GET", path, {"Authorization": f"Bearer {key}"} | named)

    return [
        Hostile(post(b"{" + MARK.encode()), 400, "invalid_json"),
        Hostile(post(b"[]"), 400, "invalid_json"),
        Hostile(post(b"[" * 100_000), 400, "invalid_json"),
        Hostile(post(b'{"seed":' + b"9" * 5000 + b"}"), 400, "invalid_json"),
        Hostile(post(b'{"%s":1,"%s":2}' % (MARK.encode(), MARK.encode())), 400, "invalid_json"),
        Hostile(post(b'{"messages":"\xff"}'), 400, "invalid_json"),
        Hostile(post(b'{"messages":"\\ud800"}'), 400, "invalid_json"),
        Hostile(post(json.dumps(question(MARK, temperature=MARK)).encode()), 400, "invalid_request"),
        Hostile(post(json.dumps(question(MARK, **{MARK: 1})).encode()), 400, "invalid_request"),
        Hostile(get(f"/v1/me?token={key}"), 400, "invalid_request"),
        Hostile(get(f"/v1/me?x=hlt_{MARK}"), 400, "invalid_request"),
        Hostile(post(b"", Content_Length=str(2 * MIB)), 413, "payload_too_large"),
        Hostile(post(Content_Encoding="gzip"), 415, "unsupported_media_type"),
        Hostile(post(Content_Type="text/plain"), 415, "unsupported_media_type"),
        Hostile(encode_request("PUT", NATIVE, bearer, good), 405, "method_not_allowed"),
        Hostile(get(f"/{MARK}/%0d%0a%1b%5b31m"), 404, "not_found"),
        Hostile(get("/v1/chat/completions/"), 404, "not_found"),
        Hostile(get("/../../etc/passwd"), 404, "not_found"),
        Hostile(get(Authorization=f"Bearer {key}{MARK}"), 401, "invalid_token"),
        Hostile(get(Authorization=f"Bearer hlt_{MARK}.{'A' * 43}"), 401, "invalid_token"),
        Hostile(get(Authorization=f"Basic {MARK}", X_Request_Id=f"\xff{MARK}\xfe"), 401, "invalid_token"),
        Hostile(get(Authorization=f"Bearer {MARK}", X_Request_Id=MARK * 200), 401, "invalid_token"),
        Hostile(get(Authorization=f"Bearer {MARK}", X_Request_Id=f'", "x": "{MARK}'), 401, "invalid_token"),
        Hostile(get(Authorization=f"Bearer {MARK}", User_Agent=MARK, Referer=MARK), 401, "invalid_token"),
        Hostile(post(b"{}", "/v1/token", Authorization="", Origin="null"), 401, "invalid_token"),
        Hostile(encode_request("POST", "/v1/token", page, b"{}"), 403, "origin_not_allowed"),
        Hostile(get(X_Request_Id=f"a\x1b[31m{MARK}"), 400, "invalid_request"),
        Hostile(get(X_Request_Id=f"a\r\n {MARK}"), 400, "invalid_request"),
        Hostile(f"GARBAGE {MARK}\r\n\r\n".encode(), 400, "invalid_request"),
        Hostile(post(Transfer_Encoding="chunked", Content_Length="9"), 400, "invalid_request"),
        Hostile(get("/" + "x" * (64 << 10)), 414, "uri_too_long"),
        Hostile(get(X_Large="x" * (100 << 10)), 431, "headers_too_large"),
        Hostile(get(**{f"X_{n}": MARK for n in range(1000)}), 431, "headers_too_large"),
    ]  # fmt: skip


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def edge(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Processes]:
    environ = {"HEARTHLINK_LOGS__LEVEL": "DEBUG"}
    async with (
        FakeRuntime() as runtime,
        running_processes(runtime.url, tmp_path_factory.mktemp("state"), environ=environ) as pair,
    ):
        yield pair


async def answered(pair: Processes, one: Hostile) -> str:
    """The request id of the refusal, which is checked."""
    async with await RawClient.connect(pair.url) as raw:
        sending = asyncio.create_task(raw.send(one.data))  # it may be refused before all of this has left
        head = await raw.head()
        body = await raw.body()
        await asyncio.gather(sending, return_exceptions=True)
    refusal = json.loads(body)
    assert (head.status, refusal["error"]["code"]) == (one.status, one.code), one.data[:200]
    assert head.headers["content-type"] == "application/json"
    assert head.headers["x-request-id"] == refusal["request_id"]
    assert re.fullmatch(r"[A-Za-z0-9_-]{22}", refusal["request_id"])
    assert b"Traceback" not in body and b'File \\"' not in body
    return refusal["request_id"]


async def counted(pair: Processes) -> int:
    """Requests that the edge has counted, by its own metrics."""
    async with pair.client.get(pair.edge.ops_url + "/metrics") as response:
        return round(sum(float(number) for number in _REQUESTS.findall(await response.text())))


def open_files(pair: Processes) -> int:
    return len(list(Path(f"/proc/{pair.edge.child.pid}/fd").iterdir()))


def audit_ids(pair: Processes) -> Counter[str]:
    return Counter(line["request_id"] for line in pair.edge.lines() if line.get("event") == "request")


@pytest.mark.case("A14", "A16", "B28")
async def test_each_has_one_readable_record_and_nothing_of_its_own_is_written(edge: Processes) -> None:
    kinds = hostile(edge.key)
    assert max(Counter(one.code for one in kinds).values()) <= 10, "the log writes no more in a second"
    before = await counted(edge)
    ids = {await answered(edge, one) for one in kinds}
    assert len(ids) == len(kinds)
    await wait_until(lambda: ids <= audit_ids(edge).keys(), what=lambda: ids - audit_ids(edge).keys())
    assert {number for request_id, number in audit_ids(edge).items() if request_id in ids} == {1}
    assert await counted(edge) - before == len(ids) + 1, "each of them, and the question about it"
    text = edge.edge.text()
    assert not re.search(r"[^\x20-\x7e\n]", text), "bytes that steer a terminal"
    assert all(isinstance(json.loads(line), dict) for line in text.splitlines())
    assert MARK not in text and edge.key not in text
    assert "Traceback" not in text and "internal_error" not in text


@pytest.mark.case("A3", "A12")
async def test_nothing_of_them_is_left_behind(edge: Processes) -> None:
    """Open files come back to what they were, and memory does not grow with the number of requests."""
    pid = edge.edge.child.pid

    async def round_of_all() -> None:
        for one in hostile(edge.key):
            await answered(edge, one)

    for _ in range(3):  # what is kept once is there
        await round_of_all()
    await wait_until(lambda: not edge.ledger().reserved)
    files, memory = open_files(edge), procfs.rss_bytes(pid)
    for _ in range(8):
        await round_of_all()
    await wait_until(lambda: open_files(edge) <= files, what=lambda: open_files(edge))
    assert procfs.rss_bytes(pid) - memory < 4 * MIB
    assert not edge.ledger().reserved
    async with edge.client.post(edge.url + NATIVE, json=question(), headers=edge.bearer()) as response:
        assert response.status == 200


@pytest.mark.case("A12")
async def test_headers_without_end_cost_no_memory(edge: Processes) -> None:
    """As much as each caller can push before it is cut off, from many at once."""
    pid = edge.edge.child.pid
    before = procfs.rss_bytes(pid)

    async def push(start: bytes, endless: bytes) -> None:
        async with await RawClient.connect(edge.url) as raw:
            with pytest.raises(ConnectionError):
                await raw.send(start)
                while True:
                    await raw.send(endless * (64 << 10))
                    await asyncio.sleep(0)

    begun = b"GET /livez HTTP/1.1\r\nHost: a\r\n"
    kinds = ((b"GET /", b"x"), (begun + b"X: ", b"y"), (begun, b"X: y\r\n"), (begun + b"X", b"z"))
    async with asyncio.timeout(30):
        await asyncio.gather(*(push(*kind) for kind in kinds for _ in range(10)))
    assert procfs.rss_bytes(pid) - before < 16 * MIB
    async with edge.client.get(edge.url + "/livez", headers={"Origin": ORIGIN}) as response:
        assert response.status == 200
