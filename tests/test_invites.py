"""Invites: who is let in and how often, what everybody else is told, and how it ends."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from loguru import logger

from edge.principals import Principal, invite_of, invited_id
from edge.store import invites, keys
from edge.store.database import AdminError, NoSuchError, connect, open_for_admin
from edge.store.invites import Invites
from edge.tokens import Tokens
from shared.contract.errors import ApiError
from shared.state import StateDir
from tests import command_line
from tests.fake_runtime import FakeRuntime
from tests.pair import ORIGIN, Pair, from_elsewhere, question, running_pair
from tests.raw_http import RawClient
from tests.waiting import wait_until

NATIVE = "/v1/chat"
NOW = 1_800_000_000
DAY = 86_400
SECRET = b"s" * 32
ELSEWHERE = "http://other.test"
BY_INVITATION = {
    "invites": True,
    "anonymous": False,
    "allowed_origins": [ORIGIN, ELSEWHERE],
    "trusted_proxies": ["127.0.0.1"],
}

# -- the store --------------------------------------------------------------------------------------------------------


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "edge.db"


@pytest.fixture
def admin(database: Path) -> Iterator[Any]:
    connection = open_for_admin(database)
    yield connection
    connection.close()


@pytest.fixture
def logged() -> Iterator[list[str]]:
    lines: list[str] = []
    sink = logger.add(lines.append, format="{level} {message}", filter="edge.store.invites")
    yield lines
    logger.remove(sink)


def make(connection: Any, uses: int = 1, *, lifetime: int = DAY, name: str | None = None) -> str:
    return invites.create(connection, "member", uses, NOW + lifetime, name, now=lambda: NOW)


def enters(connection: Any, text: str, caller: str = "ann", at: float = NOW) -> bool:
    return invites.spend(connection, text, lambda invite: f"{invite}-{caller}", at) is not None


def used(connection: Any) -> list[int]:
    return [info.used for info in invites.list_invites(connection)]


def test_each_use_lets_one_caller_in(admin: Any) -> None:
    text = make(admin, 2)
    assert enters(admin, text, "ann") and enters(admin, text, "bob")
    assert not enters(admin, text, "cem")
    assert enters(admin, text, "ann"), "who was let in spends nothing more"
    assert used(admin) == [2]


def test_an_invite_ends(admin: Any) -> None:
    text = make(admin, 5, lifetime=60)
    assert enters(admin, text, at=NOW + 58)
    assert not enters(admin, text, at=NOW + 60), "nor the one who was in"
    kept = make(admin, 5, name="kept")
    invites.revoke(admin, text)
    assert not enters(admin, text) and enters(admin, kept)


def test_an_invite_is_revoked_by_any_of_its_names(admin: Any) -> None:
    for which in (lambda text: "beta", lambda text: text[4:16], lambda text: text):
        text = make(admin, name="beta")
        assert invites.revoke(admin, which(text)).id == text[4:16]
        with pytest.raises(NoSuchError, match="No living invite") as caught:
            invites.revoke(admin, which(text))
        assert text[17:] not in str(caught.value)


def test_invites_of_no_use_are_not_made(admin: Any) -> None:
    make(admin, name="beta")
    for uses, lifetime, name in (
        (0, DAY, None),
        (1, 0, None),
        (1, DAY, "a b"),
        (1, DAY, "0123456789ab"),
        (1, DAY, "beta"),
    ):
        with pytest.raises(AdminError):
            make(admin, uses, lifetime=lifetime, name=name)
    assert used(admin) == [0]


def test_no_other_text_is_an_invite(admin: Any) -> None:
    text = make(admin, 100)
    other = make(admin, 100)
    for wrong in (
        *("", "hli_", text[:-1], text + "A", text + "\n", " " + text, text.upper(), text[4:], "hlk_" + text[4:]),
        text[:-1] + ("A" if text[-1] != "A" else "B"),
        other[:17] + text[17:],
    ):
        assert not enters(admin, wrong)
    assert used(admin) == [0, 0]


def test_processes_that_spend_at_once_never_overspend(database: Path, admin: Any) -> None:
    text = make(admin, 7)
    code = (
        "import sys; from pathlib import Path; from edge.store import database, invites\n"
        f"connection = database.open_for_admin(Path({str(database)!r}))\n"
        "sys.stdin.readline()\n"
        f"found = [invites.spend(connection, {text!r}, lambda i: sys.argv[1] + str(n % 9), {NOW}) for n in range(18)]\n"
        "print(len({who[1] for who in found if who}))"
    )
    racing = [
        subprocess.Popen(
            [sys.executable, "-c", code, name],
            cwd=command_line.ROOT,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for name in ("a", "b", "c")
    ]
    try:
        for process in racing:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        entered = [int(process.communicate(timeout=30)[0]) for process in racing]
    finally:
        for process in racing:
            process.kill()
    assert sum(entered) == 7 and used(admin) == [7]


def test_what_ended_is_swept(admin: Any) -> None:
    short, long = make(admin, 5, lifetime=60), make(admin, 5, lifetime=3 * DAY)
    assert enters(admin, short) and enters(admin, long)

    def left(at: float) -> tuple[int, int]:
        Invites(admin, SECRET, now=lambda: at).forget(35)
        return tuple(
            admin.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in ("invites", "invite_uses")
        )  # type: ignore[return-value]

    assert left(NOW + 59) == (2, 2)
    assert left(NOW + 60) == (2, 1), "the list still shows it"
    assert left(NOW + 60 + 35 * DAY) == (1, 0)


async def test_a_use_waits_for_another_process_and_not_for_ever(
    database: Path, admin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = make(admin)
    connection = connect(database, busy_seconds=0)
    book = Invites(connection, SECRET, now=lambda: NOW)
    try:
        admin.execute("BEGIN IMMEDIATE")
        waiting = asyncio.create_task(book.enter(text, "192.0.2.1", None))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        admin.execute("COMMIT")
        assert (await waiting).plan == "member"

        monkeypatch.setattr(invites, "_WRITE_SECONDS", 0.2)
        admin.execute("BEGIN IMMEDIATE")
        with pytest.raises(ApiError) as caught:
            await book.enter(make_elsewhere(admin), "192.0.2.1", None)
        assert (caught.value.code, caught.value.status) == ("overloaded", 503)
    finally:
        admin.execute("COMMIT")
        connection.close()


async def test_guests_who_wait_for_a_write_try_one_at_a_time(
    database: Path, admin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each try stops the loop for the busy timeout: thirty in a row would stop every answer for as long together."""
    monkeypatch.setattr(invites, "_WRITE_SECONDS", 30.0)
    text = make(admin, 30)
    connection = connect(database, busy_seconds=0.01)
    said: list[str] = []
    connection.set_trace_callback(said.append)
    book = Invites(connection, SECRET, now=lambda: NOW)
    admin.execute("BEGIN IMMEDIATE")
    waiting = [asyncio.create_task(book.enter(text, f"192.0.2.{n}", None)) for n in range(30)]
    try:
        await wait_until(lambda: said.count("BEGIN IMMEDIATE") >= 2, 10)
        assert said.count("BEGIN IMMEDIATE") == 2, "that of the first, and its second"
        with pytest.raises(ApiError, match="not valid"):
            async with asyncio.timeout(0):
                await book.enter(text[:-1], "192.0.2.99", None)  # what needs no write does not wait
        admin.execute("COMMIT")
        assert len({principal.id for principal in await asyncio.gather(*waiting)}) == 30
        assert used(admin) == [30]
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        connection.close()


