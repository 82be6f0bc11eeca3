"""The door for whom Cloudflare Access let through: its token is checked, and nothing that found a way around Access is
believed."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import pytest_asyncio
from aiohttp import web

from edge.doors.cloudflare_access import CloudflareAccessDoor, certificates_of, issuer_of
from edge.doors.jwks import Jwks
from edge.doors.pages import Page
from edge.plans import built_in
from edge.principals import Principal
from hearthlink import chat
from hearthlink.client import access_headers
from hearthlink.output import Failure, Status
from shared.contract.errors import ApiError
from tests.command_line import run
from tests.fake_issuer import CERTIFICATES, FakeIssuer
from tests.fake_runtime import FakeRuntime
from tests.local_app import local_app
from tests.pair import ORIGIN, Pair, from_elsewhere, question, running_pair, settings_for

pytestmark = pytest.mark.asyncio(loop_scope="module")

TAG = "0123456789abcdef" * 4
PERSON = {"aud": [TAG], "type": "app", "sub": "6f1d2c3b-0000-4000-8000-000000000001", "email": "ann@example.org"}
SERVICE = {"aud": [TAG], "type": "app", "sub": "", "common_name": "0123456789abcdef0123456789abcdef.access"}
HEADER = CloudflareAccessDoor.HEADER.decode()
PUBLIC_URL = "https://chat.example.org"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def team() -> AsyncIterator[FakeIssuer]:
    """A team of Cloudflare Access, as the edge sees it: its keys, and the tokens that it adds."""
    async with FakeIssuer() as issuer:
        yield issuer


@asynccontextmanager
async def door_of(team: FakeIssuer, plan: str = "member") -> AsyncIterator[CloudflareAccessDoor]:
    door = CloudflareAccessDoor(team.url, [TAG], Jwks(team.url, team.url + CERTIFICATES), plan=plan, secret=b"s" * 32)
    try:
        yield door
    finally:
        await door.close()


async def enter(door: CloudflareAccessDoor, assertion: str, origin: str | None = None) -> Principal:
    return await door.enter(assertion, Page(origin, None), allowed_origins=[ORIGIN], plans=built_in())


@asynccontextmanager
async def edge_behind(team: FakeIssuer, **settings: Any) -> AsyncIterator[Pair]:
    edge = {"trusted_proxies": ["127.0.0.1"], "public_url": PUBLIC_URL, **settings}
    async with FakeRuntime() as runtime, running_pair(runtime.url, edge=edge) as pair, door_of(team) as door:
        pair.edge.services.issuers.access = door
        yield pair


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair(team: FakeIssuer) -> AsyncIterator[Pair]:
    async with edge_behind(team) as pair:
        yield pair


async def ask(pair: Pair, headers: dict[str, str]) -> tuple[int, dict[str, Any]]:
    url = pair.url + "/v1/token"
    async with pair.client.post(url, json={}, headers=from_elsewhere() | headers) as response:
        return response.status, await response.json()


async def test_where_a_team_is() -> None:
    team = "example.cloudflareaccess.com"
    assert issuer_of(team) == "https://example.cloudflareaccess.com"
    assert certificates_of(team) == "https://example.cloudflareaccess.com/cdn-cgi/access/certs"


async def test_a_person_and_a_service_token_are_two_callers(team: FakeIssuer) -> None:
    async with door_of(team) as door:
        person, service = [await enter(door, team.token(**who)) for who in (PERSON, SERVICE)]
        again = await enter(door, team.token(**PERSON, identity_nonce="other"))
    assert (person.kind, person.plan, person.scopes) == ("access", "member", ("chat",))
    assert person.id == again.id != service.id and person.id.startswith("access_")
    assert "ann" not in person.id and "0123" not in service.id


async def test_a_service_token_cannot_be_called_like_a_person(team: FakeIssuer) -> None:
    async with door_of(team) as door:
        person = await enter(door, team.token(**PERSON))
        namesake = await enter(door, team.token(**{**SERVICE, "common_name": PERSON["sub"]}))
    assert person.id != namesake.id


@pytest.mark.parametrize(
    "claims",
    [
        {"aud": ["f" * 64]},
        {"aud": None},
        {"iss": "https://another.cloudflareaccess.com"},
        {"type": "org"},
        {"type": None},
        {"sub": ""},
        {"sub": 7},
        {"sub": "a" * 300},
        {"exp": int(time.time()) - 1},
    ],
)
async def test_a_token_of_another_application_or_purpose_is_refused(team: FakeIssuer, claims: dict[str, Any]) -> None:
    async with door_of(team) as door:
        with pytest.raises(ApiError) as caught:
            await enter(door, team.token(**{**PERSON, **claims}))
    assert caught.value.status == 401


async def test_a_plan_that_is_gone_lets_nobody_in(team: FakeIssuer) -> None:
    async with door_of(team, plan="gone") as door:
        with pytest.raises(ApiError, match="gone") as caught:
            await enter(door, team.token(**PERSON))
    assert caught.value.code == "insufficient_scope"


async def test_whom_access_let_through_gets_a_token_and_chats(pair: Pair, team: FakeIssuer) -> None:
    status, minted = await ask(pair, {HEADER: team.token(**SERVICE)})
    assert status == 200 and minted["principal"]["kind"] == "access", minted
    async with pair.post("/v1/chat", question(), key=minted["token"]) as response:
        assert response.status == 200


async def test_our_own_page_needs_no_list_and_others_do(pair: Pair, team: FakeIssuer) -> None:
    """The browser sends the cookie of Access with whatever any page asks."""
    for origin, expected in ((PUBLIC_URL, 200), (ORIGIN, 200), ("https://evil.example", 403), ("null", 403)):
        status, minted = await ask(pair, {HEADER: team.token(**PERSON), "Origin": origin})
        assert status == expected, minted
    _, minted = await ask(pair, {HEADER: team.token(**PERSON), "Origin": PUBLIC_URL})
    bearer = {"Authorization": f"Bearer {minted['token']}"}
    for origin, expected in ((PUBLIC_URL, 200), (ORIGIN, 403)):
        url, headers = pair.url + "/v1/chat", bearer | {"Origin": origin}
        async with pair.client.post(url, json=question(), headers=headers) as response:
            assert response.status == expected


async def test_a_forged_assertion_is_no_anonymous_caller(pair: Pair, team: FakeIssuer) -> None:
    forged = team.token(**PERSON)[:-8]
    status, answer = await ask(pair, {HEADER: forged, "Origin": ORIGIN})
    assert (status, answer["error"]["code"]) == (401, "invalid_token")


async def test_what_a_caller_shows_goes_before(pair: Pair, team: FakeIssuer) -> None:
    status, minted = await ask(pair, {HEADER: team.token(**PERSON), **pair.bearer()})
    assert (status, minted["principal"]["kind"]) == (200, "key")
    status, minted = await ask(pair, {"Origin": ORIGIN})
    assert (status, minted["principal"]["kind"]) == (200, "anonymous")


async def test_a_door_that_is_off_is_not_there(team: FakeIssuer) -> None:
    async with FakeRuntime() as runtime, running_pair(runtime.url) as pair:
        headers = {HEADER: team.token(**PERSON)}
        with_it, without = [await ask(pair, given) for given in (headers, {})]
    assert with_it[0] == without[0] == 403 and with_it[1]["error"] == without[1]["error"]


# -- programs of ours that pass it ------------------------------------------------------------------------------------

SHOWN = {"CF-Access-Client-Id": "one.access", "CF-Access-Client-Secret": "two"}
SERVICE_TOKEN = {
    "CF_ACCESS_CLIENT_ID": "one.access",
    "CF_ACCESS_CLIENT_SECRET": "two",
    "CF_ACCESS_HOST": "127.0.0.1",  # where ``access_in_front`` is
}


@asynccontextmanager
async def access_in_front(pair: Pair, team: FakeIssuer) -> AsyncIterator[str]:
    """A server that does what Access does: without a service token it answers itself, else it adds its own token. Gives
    its URL."""

    async def pass_on(request: web.Request) -> web.StreamResponse:
        headers = dict(request.headers)
        shown = headers.pop("CF-Access-Client-Id", None), headers.pop("CF-Access-Client-Secret", None)
        if shown != tuple(SHOWN.values()):
            return web.Response(status=403, text="<title>Forbidden - Cloudflare Access</title>")
        sent = headers | from_elsewhere() | {HEADER: team.token(**SERVICE)}
        url, body = pair.url + request.path_qs, await request.read()
        async with pair.client.request(request.method, url, headers=sent, data=body) as answer:
            response = web.StreamResponse(status=answer.status, headers={"Content-Type": answer.content_type})
            await response.prepare(request)
            async for piece in answer.content.iter_any():
                await response.write(piece)
        return response

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", pass_on)
    async with local_app(app) as url:
        yield url


async def test_smoke_shows_its_service_token(pair: Pair, team: FakeIssuer) -> None:
    async with access_in_front(pair, team) as url:
        smoke = await run("smoke", url, state=pair.state, environ=SERVICE_TOKEN)
        assert smoke.status == 0 and "plan member" in smoke.out, smoke
        with_key = await run("smoke", url, "--key", "-", state=pair.state, stdin=pair.key, environ=SERVICE_TOKEN)
        assert with_key.status == 0 and "plan owner" in with_key.out, with_key
        refused = await run("smoke", url, state=pair.state)
        assert refused.status == 1 and "Cloudflare Access" in refused.out, refused
        assert "CF_ACCESS" not in refused.out, "none was set"


async def test_smoke_says_what_it_showed_where_access_is_a_gate_alone(tmp_path: Path) -> None:
    """The edge does not know a service token then: it wants a key, whoever passed the gate."""
    async with running_pair(state=tmp_path, edge={"anonymous": False}, wait=False) as pair:
        smoke = await run("smoke", pair.url, state=tmp_path, environ=SERVICE_TOKEN)
        assert smoke.status == 1 and "API keys" in smoke.out, smoke
        assert "CF_ACCESS_CLIENT_ID" in smoke.out and "give --key" in smoke.out


async def test_chat_goes_in_by_its_service_token(
    pair: Pair, team: FakeIssuer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in SERVICE_TOKEN.items():
        monkeypatch.setenv(name, value)
    settings = settings_for(pair.state, {})
    with monkeypatch.context() as patch:
        patch.setenv("CF_ACCESS_HOST", urlsplit(PUBLIC_URL).hostname or "")
        assert chat.own_credential(settings, PUBLIC_URL) is None, "Access says who is asking"
    assert str(chat.own_credential(settings, pair.url)).startswith("hlt_"), "on the edge's machine nobody is needed"
    async with access_in_front(pair, team) as url:
        await chat.ask(url, None, question(chat_type="home"), as_json=True)
    assert json.loads(capsys.readouterr().out)["choices"][0]["message"]["content"]


async def test_a_service_token_is_shown_where_nobody_can_read_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert access_headers(PUBLIC_URL) == {}
    for name, value in {**SERVICE_TOKEN, "CF_ACCESS_HOST": "Chat.example.org"}.items():
        monkeypatch.setenv(name, value)
    assert access_headers(PUBLIC_URL) == access_headers("https://CHAT.example.org:8443/") == SHOWN
    for elsewhere in ("http://chat.example.org", "https://example.org", "https://a.chat.example.org", "http://[::1]"):
        assert access_headers(elsewhere) == {}, elsewhere


@pytest.mark.parametrize("variable", SERVICE_TOKEN)
@pytest.mark.parametrize("value", ["", "t wo", "two\r\nX: y", "é"])
async def test_a_part_of_a_service_token_is_told(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    for name, good in {**SERVICE_TOKEN, variable: value}.items():
        monkeypatch.setenv(name, good)
    with pytest.raises(Failure, match=variable) as caught:
        access_headers(PUBLIC_URL)
    assert caught.value.status is Status.USAGE and (not value or value not in str(caught.value))
