"""What is refused whoever asks: the wrong name of a server, an address that may not call; and in which order."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from edge.store.records import Maintenance
from tests.fake_runtime import FakeRuntime
from tests.pair import ORIGIN, Pair, create_key, question, running_pair
from tests.raw_http import RawClient

pytestmark = pytest.mark.asyncio(loop_scope="module")

EDGE = Path(__file__).resolve().parent.parent / "edge"
NATIVE = "/v1/chat"
BEHIND_PROXY = {"trusted_proxies": ["127.0.0.1"]}


def from_address(ip: str) -> dict[str, str]:
    return {"X-Forwarded-For": ip}


async def answer(pair: Pair, method: str, path: str, headers: Mapping[str, str], *, ops: bool = False) -> Any:
    """(status, code of the error or None) of a request without a body."""
    url = (pair.ops_url if ops else pair.url) + path
    async with pair.client.request(method, url, headers=headers) as response:
        assert response.headers["x-request-id"]
        found = await response.json() if "json" in response.content_type else {}
        return response.status, found["error"]["code"] if "error" in found else None


async def get(pair: Pair, path: str, *, ops: bool = False, **headers: str) -> Any:
    return await answer(pair, "GET", path, {name.replace("_", "-"): text for name, text in headers.items()}, ops=ops)


# -- one way to say which server is meant -----------------------------------------------------------------------------


@pytest.mark.case("B31")
@pytest.mark.parametrize(
    "head",
    [
        pytest.param("GET http://127.0.0.1/livez HTTP/1.1\r\nHost: 127.0.0.1", id="absolute form"),
        pytest.param("GET http://other.test/livez HTTP/1.1\r\nHost: a", id="absolute form of another server"),
        pytest.param("GET livez HTTP/1.1\r\nHost: a", id="no slash"),
        pytest.param("OPTIONS * HTTP/1.1\r\nHost: a", id="asterisk"),
        pytest.param("GET /livez HTTP/1.1\r\nHost: a\r\nHost: a", id="two hosts"),
        pytest.param("GET /livez HTTP/1.1\r\nHost: a\r\nX: y\r\nhOST: b", id="two hosts apart"),
        pytest.param("GET /livez HTTP/1.1\r\nX: y", id="no host"),
        *(
            pytest.param(f"GET /livez HTTP/1.1\r\nHost: {host}", id=f"host {host or 'empty'}")
            for host in (
                "",
                "x?",
                "x#",
                "x/..",
                "a@b",
                "a b",
                "a,b",
                "a:",
                "a:b",
                "[::1",
                "::1",
                "[a]",
                "http://a",
                "a%2e",
            )
        ),
    ],
)
async def test_a_request_that_does_not_name_one_server_is_refused(shared_pair: Pair, head: str) -> None:
    for url in (shared_pair.url, shared_pair.ops_url, shared_pair.node.listener.url):
        async with await RawClient.connect(url) as raw:
            await raw.send(head.encode("latin-1") + b"\r\n\r\n")
            told = await raw.head()
            error = await raw.json()
            assert (told.status, error["error"]["code"]) == (400, "invalid_request")
            assert told.headers["x-request-id"] == error["request_id"]
            await raw.closed_by_peer()


@pytest.mark.parametrize(
    "host", ["a", "a.b-c_d:8700", "127.0.0.1", "127.0.0.1:1", "[::1]", "[fd7a::1]:8700", "A.TEST."]
)
async def test_any_name_is_good_while_none_is_set(shared_pair: Pair, host: str) -> None:
    async with await RawClient.connect(shared_pair.url) as raw:
        await raw.request("GET", "/livez", {"Host": host})
        assert (await raw.head()).status == 200


async def test_an_old_client_may_leave_the_host_out(shared_pair: Pair) -> None:
    """HTTP/1.0, in which health checks of some proxies are, has no Host."""
    async with await RawClient.connect(shared_pair.url) as raw:
        await raw.send(b"GET /livez HTTP/1.0\r\n\r\n")
        assert (await raw.head()).status == 200


# -- which names are good ---------------------------------------------------------------------------------------------


@pytest.mark.case("B31")
async def test_only_the_edges_own_name_is_good_where_it_has_one(tmp_path: Path) -> None:
    edge = {"public_url": "https://chat.example.test", "page": False, **BEHIND_PROXY}
    async with running_pair(state=tmp_path, edge=edge, wait=False) as pair:
        for host in ("chat.example.test", "Chat.Example.Test:443", "localhost", "127.0.0.1:8700", "[::1]", "10.0.0.9"):
            assert await get(pair, "/livez", Host=host) == (200, None), host
        for host in ("evil.test", "chat.example.test.evil.test", "xchat.example.test", "localhost.evil.test"):
            assert await get(pair, "/livez", Host=host) == (400, "invalid_request"), host
        assert await get(pair, "/v1/me", Host="evil.test", Authorization="Bearer wrong") == (400, "invalid_request")


async def test_names_that_the_owner_lists_are_good(tmp_path: Path) -> None:
    edge = {"public_url": "https://a.test", "allowed_hosts": ["B.test", "c.test"]}
    async with running_pair(state=tmp_path, edge=edge, wait=False) as pair:
        assert await get(pair, "/livez", Host="b.test") == (200, None)
        assert await get(pair, "/livez", Host="c.test:8700") == (200, None)
        assert await get(pair, "/livez", Host="a.test") == (200, None)
        assert await get(pair, "/livez", Host="d.test") == (400, "invalid_request")


async def test_a_page_cannot_make_its_own_name_lead_here(tmp_path: Path) -> None:
    """DNS rebinding: where no credential is asked for, and on the listener for operations, the browser's Host is all
    that tells a page of the internet from this machine."""
    edge = {"require_authentication": False, "allowed_hosts": ["localhost"]}
    async with running_pair(state=tmp_path, edge=edge, wait=False) as pair:
        for host in ("127.0.0.1", "localhost:8700", "LOCALHOST", "[::1]:8700"):
            assert await get(pair, "/v1/me", Host=host) == (200, None), host
            assert await get(pair, "/metrics", ops=True, Host=host) == (200, None), host
        for host in ("rebound.test", "10.0.0.9", "localhost.rebound.test"):
            assert await get(pair, "/v1/me", Host=host) == (400, "invalid_request"), host
            assert await get(pair, "/metrics", ops=True, Host=host) == (400, "invalid_request"), host


async def test_a_page_cannot_read_operations_of_an_edge_that_asks_for_credentials(shared_pair: Pair) -> None:
    assert await get(shared_pair, "/metrics", ops=True, Host="rebound.test:8701") == (400, "invalid_request")
    assert await get(shared_pair, "/metrics", ops=True, Host="127.0.0.1:8701") == (200, None)


# -- who may call -----------------------------------------------------------------------------------------------------


async def test_addresses_that_may_not_call_reach_nothing(tmp_path: Path) -> None:
    key = create_key(tmp_path, "owner")
    edge = {**BEHIND_PROXY, "allowed_addresses": ["203.0.113.0/24"], "denied_addresses": ["203.0.113.66"]}
    async with running_pair(state=tmp_path, edge=edge, wait=False) as pair:
        refused = (403, "address_not_allowed")
        good = {**from_address("203.0.113.7"), "Authorization": f"Bearer {key}"}
        assert await answer(pair, "GET", "/v1/me", good) == (200, None)
        for ip in ("203.0.113.66", "198.51.100.1", "2001:db8::1", "nonsense"):
            for path in ("/v1/me", "/healthz", "/", "/static/x", "/nothing"):
                assert await answer(pair, "GET", path, good | from_address(ip)) == refused, (ip, path)
        preflight = {"Origin": ORIGIN, "Access-Control-Request-Method": "POST", **from_address("198.51.100.1")}
        assert await answer(pair, "OPTIONS", NATIVE, preflight) == refused
        # The owner of the machine is not locked out by a list that forgets it.
        assert await get(pair, "/metrics", ops=True) == (200, None)
        assert {line["outcome"] for line in pair.audit if "outcome" in line} == {"address_not_allowed"}


async def test_a_forged_address_passes_no_list(tmp_path: Path) -> None:
    """Without a trusted proxy the header is a caller's own words."""
    async with running_pair(state=tmp_path, edge={"denied_addresses": ["127.0.0.1"]}, wait=False) as pair:
        assert await answer(pair, "GET", "/livez", from_address("8.8.8.8")) == (403, "address_not_allowed")


