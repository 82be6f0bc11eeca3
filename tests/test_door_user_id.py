"""The door for developing: ``X-User-Id`` is believed on one's own machine, and nowhere else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from edge.api.caller import user_of
from edge.doors import user_id
from edge.doors.pages import Page
from edge.plans import built_in
from edge.principals import Principal
from shared.contract.errors import ApiError
from shared.settings import SettingsError
from tests.fake_runtime import FakeRuntime
from tests.pair import ORIGIN, Pair, question, running_pair, settings_for
from tests.raw_http import RawClient


def enter(*headers: tuple[bytes, bytes], page: Page | None = None, http_version: str = "1.1") -> Principal:
    return user_id.enter(
        headers,
        page or Page(None, None),
        http_version=http_version,
        allowed_origins=[ORIGIN],
        plan=built_in()["member"],
    )


def refusal(*headers: tuple[bytes, bytes], page: Page | None = None, http_version: str = "1.1") -> str:
    with pytest.raises(ApiError) as caught:
        enter(*headers, page=page, http_version=http_version)
    return caught.value.code


@pytest.mark.parametrize("name", ["alice", "ann.bell@example.org", "a+b_c-1", "A" * 64])
def test_a_user_is_who_the_header_says(name: str) -> None:
    principal = enter((b"x-user-id", name.encode()))
    assert principal == Principal(f"user_{name}", "user", "member", ("chat",))


@pytest.mark.parametrize(
    "value", [b"", b" ", b"a b", b"a,b", b"a/b", b"\xe9", b"a\0", b"user:a", b"A" * 65, b"../x", b"a\n"]
)
def test_an_id_is_one_word(value: bytes) -> None:
    assert refusal((b"x-user-id", value)) == "invalid_request"
    assert refusal((b"x-user-id", b"ann"), (b"x-user-id", value)) == "invalid_request"


@pytest.mark.parametrize(
    "name",
    [
        "forwarded",
        "x-forwarded",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-port",
        "x-original-forwarded-for",
        "x-real-ip",
        "true-client-ip",
        "x-client-ip",
        "fastly-client-ip",
        "client-ip",
        "via",
        "x-via",
        "cf-ray",
        "cf-connecting-ip",
        "tailscale-user-login",
        "ngrok-trace-id",
    ],
)
def test_what_a_tunnel_or_proxy_passed_on_is_refused(name: str) -> None:
    assert refusal((b"x-user-id", b"ann"), (name.encode(), b"127.0.0.1")) == "address_not_allowed"


def test_what_an_old_proxy_passed_on_is_refused() -> None:
    assert refusal((b"x-user-id", b"ann"), http_version="1.0") == "address_not_allowed"


def test_what_programs_and_browsers_send_is_not_taken_for_a_proxys() -> None:
    names = "host user-agent accept accept-language content-type cookie referer x-request-id x-skip dnt priority"
    assert enter((b"x-user-id", b"ann"), *((name.encode(), b"1") for name in names.split()))


@pytest.mark.parametrize(
    "page",
    [Page("https://evil.example", "cross-site"), Page("null", None), Page(None, "same-origin"), Page(ORIGIN, "none")],
)
def test_a_page_has_to_be_listed(page: Page) -> None:
    assert enter((b"x-user-id", b"ann"), page=Page(ORIGIN, "same-site"))
    assert refusal((b"x-user-id", b"ann"), page=page) == "origin_not_allowed"


@pytest.mark.parametrize(
    "edge",
    [
        {"listen": "0.0.0.0:8700"},
        {"listen": "192.168.1.7:8700"},
        {"listen": "[::]:8700"},
        {"public_url": "https://chat.example.org"},
        {"listen": "127.0.0.1:8700", "public_url": "https://edge.tailnet.ts.net"},
    ],
)
def test_an_edge_that_others_can_reach_does_not_start_with_it(tmp_path: Path, edge: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="anybody be anybody") as caught:
        settings_for(tmp_path, {"edge": {**edge, "user_ids": True}})
    assert "edge.user_ids" in str(caught.value)
    settings_for(tmp_path, {"edge": edge})
    settings_for(tmp_path, {"edge": {"listen": "[::1]:1", "public_url": "http://localhost:5173", "user_ids": True}})


@pytest.mark.parametrize("believing", [{"user_ids": True}, {"require_authentication": False}])
def test_an_edge_that_believes_has_no_name_that_others_know(tmp_path: Path, believing: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="for this machine alone") as caught:
        settings_for(tmp_path, {"edge": {**believing, "allowed_hosts": ["localhost", "chat.example.org"]}})
    assert "edge.allowed_hosts" in str(caught.value) and f"edge.{next(iter(believing))}" in str(caught.value)
    settings_for(tmp_path, {"edge": {**believing, "allowed_hosts": ["localhost", "127.0.0.1"]}})
    settings_for(tmp_path, {"edge": {"allowed_hosts": ["chat.example.org"]}})


@asynccontextmanager
async def edge_with(**settings: Any) -> AsyncIterator[Pair]:
    async with FakeRuntime() as runtime, running_pair(runtime.url, edge=settings) as pair:
        yield pair


async def ask(pair: Pair, method: str, path: str, **headers: str) -> tuple[int, dict[str, Any]]:
    body = None if method == "GET" else question(stream=False) if path == "/v1/chat" else {}
    async with pair.client.request(method, pair.url + path, headers=headers, json=body) as response:
        return response.status, await response.json()


async def test_it_works_on_every_route_and_for_a_token() -> None:
    async with edge_with(user_ids=True) as pair:
        ann = {"X-User-Id": "ann"}
        status, minted = await ask(pair, "POST", "/v1/token", **ann)
        assert (status, minted["principal"]) == (200, {"id": "user_ann", "kind": "user", "plan": "member"})
        for method, path in (("GET", "/v1/me"), ("POST", "/v1/chat"), ("GET", "/v1/models"), ("GET", "/v1/chat/types")):
            assert (await ask(pair, method, path, **ann))[0] == 200, path
        _, me = await ask(pair, "GET", "/v1/me", Authorization=f"Bearer {minted['token']}", **{"X-User-Id": "eve"})
        assert me["principal"]["id"] == "user_ann", "what a caller shows goes before"
        assert (await ask(pair, "GET", "/v1/me"))[0] == 401


async def test_two_users_have_two_budgets() -> None:
    async with edge_with(user_ids=True) as pair:
        for name in ("ann", "bob"):
            assert (await ask(pair, "POST", "/v1/chat", **{"X-User-Id": name}))[0] == 200
        await pair.idle()
        assert set(pair.ledger().used) == {"user_ann", "user_bob"}


async def test_a_door_that_is_off_is_not_there() -> None:
    async with edge_with() as pair:
        for method, path in (("POST", "/v1/token"), ("GET", "/v1/me"), ("POST", "/v1/chat")):
            with_it, without = [await ask(pair, method, path, **given) for given in ({"X-User-Id": "ann"}, {})]
            assert with_it[0] == without[0] >= 400 and with_it[1]["error"] == without[1]["error"], path


async def test_a_name_that_points_here_gets_nothing() -> None:
    async with edge_with(user_ids=True) as pair, await RawClient.connect(pair.url) as raw:
        await raw.request("GET", "/v1/me", {"Host": "evil.example", "X-User-Id": "ann"})
        assert (await raw.head()).status == 400


async def test_a_reload_cannot_open_it() -> None:
    """Whether it may be on was decided for the address that is listened on."""
    async with edge_with() as pair:
        opened = settings_for(pair.state, {"edge": {"user_ids": True}})
        pair.edge._apply(opened)
        assert (await ask(pair, "GET", "/v1/me", **{"X-User-Id": "ann"}))[0] == 401


async def test_a_reload_gives_it_no_name_that_others_know() -> None:
    """What believes until it is started again keeps to this machine's names, whatever the settings say by now."""
    async with edge_with(user_ids=True) as pair:
        pair.edge._apply(settings_for(pair.state, {"edge": {"allowed_hosts": ["chat.example.org"]}}))
        async with await RawClient.connect(pair.url) as raw:
            await raw.request("GET", "/v1/me", {"Host": "chat.example.org", "X-User-Id": "ann"})
            assert (await raw.head()).status == 400


async def test_nobody_who_comes_through_the_tailnet_is_believed() -> None:
    """Serve and peers reach this machine's own addresses, and are not this machine."""
    async with edge_with(user_ids=True) as pair:
        scope: dict[str, Any] = {"http_version": "1.1", "headers": [(b"x-user-id", b"ann")], "state": {}}
        for listener, believed in (("public", True), ("serve", False), ("tailnet", False)):
            scope["state"]["listener"] = listener
            assert (user_of(scope, pair.edge.services) is not None) is believed, listener
