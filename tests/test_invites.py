"""The door for guests: who is let in by an invite, what everybody else is told, and how it ends."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from edge.principals import Principal
from edge.store.invites import InviteInfo
from edge.store.sqlite import invites
from edge.store.sqlite.database import open_for_admin
from edge.tokens import Tokens
from shared.state import StateDir
from tests import command_line
from tests.fake_runtime import FakeRuntime
from tests.pair import ORIGIN, Pair, from_elsewhere, question, running_pair
from tests.raw_http import RawClient
from tests.waiting import wait_until

NATIVE = "/v1/chat"
DAY = 86_400
ELSEWHERE = "http://other.test"
BY_INVITATION = {
    "invites": True,
    "anonymous": False,
    "allowed_origins": [ORIGIN, ELSEWHERE],
    "trusted_proxies": ["127.0.0.1"],
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def by_invitation(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pair]:
    """A pair whose edge takes invites and API keys, nobody else."""
    state = tmp_path_factory.mktemp("state")
    async with FakeRuntime() as runtime, running_pair(runtime.url, state=state, edge=BY_INVITATION) as pair:
        yield pair


@pytest.fixture
def address() -> dict[str, str]:
    """Each test calls from an address of its own."""
    return from_elsewhere()


def create(pair: Pair, uses: int = 1, *, lifetime: int = DAY, plan: str = "member") -> str:
    connection = open_for_admin(StateDir(pair.state).database)
    try:
        return invites.create(connection, plan, uses, int(time.time()) + lifetime)[1]
    finally:
        connection.close()


def revoke(pair: Pair, text: str) -> None:
    connection = open_for_admin(StateDir(pair.state).database)
    try:
        invites.revoke(connection, text)
    finally:
        connection.close()


def info_of(pair: Pair, text: str) -> InviteInfo:
    connection = open_for_admin(StateDir(pair.state).database)
    try:
        return next(info for info in invites.list_invites(connection) if info.id == text[4:16])
    finally:
        connection.close()


def post(pair: Pair, body: Any, *headers: dict[str, str]) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
    together = {name: value for some in headers for name, value in some.items()}
    return pair.client.post(pair.url + "/v1/token", json=body, headers=together)


async def answer(pair: Pair, body: Any, *headers: dict[str, str]) -> tuple[int, Any]:
    """Status, and the answer or its error."""
    async with post(pair, body, *headers) as response:
        payload = await response.json()
        return response.status, payload.get("error", payload)


async def guest(pair: Pair, text: str, *headers: dict[str, str]) -> dict[str, Any]:
    status, given = await answer(pair, {"invite": text}, *headers)
    assert status == 200, given
    return given


def refused(found: tuple[int, Any]) -> tuple[int, str, str | None]:
    return found[0], found[1]["code"], found[1]["param"]


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


FROM_PAGE = {"Origin": ORIGIN, "Sec-Fetch-Site": "same-origin"}
NOT_VALID = (401, "invalid_token", "invite")
on_the_modules_loop = pytest.mark.asyncio(loop_scope="module")


@on_the_modules_loop
async def test_a_page_is_let_in(by_invitation: Pair, address: dict[str, str]) -> None:
    pair, text = by_invitation, create(by_invitation)
    async with post(pair, {"invite": text}, FROM_PAGE, address) as response:
        given = await response.json()
        assert (response.status, response.headers["cache-control"]) == (200, "no-store")
        assert response.headers["access-control-allow-origin"] == ORIGIN
    assert (given["token_type"], given["expires_in"]) == ("Bearer", 600)
    assert (given["principal"]["kind"], given["principal"]["plan"]) == ("invite", "member")
    assert given["principal"]["id"].startswith(f"invite_{text[4:16]}_")
    assert given["limits"]["tokens_per_day"] == 200_000
    async with pair.post(NATIVE, question(), key=given["token"], headers=FROM_PAGE) as response:
        assert response.status == 200, await response.text()
    async with pair.get("/v1/me", key=given["token"]) as response:
        me = await response.json()
        assert (me["principal"], me["scopes"]) == (given["principal"], ["chat"])
    for origin in ({"Origin": ELSEWHERE}, {}):
        async with pair.post(NATIVE, question(), key=given["token"], headers=origin) as response:
            assert (response.status, (await response.json())["error"]["code"]) == (403, "origin_not_allowed")
    assert text[17:] not in json.dumps(pair.audit)


@on_the_modules_loop
async def test_a_program_needs_no_origin(by_invitation: Pair, address: dict[str, str]) -> None:
    given = await guest(by_invitation, create(by_invitation, plan="owner"), address)
    async with by_invitation.post(NATIVE, question(), key=given["token"]) as response:
        assert response.status == 200, await response.text()
    async with by_invitation.get("/v1/me", key=given["token"]) as response:
        assert (await response.json())["scopes"] == ["chat"], "an invite never gives the right to administer"


@on_the_modules_loop
@pytest.mark.parametrize(
    "headers",
    [{"Origin": "https://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "same-origin"},
     {"Origin": ORIGIN, "Sec-Fetch-Site": "none"}],
)  # fmt: skip
async def test_a_browser_is_let_in_from_listed_pages_only(
    by_invitation: Pair, address: dict[str, str], headers: dict[str, str]
) -> None:
    text = create(by_invitation)
    status, error = await answer(by_invitation, {"invite": text}, headers, address)
    assert (status, error["code"]) == (403, "origin_not_allowed")
    assert info_of(by_invitation, text).used == 0


@on_the_modules_loop
async def test_entering_again_spends_nothing_more(by_invitation: Pair) -> None:
    pair, text, network = by_invitation, create(by_invitation, 2), "2001:db8:77:1::"
    first = await guest(pair, text, FROM_PAGE, {"X-Forwarded-For": network + "1"})
    again = await guest(pair, text, FROM_PAGE, {"X-Forwarded-For": network + "2"})
    assert again["principal"] == first["principal"] and again["token"] != first["token"]
    assert info_of(pair, text).used == 1
    other = await guest(pair, text, {"Origin": ELSEWHERE}, {"X-Forwarded-For": network + "1"})
    assert other["principal"] != first["principal"] and info_of(pair, text).used == 2
    assert refused(await answer(pair, {"invite": text}, FROM_PAGE, from_elsewhere())) == NOT_VALID
    await guest(pair, text, FROM_PAGE, {"X-Forwarded-For": network + "3"})


@pytest.mark.case("B27")
@on_the_modules_loop
async def test_one_use_is_for_one_of_many_who_come_at_once(by_invitation: Pair) -> None:
    pair, text = by_invitation, create(by_invitation)
    callers = [{"X-Forwarded-For": f"198.19.0.{n}"} for n in range(50)]
    found = await asyncio.gather(*(answer(pair, {"invite": text}, FROM_PAGE, caller) for caller in callers))
    assert sorted(status for status, _ in found) == [200] + [401] * 49
    assert info_of(pair, text).used == 1


@on_the_modules_loop
async def test_every_invite_that_is_not_valid_gets_the_same_answer(by_invitation: Pair) -> None:
    pair = by_invitation
    used_up, revoked, expired, other = create(pair), create(pair, 5), create(pair, 5, lifetime=1), create(pair)
    await guest(pair, used_up, FROM_PAGE, from_elsewhere())
    revoke(pair, revoked)
    await wait_until(lambda: time.time() >= info_of(pair, expired).expires_at)
    answers = set()
    for text in (
        used_up,
        revoked,
        expired,
        used_up[:17] + other[17:],
        "hli_000000000000_" + "A" * 22,
        "hli_",
        "",
        "x" * 999,
    ):
        async with post(pair, {"invite": text}, FROM_PAGE, from_elsewhere()) as response:
            body = await response.json()
            assert (response.status, body["error"]["code"], body["error"]["param"]) == NOT_VALID
            del body["request_id"]
            headers = {name.lower() for name in response.headers}
            answers.add((json.dumps(body), response.headers["www-authenticate"], frozenset(headers)))
    assert len(answers) == 1


@on_the_modules_loop
async def test_guesses_are_counted_by_network(by_invitation: Pair) -> None:
    pair, text, network = by_invitation, create(by_invitation, 9), "2001:db8:77:2::"
    known = {"X-Forwarded-For": network + "1"}
    for _ in range(8):
        await guest(pair, text, FROM_PAGE, known)
    guesses = [{"X-Forwarded-For": f"{network}{n}"} for n in range(10, 18)]
    found = await asyncio.gather(*(answer(pair, {"invite": "hli_guess"}, FROM_PAGE, guess) for guess in guesses))
    assert sorted(status for status, _ in found) == [401] * 5 + [429] * 3
    async with post(pair, {"invite": text}, FROM_PAGE, known) as response:
        error = (await response.json())["error"]
        assert (response.status, error["code"]) == (429, "rate_limited"), "a valid one tells nothing either"
        assert 1 <= int(response.headers["retry-after"]) <= 60
    await guest(pair, text, FROM_PAGE, {"X-Forwarded-For": "2001:db8:77:3::1"})


@on_the_modules_loop
@pytest.mark.parametrize("headers", [FROM_PAGE, {}])
async def test_who_shows_nothing_is_asked_for_an_invite(
    by_invitation: Pair, address: dict[str, str], headers: dict[str, str]
) -> None:
    found = await answer(by_invitation, {}, headers, address)
    assert refused(found) == (401, "missing_token", "invite") and "by invitation" in found[1]["message"]


@on_the_modules_loop
@pytest.mark.parametrize("invite", [None, 7, ["hli_x"], {}])
async def test_an_invite_is_a_text(by_invitation: Pair, address: dict[str, str], invite: object) -> None:
    assert refused(await answer(by_invitation, {"invite": invite}, address)) == (400, "invalid_request", "invite")


@on_the_modules_loop
async def test_one_credential_at_a_time(by_invitation: Pair, address: dict[str, str]) -> None:
    pair, text = by_invitation, create(by_invitation)
    found = await answer(pair, {"invite": text}, bearer(pair.key), address)
    assert refused(found) == (400, "invalid_request", "invite") and info_of(pair, text).used == 0
    assert refused(await answer(pair, {"invite": text, "x": 1}, address)) == (400, "invalid_request", "x")


@on_the_modules_loop
async def test_a_plan_that_is_gone_is_told(by_invitation: Pair, address: dict[str, str]) -> None:
    status, error = await answer(by_invitation, {"invite": create(by_invitation, plan="gold")}, address)
    assert (status, error["code"]) == (403, "insufficient_scope") and "'gold'" in error["message"]


# -- the way back in --------------------------------------------------------------------------------------------------


@on_the_modules_loop
async def test_a_guest_renews_without_spending(by_invitation: Pair, address: dict[str, str]) -> None:
    pair, text = by_invitation, create(by_invitation)
    first = await guest(pair, text, FROM_PAGE, address)
    status, again = await answer(pair, {}, bearer(first["token"]), FROM_PAGE, from_elsewhere())
    assert (status, again["principal"]) == (200, first["principal"]) and again["token"] != first["token"]
    assert info_of(pair, text).used == 1
    async with pair.post(NATIVE, question(), key=again["token"], headers=FROM_PAGE) as response:
        assert response.status == 200
    for headers in ({"Origin": ELSEWHERE}, {}):
        status, error = await answer(pair, {}, bearer(again["token"]), headers, address)
        assert (status, error["code"]) == (403, "origin_not_allowed")


@on_the_modules_loop
async def test_no_token_outlives_its_invite(by_invitation: Pair, address: dict[str, str]) -> None:
    text = create(by_invitation, lifetime=4)
    ends = info_of(by_invitation, text).expires_at
    first = await guest(by_invitation, text, address)
    status, again = await answer(by_invitation, {}, bearer(first["token"]), address)
    assert status == 200
    for given in (first, again):
        assert given["expires_in"] <= 4
        async with by_invitation.get("/v1/me", key=given["token"]) as response:
            assert (await response.json())["expires_at"] == ends
    await wait_until(lambda: time.time() >= ends, 10)
    assert refused(await answer(by_invitation, {}, bearer(again["token"]), address))[:2] == (401, "token_expired")
    async with by_invitation.get("/v1/me", key=again["token"]) as response:
        assert response.status == 401


@on_the_modules_loop
async def test_a_token_that_was_given_back_is_not_renewed(by_invitation: Pair, address: dict[str, str]) -> None:
    pair = by_invitation
    given = await guest(pair, create(pair), address)
    async with pair.client.delete(pair.url + "/v1/token", headers=bearer(given["token"])) as response:
        assert response.status == 204
    assert refused(await answer(pair, {}, bearer(given["token"]), address))[:2] == (401, "token_revoked")


@on_the_modules_loop
async def test_other_tokens_are_not_renewed(by_invitation: Pair, address: dict[str, str]) -> None:
    tokens = Tokens(StateDir(by_invitation.state).signing_keys().verifying, 600)
    for kind in ("anonymous", "key", "token"):
        minted = tokens.mint(Principal("somebody", kind, "member", ("chat",)))[0]
        status, error = await answer(by_invitation, {}, bearer(minted), address)
        assert (status, error["code"]) == (401, "invalid_token") and "not an API key" in error["message"]
    assert (await answer(by_invitation, {}, bearer(by_invitation.key), address))[1]["principal"]["kind"] == "key"


# -- how it ends ------------------------------------------------------------------------------------------------------


async def test_revoking_ends_what_it_let_in(runtime: FakeRuntime, tmp_path: Path, quick_ticks: None) -> None:
    runtime.script = "stall_mid_stream"
    async with running_pair(runtime.url, state=tmp_path, edge=BY_INVITATION) as pair:
        text, kept = create(pair), create(pair)
        given, other = await guest(pair, text), await guest(pair, kept)
        async with await RawClient.connect(pair.url) as raw:
            await raw.post(NATIVE, question(stream=True), bearer(given["token"]))
            assert (await raw.head()).status == 200
            await raw.read_until(b"one ")
            finished = await command_line.run("invite", "revoke", text[4:16], state=tmp_path)
            assert finished.status == 0, finished.err
            status, error = await answer(pair, {}, bearer(given["token"]))
            assert status == 401 and error["code"] in ("invalid_token", "token_revoked"), "at once"
            await raw.read_until(b"token_revoked")
        principal = Tokens(StateDir(tmp_path).signing_keys().verifying, 600).verify(given["token"])
        await wait_until(lambda: pair.edge.services.store.revoked(principal))
        async with pair.post(NATIVE, question(), key=given["token"]) as response:
            assert (response.status, (await response.json())["error"]["code"]) == (401, "token_revoked")
        async with pair.get("/v1/me", key=other["token"]) as response:
            assert response.status == 200
        await pair.idle()


# -- shut, or beside the anonymous door -------------------------------------------------------------------------------


async def test_a_door_that_is_shut_does_not_exist(pair: Pair) -> None:
    text = create(pair)
    assert refused(await answer(pair, {"invite": text}, FROM_PAGE)) == (400, "invalid_request", "invite")
    assert info_of(pair, text).used == 0


def test_a_door_that_is_shut_is_not_imported() -> None:
    code = "import sys, edge.app; print('edge.doors.invite' in sys.modules)"
    arguments = [sys.executable, "-c", code]
    assert subprocess.check_output(arguments, cwd=command_line.ROOT, text=True) == "False\n"


async def test_tokens_of_a_door_that_was_shut_are_not_renewed(runtime: FakeRuntime, tmp_path: Path) -> None:
    async with running_pair(runtime.url, state=tmp_path, edge=BY_INVITATION) as pair:
        given = await guest(pair, create(pair))
    async with running_pair(runtime.url, state=tmp_path, edge={"anonymous": False}) as pair:
        assert refused(await answer(pair, {})) == (401, "missing_token", None)
        async with pair.get("/v1/me", key=given["token"]) as response:
            assert response.status == 200, "they last as long as they said"
        assert refused(await answer(pair, {}, bearer(given["token"])))[:2] == (401, "invalid_token")


async def test_both_doors_may_be_open(runtime: FakeRuntime, tmp_path: Path) -> None:
    async with running_pair(runtime.url, state=tmp_path, edge=BY_INVITATION | {"anonymous": True}) as pair:
        assert (await answer(pair, {}, FROM_PAGE))[1]["principal"]["kind"] == "anonymous"
        assert (await guest(pair, create(pair), FROM_PAGE))["principal"]["plan"] == "member"
        status, error = await answer(pair, {})
        assert (status, error["code"]) == (403, "origin_not_allowed")