async def test_the_cheapest_check_comes_first(tmp_path: Path) -> None:
    """Each refusal hides what lies behind it: server name, address, credential, then limits; the body is not read."""
    key = create_key(tmp_path, "none")
    edge = {**BEHIND_PROXY, "allowed_hosts": ["a.test"], "denied_addresses": ["203.0.113.66"]}
    plans = {"none": {"requests_per_minute": 0}}
    async with running_pair(state=tmp_path, edge=edge, plans=plans, wait=False) as pair:
        steps: list[tuple[dict[str, str], str]] = [
            ({"Host": "b.test", **from_address("203.0.113.66"), "Authorization": "Bearer x"}, "invalid_request"),
            ({"Host": "a.test", **from_address("203.0.113.66"), "Authorization": "Bearer x"}, "address_not_allowed"),
            ({"Host": "a.test", **from_address("203.0.113.7"), "Authorization": "Bearer x"}, "invalid_token"),
            ({"Host": "a.test", **from_address("203.0.113.7"), "Authorization": f"Bearer {key}"}, "rate_limited"),
        ]
        for headers, code in steps:
            async with await RawClient.connect(pair.url) as raw:
                # A megabyte is announced and never sent.
                await raw.request("POST", NATIVE, {**headers, "Content-Length": "1048576"})
                await raw.head()
                assert (await raw.json())["error"]["code"] == code


