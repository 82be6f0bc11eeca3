"""What browsers and scanners look at: CORS for SDKs in pages, and security headers on every answer."""

from __future__ import annotations

import pytest

from tests.fake_runtime import FakeRuntime
from tests.pair import ORIGIN, Pair, question
from tests.raw_http import RawClient

pytestmark = pytest.mark.asyncio(loop_scope="module")

# What openai-node 6 sends from a page, and what its other versions and our own client add.
SDK_HEADERS = (
    "authorization,content-type,accept,x-stainless-arch,x-stainless-lang,x-stainless-os,x-stainless-package-version,"
    "x-stainless-retry-count,x-stainless-runtime,x-stainless-runtime-version,x-stainless-timeout,"
    "x-stainless-helper-method,openai-organization,openai-project,idempotency-key,x-request-id,x-api-key"
)
EXPOSED = {
    "x-request-id",
    "retry-after",
    "x-should-retry",
    "hearthlink-chat-id",
    "hearthlink-dropped-params",
    *(f"x-ratelimit-{what}-{unit}" for what in ("limit", "remaining", "reset") for unit in ("requests", "tokens")),
}
SECURITY = {"x-frame-options": "DENY", "x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/chat", "/v1/token", "/v1/models", "/v1/chat/some-id"])
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
async def test_a_preflight_of_an_sdk_in_a_page(shared_pair: Pair, path: str, method: str) -> None:
    headers = {
        "Origin": ORIGIN,
        "Access-Control-Request-Method": method,
        "Access-Control-Request-Headers": SDK_HEADERS,
    }
    async with shared_pair.client.options(shared_pair.url + path, headers=headers) as response:
        assert response.status == 200
        assert response.headers["access-control-allow-origin"] == ORIGIN
        assert method in response.headers["access-control-allow-methods"]
        allowed = {name.strip().lower() for name in response.headers["access-control-allow-headers"].split(",")}
        assert set(SDK_HEADERS.split(",")) <= allowed
        assert "access-control-allow-credentials" not in response.headers
        assert int(response.headers["access-control-max-age"]) > 600


@pytest.mark.parametrize("origin", ["http://evil.test", "http://app.test.evil.test", "http://APP.test", "null"])
async def test_another_origin_is_told_nothing(shared_pair: Pair, origin: str) -> None:
    headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    async with shared_pair.client.options(shared_pair.url + "/v1/chat", headers=headers) as response:
        assert response.status == 400
        assert "access-control-allow-origin" not in response.headers


@pytest.mark.parametrize("stream", [False, True])
async def test_a_page_can_read_answer_and_headers(shared_pair: Pair, stream: bool) -> None:
    token = await shared_pair.token()
    payload = question(stream=stream)
    async with shared_pair.post("/v1/chat", payload, key=token, headers={"Origin": ORIGIN}) as response:
        await response.read()
        assert response.status == 200
        assert response.headers["access-control-allow-origin"] == ORIGIN
        assert "Origin" in response.headers["vary"]
        exposed = {name.strip().lower() for name in response.headers["access-control-expose-headers"].split(",")}
        assert exposed == EXPOSED


async def test_a_page_can_read_errors_too(shared_pair: Pair) -> None:
    async with shared_pair.post("/v1/chat", {}, headers={"Origin": ORIGIN}) as response:
        assert response.status == 400
        assert response.headers["access-control-allow-origin"] == ORIGIN
        assert "x-request-id" in response.headers["access-control-expose-headers"].lower()


async def requested(pair: Pair, method: str, path: str, headers: dict[str, str], body: bytes = b"") -> tuple[int, dict]:
    async with await RawClient.connect(pair.url) as raw:
        await raw.request(method, path, headers, body)
        head = await raw.head()
        return head.status, dict(head.headers)


@pytest.mark.parametrize(
    ("method", "path", "headers", "body", "status"),
    [
        ("GET", "/livez", {}, b"", 200),
        ("GET", "/readyz", {}, b"", 200),
        ("GET", "/healthz", {}, b"", 200),
        ("GET", "/health", {}, b"", 200),
        ("GET", "/metrics", {}, b"", 404),
        ("GET", "/nope", {}, b"", 404),
        ("GET", "/", {}, b"", 200),
        ("GET", "/v1/chat", {}, b"", 405),
        ("PUT", "/v1/token", {}, b"", 405),
        ("GET", "/v1/me", {}, b"", 401),
        ("GET", "/v1/me", {"Authorization": "Bearer KEY"}, b"", 200),
        ("GET", "/v1/models", {"Authorization": "Bearer KEY"}, b"", 200),
        ("GET", "/v1/models/x", {"Authorization": "Bearer KEY"}, b"", 404),
        ("DELETE", "/v1/chat/x", {"Authorization": "Bearer KEY"}, b"", 404),
        ("POST", "/v1/token", {"Content-Type": "application/json"}, b"{}", 403),
        ("POST", "/v1/token", {"Content-Type": "application/json", "Origin": ORIGIN}, b"{}", 200),
        ("POST", "/v1/chat", {"Authorization": "Bearer KEY"}, b"{}", 415),
        ("POST", "/v1/chat", {"Authorization": "Bearer KEY", "Content-Type": "application/json"}, b"{", 400),
        ("POST", "/v1/chat", {"Content-Length": "9999999", "Content-Type": "application/json"}, b"", 401),
        ("OPTIONS", "/v1/chat", {"Origin": ORIGIN, "Access-Control-Request-Method": "POST"}, b"", 200),
        ("GET", "/" + "x" * 9000, {}, b"", 414),
        ("GET", "/livez", {"X-Large": "x" * 17000}, b"", 431),
        ("GET", "/livez", {"Bad Header": "x"}, b"", 400),
    ],
)
async def test_security_headers_and_an_id_are_on_every_answer(
    shared_pair: Pair, method: str, path: str, headers: dict[str, str], body: bytes, status: int
) -> None:
    headers = {name: value.replace("KEY", shared_pair.key) for name, value in headers.items()}
    got, answered = await requested(shared_pair, method, path, headers, body)
    assert got == status
    assert SECURITY.items() <= answered.items()
    assert len(answered["x-request-id"]) == 22
    assert "server" not in answered


@pytest.mark.parametrize("path", ["/v1/chat", "/v1/chat/completions"])
@pytest.mark.parametrize("script", ["normal", "bad_gateway", "eof_without_done"])
async def test_streams_have_them_too(shared_pair: Pair, shared_runtime: FakeRuntime, path: str, script: str) -> None:
    shared_runtime.script = script
    async with shared_pair.post(path, question(stream=True)) as response:
        await response.read()
        assert SECURITY.items() <= {name.lower(): value for name, value in response.headers.items()}.items()


async def test_metrics_and_details_are_for_the_ops_listener(shared_pair: Pair) -> None:
    async with shared_pair.client.get(shared_pair.ops_url + "/metrics") as response:
        assert response.status == 200
        assert "hearthlink_edge_ready 1.0" in await response.text()
        assert SECURITY.items() <= {name.lower(): value for name, value in response.headers.items()}.items()
    async with shared_pair.client.get(shared_pair.ops_url + "/healthz") as response:
        detail = await response.json()
    assert detail["nodes"][0]["connected"] is True
    assert detail["nodes"][0]["models"] == ["fake-model"]
    async with shared_pair.client.get(shared_pair.url + "/healthz") as response:
        assert set(await response.json()) == {"status", "version"}
    async with shared_pair.client.get(shared_pair.url + "/health") as response:
        assert set(await response.json()) == {"status", "timestamp"}
