"""Locks of a token: asked for with an API key or on the command line, kept on every route."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.locks import LOCKS, Locks
from edge.principals import Principal
from edge.tokens import Tokens
from shared.contract.errors import ApiError
from shared.state import StateDir
from tests import command_line
from tests.fake_runtime import FakeRuntime
from tests.pair import ORIGIN, Pair, principal_of, question, running_pair
from tests.waiting import wait_until

on_the_modules_loop = pytest.mark.asyncio(loop_scope="module")

NATIVE = "/v1/chat"
OPENAI = "/v1/chat/completions"
KEY = Principal("key_0123456789ab", "key", "a-plan-with-a-name-of-32-letters", ("chat", "admin"))
NAMES = st.from_regex(r"[A-Za-z][A-Za-z0-9_-]{0,63}", fullmatch=True)


# -- reading them -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("origin", "https://app.example.com/"),
        ("origin", "app.example.com"),
        ("origin", "https://APP.example.com"),
        ("origin", "https://*.example.com"),
        ("origin", "null"),
        ("origin", ""),
        ("origin", "https://" + "a" * 300),
        ("origin", 7),
        ("origin", ["https://app.example.com"]),
        ("chat_types", []),
        ("chat_types", "home"),
        ("chat_types", [""]),
        ("chat_types", [7]),
        ("chat_types", [["home"]]),
        ("chat_types", ["a\nb"]),
        ("chat_types", ["søster"]),
        ("chat_types", ["a" * 65]),
        ("chat_types", [f"type{number}" for number in range(100)]),
        ("max_tokens", 0),
        ("max_tokens", -1),
        ("max_tokens", 1.5),
        ("max_tokens", True),
        ("max_tokens", "300"),
        ("max_tokens", 10**9),
        ("uses", 0),
        ("uses", 2.0),
        ("uses", {}),
    ],
)
def test_a_lock_that_locks_nothing_in_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ApiError) as caught:
        Locks.from_body({name: value})
    assert (caught.value.code, caught.value.param) == ("invalid_request", name)
    assert f"{name!r}" in caught.value.message


@given(
    st.dictionaries(st.sampled_from(LOCKS), st.recursive(st.none() | st.text() | st.integers() | st.floats(), st.lists))
)
def test_whatever_a_body_holds_it_is_a_lock_or_a_refusal(body: dict[str, Any]) -> None:
    try:
        locks = Locks.from_body(body)
    except ApiError as error:
        assert error.code == "invalid_request" and error.param in body
    else:
        found = {name: getattr(locks, name) for name in LOCKS}
        found["chat_types"] = None if locks.chat_types is None else [*locks.chat_types]
        assert {name: value for name, value in found.items() if value is not None} == {
            name: value for name, value in body.items() if value is not None
        }


@given(st.lists(NAMES, min_size=1, max_size=64, unique=True), st.integers(1, 1_000_000), st.integers(1, 1_000_000))
def test_locks_that_were_read_fit_into_a_key_s_token_and_come_out_as_they_were(
    names: list[str], longest: int, uses: int
) -> None:
    origin = "https://" + "a" * 238 + ".app:8443"
    try:
        locks = Locks(origin, tuple(names), longest, uses)
    except ApiError as error:
        assert error.param == "chat_types" and "fit into a token" in error.message
        return
    tokens = Tokens(["k" * 43], 600)
    found = tokens.verify(tokens.mint(locks.on(KEY))[0])
    assert (found.origin, found.chat_types, found.max_tokens, found.uses) == (origin, tuple(names), longest, uses)


def test_locks_narrow_what_is_locked_already() -> None:
    locked = Locks(ORIGIN, ("home", "whereToGo"), 300, 20).on(KEY)
    assert Locks().on(locked) == locked
    narrower = Locks(chat_types=("home",), max_tokens=1000, uses=5).on(locked)
    assert (narrower.origin, narrower.chat_types, narrower.max_tokens, narrower.uses) == (ORIGIN, ("home",), 300, 5)
    for wider in (Locks(origin="https://other.example.com"), Locks(chat_types=("home", "somethingFun"))):
        with pytest.raises(ApiError, match="this credential"):
            wider.on(locked)


# -- on every route ---------------------------------------------------------------------------------------------------


async def minted(pair: Pair, locks: dict[str, Any], key: str | None = None) -> str:
    async with pair.post("/v1/token", locks, key=key) as response:
        assert response.status == 200, await response.text()
        return (await response.json())["token"]


async def ask(pair: Pair, token: str, path: str = NATIVE, origin: str | None = None, **fields: Any) -> Any:
    """(status, code of the error or None)."""
    headers = {} if origin is None else {"Origin": origin}
    async with pair.post(path, question(**fields), key=token, headers=headers) as response:
        return response.status, (await response.json()).get("error", {}).get("code")


async def get(pair: Pair, token: str, path: str, origin: str | None = None, method: str = "GET") -> Any:
    headers = {**pair.bearer(token), **({} if origin is None else {"Origin": origin})}
    async with pair.client.request(method, pair.url + path, headers=headers) as response:
        answer = {} if response.status == 204 else await response.json()
        return response.status, answer.get("error", {}).get("code"), answer


ROUTES = [
    ("GET", "/v1/me"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/chat:home"),
    ("GET", "/v1/chat/types"),
    ("DELETE", "/v1/chat/" + "A" * 22),
    ("DELETE", "/v1/token"),
]


@on_the_modules_loop
async def test_an_origin_holds_on_every_route(shared_pair: Pair, shared_runtime: FakeRuntime) -> None:
    other = "https://other.example.com"
    token = await minted(shared_pair, {"origin": ORIGIN})
    for method, path in ROUTES:
        assert (await get(shared_pair, token, path, other, method))[:2] == (403, "origin_not_allowed"), path
    for path in (NATIVE, OPENAI):
        assert await ask(shared_pair, token, path, other) == (403, "origin_not_allowed")
        assert await ask(shared_pair, token, path) == (403, "origin_not_allowed"), "a program has no origin"
    assert not shared_runtime.chats
    for method, path in ROUTES[:4]:
        assert (await get(shared_pair, token, path, ORIGIN, method))[0] == 200, path
    assert await ask(shared_pair, token, NATIVE, ORIGIN) == (200, None)


@on_the_modules_loop
async def test_chat_types_hold_on_every_route(shared_pair: Pair, shared_runtime: FakeRuntime) -> None:
    token = await minted(shared_pair, {"chat_types": ["home", "somethingFun"]})
    assert await ask(shared_pair, token) == (200, None), "the chat type of a page that names none is home"
    assert await ask(shared_pair, token, chat_type="somethingFun") == (200, None)
    assert await ask(shared_pair, token, OPENAI, model="chat:home") == (200, None)
    for model in ("chat:home", "default"):
        assert await ask(shared_pair, token, chat_type="home", model=model) == (200, None), "the chat type's own model"
    count = len(shared_runtime.chats)
    assert await ask(shared_pair, token, chat_type="whereToGo") == (403, "chat_type_not_allowed")
    for model in ("fake-model", "nonsense"):
        named = {"chat_type": "home", "model": model}
        assert await ask(shared_pair, token, **named) == (403, "model_not_allowed"), "a chat type has its own"
    assert await ask(shared_pair, token, OPENAI, model="chat:whereToGo") == (403, "chat_type_not_allowed")
    for model in ({}, {"model": "default"}, {"model": "fake-model"}):
        assert await ask(shared_pair, token, OPENAI, **model) == (403, "chat_type_not_allowed"), model
    assert len(shared_runtime.chats) == count
    types = (await get(shared_pair, token, "/v1/chat/types"))[2]["data"]
    models = (await get(shared_pair, token, "/v1/models"))[2]["data"]
    assert [one["name"] for one in types] == ["home", "somethingFun"]
    assert [one["id"] for one in models] == ["chat:home", "chat:somethingFun"]
    assert (await get(shared_pair, token, "/v1/models/chat:whereToGo"))[:2] == (404, "model_not_found")


@on_the_modules_loop
async def test_a_longest_answer_holds_on_every_surface(shared_pair: Pair, shared_runtime: FakeRuntime) -> None:
    token = await minted(shared_pair, {"max_tokens": 50})
    for path in (NATIVE, OPENAI):
        for asked, sent in ((None, 50), (10_000, 50), (7, 7)):
            fields: dict[str, Any] = {} if asked is None else {"max_tokens": asked}
            assert await ask(shared_pair, token, path, **fields) == (200, None)
            assert shared_runtime.chats[-1].json["max_tokens"] == sent
    assert await ask(shared_pair, token, OPENAI, max_completion_tokens=10_000) == (200, None)
    assert shared_runtime.chats[-1].json["max_tokens"] == 50


@on_the_modules_loop
async def test_uses_are_spent_by_answers_alone(shared_pair: Pair, shared_runtime: FakeRuntime) -> None:
    token = await minted(shared_pair, {"uses": 2})
    for method, path in ROUTES[:5]:
        await get(shared_pair, token, path, method=method)
    assert await ask(shared_pair, token, chat_type="nonsense") == (404, "chat_type_not_found"), "nothing was started"
    assert await ask(shared_pair, token) == (200, None)
    assert await ask(shared_pair, token, OPENAI) == (200, None)
    assert [await ask(shared_pair, token, path) for path in (NATIVE, OPENAI)] == [(401, "token_exhausted")] * 2
    assert len(shared_runtime.chats) == 2
    assert (await get(shared_pair, token, "/v1/me"))[0] == 200, "the token lives on"
    assert await ask(shared_pair, await minted(shared_pair, {"uses": 1})) == (200, None), "each token has its own"


@on_the_modules_loop
async def test_uses_asked_for_at_once_are_spent_once_each(shared_pair: Pair, shared_runtime: FakeRuntime) -> None:
    token = await minted(shared_pair, {"uses": 3})
    statuses = Counter([status for status, _ in await asyncio.gather(*(ask(shared_pair, token) for _ in range(20)))])
    assert statuses == {200: 3, 401: 17}
    assert len(shared_runtime.chats) == 3


@on_the_modules_loop
async def test_uses_outlive_the_edge_s_process(tmp_path: Path) -> None:
    async with FakeRuntime() as runtime:
        async with running_pair(runtime.url, state=tmp_path) as pair:
            token = await minted(pair, {"uses": 2})
            assert await ask(pair, token) == (200, None)
        async with running_pair(runtime.url, state=tmp_path) as pair:
            assert [await ask(pair, token) for _ in range(2)] == [(200, None), (401, "token_exhausted")]


@on_the_modules_loop
async def test_a_locked_token_counts_for_its_key(shared_pair: Pair) -> None:
    key = await shared_pair.new_key("member")
    token = await minted(shared_pair, {"uses": 1}, key)
    me = (await get(shared_pair, token, "/v1/me"))[2]
    assert me["principal"] == {"id": principal_of(key), "kind": "key", "plan": "member"}


@on_the_modules_loop
async def test_a_token_says_how_it_is_locked(shared_pair: Pair) -> None:
    """The longest answer is what plan and lock leave, whichever is less."""
    key, locks = await shared_pair.new_key("member"), {"chat_types": ["home"], "max_tokens": 30, "uses": 2}
    async with shared_pair.post("/v1/token", locks, key=key) as response:
        given = await response.json()
    assert given["locks"] == locks and given["limits"]["tokens_per_request"] == 30
    me = (await get(shared_pair, given["token"], "/v1/me"))[2]
    assert me["locks"] == locks and me["usage"]["tokens_per_request"] == 30
    assert "locks" not in (await get(shared_pair, key, "/v1/me"))[2]
    wide = await minted(shared_pair, {"max_tokens": 900_000}, key)
    assert (await get(shared_pair, wide, "/v1/me"))[2]["usage"]["tokens_per_request"] == 4096


@on_the_modules_loop
async def test_a_locked_token_gives_no_other(shared_pair: Pair) -> None:
    token = await minted(shared_pair, {"uses": 1})
    async with shared_pair.post("/v1/token", {}, key=token) as response:
        assert response.status == 401


# -- who may ask for them ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", [*LOCKS, "expires_in", "principal", "plan", "scopes"])
@on_the_modules_loop
async def test_a_page_asks_for_no_locks_and_a_key_for_none_that_do_not_exist(shared_pair: Pair, field: str) -> None:
    page = {"Origin": ORIGIN}
    async with shared_pair.client.post(shared_pair.url + "/v1/token", json={field: 1}, headers=page) as response:
        error = (await response.json())["error"]
        assert (response.status, error["param"]) == (400, field)
        assert "origin" not in error["message"].replace(repr(field), ""), "which doors are shut is not told"
    async with shared_pair.post("/v1/token", {field: "nonsense"}) as response:
        assert (response.status, (await response.json())["error"]["param"]) == (400, field)


@on_the_modules_loop
async def test_the_command_line_locks_what_it_mints(shared_pair: Pair, shared_runtime: FakeRuntime) -> None:
    flags = ("--origin", ORIGIN, "--chat-type", "home", "--chat-type", "somethingFun", "--max-tokens", "50")
    made = await command_line.run("token", "mint", "ci", "--hours", "1", *flags, "--uses", "1", state=shared_pair.state)
    assert made.status == 0, made.err
    token = made.out.strip()
    found = Tokens(StateDir(shared_pair.state).signing_keys().verifying, 600).verify(token)
    assert (found.origin, found.chat_types, found.max_tokens, found.uses) == (ORIGIN, ("home", "somethingFun"), 50, 1)
    assert await ask(shared_pair, token, chat_type="somethingFun", origin=ORIGIN) == (200, None)
    assert shared_runtime.chats[-1].json["max_tokens"] == 50
    assert await ask(shared_pair, token, origin=ORIGIN) == (401, "token_exhausted")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--origin", "https://app.test/"), "--origin is not what a browser sends"),
        (("--origin", "foo"), "--origin is"),
        (("--chat-type", ""), "--chat-type is"),
        (("--max-tokens", "0"), "--max-tokens"),
        (("--uses", "0"), "--uses"),
        (("--uses", "99999999"), "--uses is"),
    ],
)
@on_the_modules_loop
async def test_the_command_line_refuses_locks_that_are_none(tmp_path: Path, flags: tuple[str, ...], says: str) -> None:
    made = await command_line.run("token", "mint", "ci", "--hours", "1", *flags, state=tmp_path)
    assert made.status == 2 and says in made.err and not made.out


@on_the_modules_loop
async def test_a_revoked_key_takes_its_locked_tokens_along(shared_pair: Pair) -> None:
    key = await shared_pair.new_key("member")
    token = await minted(shared_pair, {"uses": 5}, key)
    done = await command_line.run("token", "revoke", principal_of(key), state=shared_pair.state)
    assert done.status == 0, done.err
    caller = Tokens(StateDir(shared_pair.state).signing_keys().verifying, 600).verify(token)
    await wait_until(lambda: shared_pair.edge.services.store.revoked(caller))
    assert await ask(shared_pair, token) == (401, "token_revoked")
    assert (await ask(shared_pair, key))[0] == 401