# -- rates by address -------------------------------------------------------------------------------------------------


async def test_callers_of_exempt_origins_do_not_count_for_their_address(tmp_path: Path) -> None:
    """A school behind one address uses one site; its callers still have their own rates."""
    site, other = "https://site.test", "https://other.test"
    edge = {
        **BEHIND_PROXY,
        "requests_per_minute_per_ip": 2,
        "allowed_origins": [site, other],
        "exempt_origins": [site],
    }
    async with running_pair(state=tmp_path, edge=edge, wait=False) as pair:

        async def token(origin: str) -> dict[str, str]:
            headers = {"Origin": origin, **from_address("203.0.113.7")}
            async with pair.client.post(f"{pair.url}/v1/token", json={}, headers=headers) as response:
                return headers | {"Authorization": f"Bearer {(await response.json())['token']}"}

        exempt, counted = await token(site), await token(other)
        for _ in range(5):
            assert await answer(pair, "GET", "/v1/me", exempt) == (200, None)
        # A GET of the same page may come without Origin: the token is locked to it.
        del exempt["Origin"]
        assert await answer(pair, "GET", "/v1/me", exempt) == (200, None)
        for _ in range(2):
            assert await answer(pair, "GET", "/v1/me", counted) == (200, None)
        assert await answer(pair, "GET", "/v1/me", counted) == (429, "rate_limited")


async def test_an_exempt_origin_frees_nobody_of_the_plans_rate(tmp_path: Path) -> None:
    key = create_key(tmp_path, "few")
    edge = {"allowed_origins": [ORIGIN], "exempt_origins": [ORIGIN]}
    async with running_pair(state=tmp_path, edge=edge, plans={"few": {"requests_per_minute": 2}}, wait=False) as pair:
        headers = {"Origin": ORIGIN, "Authorization": f"Bearer {key}"}
        assert [(await answer(pair, "GET", "/v1/me", headers))[0] for _ in range(3)] == [200, 200, 429]