def read_only(connection: Any) -> None:
    connection.execute("PRAGMA query_only = ON")


def full(connection: Any) -> None:
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count = {pages}")


@pytest.mark.parametrize(("fault", "code"), [(read_only, "SQLITE_READONLY"), (full, "SQLITE_FULL")])
async def test_a_use_that_cannot_be_written_lets_nobody_in(
    database: Path, admin: Any, logged: list[str], fault: Callable[[Any], None], code: str
) -> None:
    text = make(admin, 1000)
    connection = connect(database, busy_seconds=0.01)
    book = Invites(connection, SECRET, now=lambda: NOW)
    try:
        fault(connection)
        entered = 0
        with pytest.raises(ApiError) as caught:
            for entered in range(1000):  # a page of the file takes some dozens
                await book.enter(text, f"192.0.{entered // 250}.{entered % 250}", None)
        assert (caught.value.code, caught.value.status) == ("overloaded", 503)
        assert caught.value.__cause__ is None and caught.value.__suppress_context__
        assert used(admin) == [entered] and not connection.in_transaction
        assert len(logged) == 1 and code in logged[0] and text not in logged[0]
    finally:
        connection.close()


def make_elsewhere(connection: Any) -> str:
    """An invite that is visible to others while ``connection`` goes on writing."""
    connection.execute("COMMIT")
    text = make(connection)
    connection.execute("BEGIN IMMEDIATE")
    return text


