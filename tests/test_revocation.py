"""Tokens that are ended before their time: refused from then on, and the answers that run on them end (case B25)."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from edge.app import run_edge
from edge.principals import Principal
from edge.store.opening import admin_from
from edge.tokens import Tokens
from shared.state import StateDir
from tests import command_line
from tests.fake_runtime import FakeRuntime
from tests.pair import ANY_PORT, ORIGIN, Pair, create_key, principal_of, question, running_pair, settings_for
from tests.processes import running_processes
from tests.raw_http import RawClient
from tests.redis_server import running_redis
from tests.waiting import wait_until

PROMISED = 5.0  # seconds from the owner's word to the end of a running answer
FROM_PAGE = {"Origin": ORIGIN}
# What the owner says of a token to revoke it, by what is revoked.
REVOCATIONS: dict[str, Callable[[str], tuple[str, ...]]] = {
    "token": lambda token: (token,),
    "principal": lambda token: ("token_ci",),
    "everyone": lambda token: ("--everyone",),
}


# What each surface is asked that a chat of the runtime answers.
CHATS: dict[str, dict[str, Any]] = {
    "/v1/chat": question(),
    "/v1/chat/completions": question(),
    "/api/chat": {"message": "Where to?"},
}


def verified(state: Path, token: str) -> Principal:
    return Tokens(StateDir(state).signing_keys().verifying, 600).verify(token)


async def mint(state: Path, name: str = "ci") -> str:
    made = await command_line.run("token", "mint", name, "--hours", "1", "--plan", "owner", state=state)
    assert made.status == 0, made.err
    return made.out.strip()


async def code_of(pair: Pair, credential: str, **headers: str) -> str | None:
    async with pair.get("/v1/me", key=credential, headers=headers) as response:
        return (await response.json()).get("error", {}).get("code")


@pytest.mark.case("B25")
@pytest.mark.parametrize("what", REVOCATIONS)
async def test_answers_that_run_end_on_every_surface(tmp_path: Path, what: str) -> None:
    """Streams and whole answers of an edge process, ended by the command; a key's own answers go on."""
    async with (
        FakeRuntime("stall_mid_stream", slots=7) as runtime,
        running_processes(runtime.url, tmp_path) as processes,
    ):
        token = await mint(tmp_path)
        async with asyncio.TaskGroup() as group:
            asked = [
                group.create_task(ended(processes.url + path, token, stream))
                for path in CHATS
                for stream in (True, False)
            ]
            on_a_key = group.create_task(ended(processes.url + "/v1/chat", processes.key, True))
            await runtime.until(lambda: len(runtime.chats) == len(asked) + 1)
            done = await command_line.run("token", "revoke", *REVOCATIONS[what](token), state=tmp_path)
            assert done.status == 0, done.err
            async with asyncio.timeout(PROMISED):
                assert await asyncio.gather(*asked) == ["token_revoked"] * len(asked)
            assert not on_a_key.done()
            on_a_key.cancel()


async def ended(url: str, credential: str, stream: bool) -> str:
    """The code of the error that ends an answer, or that stands for it."""
    async with await RawClient.connect(url) as raw:
        path = "/" + url.split("/", 3)[3]
        await raw.post(path, {**CHATS[path], "stream": stream}, {"Authorization": f"Bearer {credential}"})
        head = await raw.head(60)
        body = (await raw.body(60)).decode()
    if not stream:
        assert head.status == 401
        return json.loads(body)["error"]["code"]
    assert head.status == 200 and "data: [DONE]" not in body
    return json.loads(body.rstrip().rpartition("data: ")[2])["error"]["code"]


@pytest.mark.case("B25")
async def test_a_token_that_gives_itself_back_ends_its_own_answer(pair: Pair, runtime: FakeRuntime) -> None:
    runtime.script = "stall_mid_stream"
    headers = {**pair.bearer(await pair.token()), **FROM_PAGE}
    async with await RawClient.connect(pair.url) as raw:
        await raw.post("/v1/chat", question(stream=True), headers)
        assert (await raw.head()).status == 200
        await raw.read_until(b"one ")
        async with pair.client.delete(pair.url + "/v1/token", headers=headers) as response:
            assert response.status == 204
        await raw.read_until(b"token_revoked", PROMISED)
    await pair.idle()