# -- one accounting point ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/v1/chat", 200),
        ("POST", "/v1/chat/completions", 200),
        ("GET", "/v1/models", 200),
        ("GET", "/v1/models/nothing", 404),
        ("GET", "/v1/chat/types", 200),
        ("GET", "/v1/me", 200),
        ("DELETE", "/v1/chat/nothing", 404),
    ],
)
async def test_every_limited_route_counts_and_says_what_is_left(
    shared_runtime: FakeRuntime, tmp_path: Path, method: str, path: str, status: int
) -> None:
    key = create_key(tmp_path, "two")
    plans = {"two": {"requests_per_minute": 2, "tokens_per_day": 5000}}
    async with running_pair(shared_runtime.url, state=tmp_path, plans=plans) as pair:
        seen: list[int] = []
        told: Mapping[str, str] = {}
        for _ in range(3):
            body = question() if method == "POST" else None
            async with pair.client.request(method, pair.url + path, json=body, headers=pair.bearer(key)) as response:
                seen.append(response.status)
                told = response.headers
                assert len(response.headers.getall("x-ratelimit-remaining-requests")) == 1
                assert response.headers.getall("x-ratelimit-limit-requests") == ["2"]
                assert response.headers["x-ratelimit-limit-tokens"] == "5000"
                assert response.headers["x-ratelimit-reset-requests"]
        assert seen == [status, status, 429] and told["x-ratelimit-remaining-requests"] == "0"
        assert int(told["retry-after"]) >= 1


async def test_a_stolen_token_can_be_ended_whatever_the_thief_sends(tmp_path: Path) -> None:
    plans = {"anonymous": {"requests_per_minute": 1}}
    async with running_pair(state=tmp_path, plans=plans, wait=False) as pair:
        headers = {"Origin": ORIGIN, "Authorization": f"Bearer {await pair.token()}"}
        assert [(await answer(pair, "GET", "/v1/me", headers))[0] for _ in range(2)] == [200, 429]
        assert await answer(pair, "DELETE", "/v1/token", headers) == (204, None)
        assert await answer(pair, "DELETE", "/v1/token", headers) == (401, "token_revoked")


async def test_requests_are_counted_in_one_place() -> None:
    """Besides the stores that do it, only ``edge.api.accounting`` asks for it."""
    counting = re.compile(r"\.(charge_request|admit)\(")
    asking = {
        str(path.relative_to(EDGE))
        for path in EDGE.rglob("*.py")
        if "store" not in path.relative_to(EDGE).parts and counting.search(path.read_text())
    }
    assert asking == {"api/accounting.py"}


async def test_the_route_of_tokens_says_what_is_left_of_its_own_rate(tmp_path: Path) -> None:
    async with running_pair(state=tmp_path, edge=BEHIND_PROXY, wait=False) as pair:
        headers = {"Origin": ORIGIN, **from_address("203.0.113.7")}
        wait = 0
        for count in range(31):
            async with pair.client.post(f"{pair.url}/v1/token", json={}, headers=headers) as response:
                left = int(response.headers["x-ratelimit-remaining-requests"])
                assert (response.status, left) == ((200, 29 - count) if count < 30 else (429, 0))
                assert response.headers["x-ratelimit-limit-requests"] == "30"
                wait = int(response.headers.get("retry-after", 0))
        assert 1 <= wait <= 60
        async with pair.client.post(
            f"{pair.url}/v1/token", json={}, headers=headers | from_address("203.0.113.8")
        ) as other:
            assert other.status == 200


async def test_no_route_but_the_open_ones_answers_without_a_credential(shared_pair: Pair) -> None:
    """Deny by default: whoever adds a route and forgets who may use it is told here."""
    open_to_all = {"/healthz", "/health", "/livez", "/readyz", "/", "/hearthlink.js", "/static/{path}", "/metrics"}
    for route, methods in routes_of(shared_pair).items():
        for method in methods:
            status, _ = await answer(shared_pair, method, route.replace("{", "").replace("}", ""), {})
            if route in open_to_all:
                assert status in (200, 404), route
            else:
                assert status in (401, 403, 415), (method, route, status)


def routes_of(pair: Pair) -> dict[str, set[str]]:
    """The edge's routes and their methods, found in the layers around them."""
    from starlette.routing import Route, Router

    seen: list[Any] = [pair.edge.app]
    for layer in seen:
        if isinstance(layer, Router):
            found: dict[str, set[str]] = {}
            for route in layer.routes:
                if isinstance(route, Route):
                    path = route.path.replace(":path", "")
                    found.setdefault(path, set()).update((route.methods or {"GET"}) - {"HEAD"})
            return found
        inner = [*vars(layer).values()] if hasattr(layer, "__dict__") else []
        inner += [cell.cell_contents for cell in getattr(layer, "__closure__", None) or ()]
        seen += [one for one in inner if callable(one) and one not in seen and not isinstance(one, type)]
    raise AssertionError("there is no router")