def test_a_database_of_the_first_version_is_brought_up_to_date(database: Path) -> None:
    connection = open_for_admin(database)
    key = keys.create(connection, "ci", "member", ["chat"])
    connection.executescript("DROP TABLE invites; DROP TABLE invite_uses; PRAGMA user_version = 1")
    connection.close()
    connection = open_for_admin(database)
    try:
        assert [info.id for info in keys.list_keys(connection)] == [key[4:16]]
        assert enters(connection, make(connection))
    finally:
        connection.close()


def test_who_counts_as_one_caller() -> None:
    def caller(invite: str = "a" * 12, ip: str = "192.0.2.1", origin: str | None = ORIGIN) -> str:
        return invited_id(SECRET, invite, ip, origin)

    assert caller() == caller(ip="::ffff:192.0.2.1")
    assert caller(ip="2001:db8:1:2::7") == caller(ip="2001:db8:1:2:aaaa::9")
    assert len({caller(), caller("b" * 12), caller(ip="192.0.2.2"), caller(origin=ELSEWHERE), caller(origin=None)}) == 5
    assert invite_of(Principal(caller(), "invite", "member", ())) == "a" * 12
    assert invite_of(Principal(caller(), "token", "member", ())) is None


# -- the door ---------------------------------------------------------------------------------------------------------


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
        return invites.create(connection, plan, uses, int(time.time()) + lifetime)
    finally:
        connection.close()


def revoke(pair: Pair, text: str) -> None:
    connection = open_for_admin(StateDir(pair.state).database)
    try:
        invites.revoke(connection, text)
    finally:
        connection.close()


def info_of(pair: Pair, text: str) -> invites.InviteInfo:
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


@on_the_modules_loop
async def test_one_use_is_for_one_of_many_who_come_at_once(by_invitation: Pair) -> None:
    pair, text = by_invitation, create(by_invitation)
    callers = [{"X-Forwarded-For": f"198.19.0.{n}"} for n in range(40)]
    found = await asyncio.gather(*(answer(pair, {"invite": text}, FROM_PAGE, caller) for caller in callers))
    assert sorted(status for status, _ in found) == [200] + [401] * 39
    assert info_of(pair, text).used == 1


@on_the_modules_loop
async def test_every_invite_that_is_not_valid_gets_the_same_answer(by_invitation: Pair) -> None:
    pair = by_invitation
    used_up, revoked, expired, other = create(pair), create(pair, 5), create(pair, 5, lifetime=2), create(pair)
    await guest(pair, used_up, FROM_PAGE, from_elsewhere())
    revoke(pair, revoked)
    await asyncio.sleep(1.5)
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
    await asyncio.sleep(max(0.0, ends - time.time()))
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
    tokens = Tokens(StateDir(by_invitation.state).signing_keys(), 600)
    for kind in ("anonymous", "key", "token"):
        minted = tokens.mint(Principal("somebody", kind, "member", ("chat",)))[0]
        status, error = await answer(by_invitation, {}, bearer(minted), address)
        assert (status, error["code"]) == (401, "invalid_token") and "not an API key" in error["message"]
    assert (await answer(by_invitation, {}, bearer(by_invitation.key), address))[1]["principal"]["kind"] == "key"


# -- how it ends ------------------------------------------------------------------------------------------------------


async def test_revoking_ends_what_it_let_in(runtime: FakeRuntime, tmp_path: Path, quick_ticks: None) -> None:
    runtime.script = "slow"
    async with running_pair(runtime.url, state=tmp_path, edge=BY_INVITATION) as pair:
        text, kept = create(pair), create(pair)
        given, other = await guest(pair, text), await guest(pair, kept)
        async with await RawClient.connect(pair.url) as raw:
            await raw.post(NATIVE, question(stream=True), bearer(given["token"]))
            assert (await raw.head()).status == 200
            await raw.read_until(b"one ")
            finished = await command_line.run("invite", "revoke", text[4:16], state=tmp_path)
            assert finished.status == 0, finished.err
            assert refused(await answer(pair, {}, bearer(given["token"]))) == NOT_VALID, "at once"
            await raw.read_until(b"token_revoked", 5)
        principal = Tokens(StateDir(tmp_path).signing_keys(), 600).verify(given["token"])
        await wait_until(lambda: pair.edge.services.store.revoked(principal), 1)
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