async def test_one_token_of_a_caller_ends_and_the_others_go_on(pair: Pair) -> None:
    first, second = await mint(pair.state), await mint(pair.state)
    done = await command_line.run("token", "revoke", "-", "--json", state=pair.state, stdin=first + "\n")
    assert (done.status, json.loads(done.out)) == (0, {"revoked": "token", "principal": "token_ci"})
    await wait_until(lambda: pair.edge.services.store.revoked(verified(pair.state, first)))
    assert [await code_of(pair, token) for token in (first, second)] == ["token_revoked", None]


async def test_one_caller_ends_and_the_others_go_on(pair: Pair) -> None:
    first, again, other = await mint(pair.state), await mint(pair.state), await mint(pair.state, "other")
    done = await command_line.run("token", "revoke", "token_ci", state=pair.state)
    assert done.status == 0 and "Every credential of token_ci is revoked" in done.err, done.err
    await wait_until(lambda: pair.edge.services.store.revoked(verified(pair.state, first)))
    assert [await code_of(pair, token) for token in (first, again, other)] == ["token_revoked", "token_revoked", None]
    await next_second()
    assert await code_of(pair, await mint(pair.state)) is None, "what is issued later is another decision"


async def next_second() -> None:
    """A token is issued in a whole second, and one of the second of its caller's revocation is revoked as well."""
    begun = int(time.time())
    await wait_until(lambda: int(time.time()) > begun, 3)


async def test_everybody_ends_but_keys_and_doors(pair: Pair) -> None:
    minted, page = await mint(pair.state), await pair.token()
    done = await command_line.run("token", "revoke", "--everyone", state=pair.state)
    assert done.status == 0, done.err
    await wait_until(lambda: pair.edge.services.store.revoked(verified(pair.state, minted)))
    assert [await code_of(pair, minted), await code_of(pair, page, **FROM_PAGE)] == ["token_revoked"] * 2
    assert await code_of(pair, pair.key) is None
    assert await code_of(pair, await pair.token(), **FROM_PAGE) is None, "in the same second too"


async def test_a_caller_who_is_revoked_gets_another_token_by_an_open_door_at_once(pair: Pair) -> None:
    key = await pair.new_key("member")

    async def minted() -> str:
        async with pair.post("/v1/token", {}, key=key) as response:
            return (await response.json())["token"]

    await begin_a_second()
    first, store = verified(pair.state, await minted()), pair.edge.services.store
    store.records.principals[first.id] = int(time.time())
    assert store.revoked(first)
    assert await code_of(pair, await minted()) is None


async def begin_a_second() -> None:
    """With time left for what a test does in it."""
    await wait_until(lambda: time.time() % 1 < 0.2, 3)


async def test_a_key_s_caller_is_revoked_with_the_key(pair: Pair) -> None:
    key = await pair.new_key("member")
    async with pair.post("/v1/token", {}, key=key) as response:
        token = (await response.json())["token"]
    done = await command_line.run("token", "revoke", principal_of(key), state=pair.state)
    assert done.status == 0, done.err
    await wait_until(lambda: pair.edge.services.store.revoked(verified(pair.state, token)))
    assert (await code_of(pair, key), await code_of(pair, token)) == ("invalid_token", "token_revoked")
    async with pair.post("/v1/token", {}, key=key) as response:
        assert response.status == 401


@pytest.mark.parametrize("what", REVOCATIONS)
async def test_what_was_revoked_is_revoked_after_a_restart(runtime: FakeRuntime, tmp_path: Path, what: str) -> None:
    token = await mint(tmp_path)
    create_key(tmp_path)
    done = await command_line.run("token", "revoke", *REVOCATIONS[what](token), state=tmp_path)
    assert done.status == 0, "no edge runs, and none is needed"
    for _ in range(2):
        async with running_pair(runtime.url, state=tmp_path, wait=False) as pair:
            assert await code_of(pair, token) == "token_revoked"