async def test_a_key_without_the_scope_chats_with_nobody(tmp_path: Path) -> None:
    key = create_key(tmp_path, "owner", scopes=("admin",))
    gone = create_key(tmp_path, "closed")
    plans = {"closed": {"scopes": []}}
    async with running_pair(state=tmp_path, plans=plans, wait=False) as pair:
        for credential in (key, gone):
            headers = {"Authorization": f"Bearer {credential}"}
            for method, path in (("POST", NATIVE), ("GET", "/v1/models"), ("DELETE", "/v1/chat/x")):
                assert await answer(pair, method, path, headers) == (403, "insufficient_scope")
            assert await answer(pair, "GET", "/v1/me", headers) == (200, None)


# -- global load ------------------------------------------------------------------------------------------------------


async def test_no_more_answers_run_than_the_edge_allows(tmp_path: Path) -> None:
    """Ten at once, three places: exactly three run, the others are told at once, and everything else goes on."""
    async with (
        FakeRuntime("stall_mid_stream", slots=16) as runtime,
        running_pair(runtime.url, state=tmp_path, edge={"max_streams": 3}, node={"slots": 16}) as pair,
    ):
        asked = [
            pair.client.post(pair.url + NATIVE, json=question(stream=True), headers=pair.bearer()) for _ in range(10)
        ]
        responses = await asyncio.gather(*asked)
        try:
            full = [response for response in responses if response.status != 200]
            assert len(full) == 7 and len(runtime.chats) == 3
            for response in full:
                assert (response.status, (await response.json())["error"]["code"]) == (503, "overloaded")
                assert int(response.headers["retry-after"]) >= 1
            async with pair.get("/v1/me") as response:
                assert response.status == 200
            assert await pair.token()
        finally:
            for response in responses:
                response.close()
        await pair.idle()
        runtime.script = "normal"
        async with pair.post(NATIVE, question()) as response:
            assert response.status == 200, "a place that was left is free"


# -- a WebSocket's handshake passes what every request passes ---------------------------------------------------------


async def test_a_handshake_is_refused_as_any_request_and_leaves_its_line(tmp_path: Path) -> None:
    edge = BEHIND_PROXY | {"denied_addresses": ["203.0.113.0/24"], "allowed_hosts": ["127.0.0.1"]}
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "WebSocket",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version": "13",
    }
    async with running_pair(state=tmp_path, edge=edge, wait=False) as pair:
        assert await answer(pair, "GET", "/", upgrade) == (404, "not_found")
        assert await answer(pair, "GET", "/", upgrade | {"Host": "other.test"}) == (400, "invalid_request")
        assert await answer(pair, "GET", "/", upgrade | from_address("203.0.113.9")) == (403, "address_not_allowed")
        assert [line["outcome"] for line in pair.audit] == ["not_found", "invalid_request", "address_not_allowed"]
        pair.edge.services.store.records.maintenance = Maintenance.begun(None, 1.0, ends_answers=False)
        assert await answer(pair, "GET", "/link", upgrade) == (503, "maintenance")


# -- what the headers say is enough -----------------------------------------------------------------------------------


@pytest.mark.case("B29")
@pytest.mark.parametrize(
    ("header", "refusal"),
    [
        ({"Origin": "https://evil.example"}, (403, "origin_not_allowed")),
        ({"Authorization": "Bearer hlk_0123456789ab_" + "A" * 43}, (401, "invalid_token")),
    ],
    ids=["origin", "key"],
)
@pytest.mark.parametrize("invites", [True, False])
async def test_who_gets_no_token_is_told_before_the_body(
    tmp_path: Path, invites: bool, header: dict[str, str], refusal: tuple[int, str]
) -> None:
    edge = {"allowed_origins": [ORIGIN], "invites": invites}
    async with (
        running_pair(state=tmp_path, edge=edge, wait=False) as pair,
        await RawClient.connect(pair.url) as raw,
    ):
        await raw.request("POST", "/v1/token", {"Content-Type": "application/json", "Content-Length": "100", **header})
        assert ((await raw.head()).status, (await raw.json())["error"]["code"]) == refusal