async def test_a_guest_who_was_revoked_does_not_come_in_again_by_the_same_invite(
    runtime: FakeRuntime, tmp_path: Path
) -> None:
    async with running_pair(runtime.url, state=tmp_path, edge={"invites": True}) as pair:
        async with admin_from(pair.edge.settings, StateDir(tmp_path)) as admin:
            _, invite = await admin.create_invite("member", 5, int(time.time()) + 600)
        token = (await entered(pair, {"invite": invite}))["token"]
        guest = verified(tmp_path, token)
        done = await command_line.run("token", "revoke", guest.id, state=tmp_path)
        assert done.status == 0, done.err
        await wait_until(lambda: pair.edge.services.store.revoked(guest))
        await next_second()
        assert "token" not in await entered(pair, {"invite": invite})
        assert "token" not in await entered(pair, {}, token)


async def entered(pair: Pair, body: dict[str, Any], token: str | None = None) -> dict[str, Any]:
    headers = FROM_PAGE | ({} if token is None else pair.bearer(token))
    async with pair.client.post(pair.url + "/v1/token", json=body, headers=headers) as response:
        return await response.json()


async def test_on_a_store_that_edges_share_the_command_revokes_on_all(tmp_path: Path) -> None:
    """From any machine that may use the store, for each edge on it."""
    async with running_redis(tmp_path / "redis") as redis, aiohttp.ClientSession(trust_env=False) as client:
        (elsewhere := tmp_path / "elsewhere").mkdir()
        environ = {"HEARTHLINK_EDGE__STORE": redis.url}

        async def verb(*arguments: str) -> str:
            done = await command_line.run("token", *arguments, state=elsewhere, environ=environ)
            assert done.status == 0, done.err
            return done.out.strip()

        async def statuses(token: str) -> list[int]:
            found = []
            for edge in (one, two):
                async with client.get(
                    edge.public.url + "/v1/me", headers={"Authorization": f"Bearer {token}"}
                ) as answer:
                    found.append(answer.status)
            return found

        settings = [
            settings_for(tmp_path / name, {"edge": {"store": redis.url, "listen": ANY_PORT, "ops_listen": ANY_PORT}})
            for name in ("one", "two")
        ]
        async with run_edge(settings[0], lambda line: None) as one, run_edge(settings[1], lambda line: None) as two:
            for what, named in REVOCATIONS.items():
                await next_second()
                token = await verb("mint", "ci", "--hours", "1")
                assert await statuses(token) == [200, 200], what
                await verb("revoke", *named(token))
                async with asyncio.timeout(PROMISED):
                    while await statuses(token) != [401, 401]:  # noqa: ASYNC110 - it is at the other end of a socket
                        await asyncio.sleep(0.1)


# -- what the command says --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        ((), 2, "one token, one caller, or --everyone"),
        (("token_ci", "--everyone"), 2, "one token, one caller, or --everyone"),
        (("hlt_" + "A" * 60 + "." + "A" * 43,), 3, "no token of this edge"),
        (("hlk_0123456789ab_" + "A" * 43,), 2, "hearthlink key revoke NAME"),
        (("hli_0123456789ab_" + "A" * 22,), 2, "hearthlink invite revoke NAME"),
        (("two words",), 3, "No key is called"),
        (("laptop",), 3, "No key is called"),
    ],
)
async def test_what_cannot_be_revoked_is_said(
    tmp_path: Path, arguments: tuple[str, ...], status: int, says: str
) -> None:
    done = await command_line.run("token", "revoke", *arguments, state=tmp_path)
    assert done.status == status and says in done.err and not done.out
    assert not any(argument.startswith("hl") and argument in done.err for argument in arguments)


async def test_a_token_that_has_ended_is_said_to_have(tmp_path: Path) -> None:
    keys = StateDir(tmp_path).signing_keys().verifying
    ci = Principal("token_ci", "token", "member", ("chat",))
    token, _ = Tokens(keys, 60, now=lambda: time.time() - 61).mint(ci)
    done = await command_line.run("token", "revoke", token, state=tmp_path)
    assert done.status == 3 and "ended by itself" in done.err
