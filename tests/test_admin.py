"""``/admin``: who may, what it does to a running edge, and what is written down about it."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from edge.plans import LIMITS
from edge.store.sqlite.database import connect
from shared.contract.errors import ApiError
from shared.state import StateDir
from tests.fake_runtime import FakeRuntime
from tests.pair import ORIGIN, Pair, create_key, principal_of, question, running_pair
from tests.redis_server import running_redis
from tests.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

NATIVE = "/v1/chat"
FROM_PAGE = {"Origin": ORIGIN}
ROUTES = [
    ("GET", "/admin/keys"),
    ("POST", "/admin/keys"),
    ("DELETE", "/admin/keys/ci"),
    ("GET", "/admin/invites"),
    ("POST", "/admin/invites"),
    ("DELETE", "/admin/invites/beta"),
    ("GET", "/admin/limits"),
    ("GET", "/admin/limits/key_0123456789ab"),
    ("PATCH", "/admin/limits/key_0123456789ab"),
    ("DELETE", "/admin/limits/key_0123456789ab"),
    ("POST", "/admin/limits/key_0123456789ab/reset"),
    ("POST", "/admin/revoke"),
    ("GET", "/admin/maintenance"),
    ("PUT", "/admin/maintenance"),
    ("DELETE", "/admin/maintenance"),
    ("GET", "/admin/signing-keys"),
    ("POST", "/admin/signing-keys"),
]
PLANS = {
    "anonymous": {"requests_per_minute": 1000, "scopes": ["chat", "admin"]},  # tests ask until the edge has heard
    "few": {"tokens_per_day": 700},
    "helper": {"scopes": ["chat", "admin"]},
}


class Owner:
    """Calls ``/admin`` of a pair with a key that may. ``anonymous`` is a token of somebody else."""

    def __init__(self, pair: Pair, key: str, anonymous: str = "") -> None:
        self.pair = pair
        self.key = key
        self.anonymous = anonymous

    async def call(
        self, method: str, path: str, body: Any = None, *, key: str | None = None, url: str = "", **headers: str
    ) -> tuple[int, Any]:
        """Status, and the answer or its error. ``key`` "" sends none."""
        key = self.key if key is None else key
        sent = {**({"Authorization": f"Bearer {key}"} if key else {}), **headers}
        async with self.pair.client.request(method, (url or self.pair.url) + path, json=body, headers=sent) as response:
            text = await response.text()
            assert response.headers["x-request-id"]
            answer = json.loads(text) if text else None
            return response.status, answer.get("error", answer) if answer else None

    async def done(self, method: str, path: str, body: Any = None) -> Any:
        """The answer of what succeeds."""
        status, answer = await self.call(method, path, body)
        assert status in (200, 201, 204), answer
        return answer

    async def code(self, method: str, path: str, body: Any = None, **more: Any) -> tuple[int, str]:
        status, answer = await self.call(method, path, body, **more)
        return status, answer["code"]

    async def chat(self, key: str, headers: Mapping[str, str] | None = None, **fields: Any) -> tuple[int, str | None]:
        async with self.pair.post(NATIVE, question(**fields), key=key, headers=headers) as response:
            return response.status, (await response.json()).get("error", {}).get("code")

    def knows(self, key: str) -> bool:
        """Whether the edge has heard of it."""
        try:
            return bool(self.pair.edge.services.store.lookup(key))
        except ApiError:
            return False

    async def new_key(self, plan: str) -> str:
        """One that the edge knows already."""
        made = await self.done("POST", "/admin/keys", {"name": f"{plan}-{time.time_ns()}", "plan": plan})
        await wait_until(lambda: self.knows(made["key"]))
        return made["key"]

    async def used(self, key: str) -> tuple[int, int]:
        """Its tokens of today, and answers that still run."""
        row = await self.done("GET", f"/admin/limits/{principal_of(key)}")
        return row["used"], row["running"]

    async def until(self, key: str, wanted: tuple[int, str | None], **fields: Any) -> None:
        await eventually(lambda: self.chat(key, **fields), wanted)


async def eventually(ask: Callable[[], Awaitable[Any]], wanted: Any) -> None:
    """What the owner does holds within a second, and some more on a machine that others use."""
    found = None
    try:
        async with asyncio.timeout(5):
            while (found := await ask()) != wanted:  # noqa: ASYNC110 - what is waited for is at the other end of a socket
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"{found}, and not {wanted}") from None


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["sqlite", "redis"])
async def owner(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Owner]:
    """Of a pair on each kind of store."""
    state = tmp_path_factory.mktemp("state")
    edge: dict[str, Any] = {"invites": True}
    async with AsyncExitStack() as stack:
        if request.param == "redis":
            server = await stack.enter_async_context(running_redis(state / "redis"))
            edge |= {"store": server.url, "store_timeout": "5s"}  # for a machine that has other work
        runtime = await stack.enter_async_context(FakeRuntime())
        pair = await stack.enter_async_context(running_pair(runtime.url, state=state, edge=edge, plans=PLANS))
        async with pair.edge.services.admin() as admin:
            _, key = await admin.create_key("console", "owner", ("chat", "admin"))
        owner = Owner(pair, key, await pair.token())
        await wait_until(lambda: owner.knows(key))
        pair.key = await owner.new_key("owner")
        yield owner


# -- who may ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_nobody_administers_without_the_scope(owner: Owner, method: str, path: str) -> None:
    """On the public listener and on that for operations, which asks for no password elsewhere."""
    listed = await owner.call("GET", "/admin/keys")
    for url in (owner.pair.url, owner.pair.ops_url):
        for key, refusal in (
            ("", (401, "missing_token")),
            (owner.key[:-1] + "!", (401, "invalid_token")),
            (owner.pair.key, (403, "insufficient_scope")),
            (owner.anonymous, (403, "insufficient_scope")),
        ):
            assert await owner.code(method, path, {}, url=url, key=key, **FROM_PAGE) == refusal
    assert await owner.call("GET", "/admin/keys") == listed
    assert (await owner.call("GET", "/admin/maintenance"))[1] == {"on": False}


async def test_the_routes_are_all_there_are(owner: Owner) -> None:
    from edge.api.admin import admin_routes

    real = {
        (method, route.path) for route in admin_routes(owner.pair.edge.services) for method in route.methods or set()
    }
    tried = {
        (method, re.sub(r"/(ci|beta|key_\w+)", lambda found: PLACE[found[1][:3]], path)) for method, path in ROUTES
    }
    assert real - {("HEAD", path) for _, path in real} == tried


PLACE = {"ci": "/{key}", "bet": "/{invite}", "key": "/{principal}"}


async def test_the_listener_for_operations_has_it_too(owner: Owner) -> None:
    status, answer = await owner.call("GET", "/admin/keys", url=owner.pair.ops_url)
    assert status == 200 and answer["object"] == "list"


async def test_a_token_made_of_the_key_administers_and_one_that_is_locked_does_not(owner: Owner) -> None:
    from dataclasses import replace

    edge = owner.pair.edge.services
    principal = edge.store.lookup(owner.key)
    token = edge.tokens.mint(principal)[0]
    assert (await owner.call("GET", "/admin/keys", key=token))[0] == 200
    for lock in ({"uses": 1}, {"max_tokens": 5}, {"chat_types": ("home",)}, {"origin": ORIGIN}):
        locked = edge.tokens.mint(replace(principal, **lock))[0]
        for method in ("GET", "POST"):
            refusal = await owner.code(method, "/admin/keys", {"name": "x"}, key=locked, **FROM_PAGE)
            assert refusal == (403, "insufficient_scope"), lock
    bound = replace(principal, origin=ORIGIN)
    assert await owner.code("POST", "/admin/keys", {"name": "x"}, key=edge.tokens.mint(bound)[0]) == (
        403,
        "origin_not_allowed",
    )
    page = edge.tokens.mint(replace(bound, id="tailnet_x", kind="tailnet"))[0]
    assert (await owner.call("GET", "/admin/keys", key=page, **FROM_PAGE))[0] == 200, "as Serve's page is"


async def test_a_plan_that_lost_the_scope_takes_it_from_its_keys(tmp_path: Path) -> None:
    key = create_key(tmp_path, "helper", scopes=("chat", "admin"))
    async with FakeRuntime() as runtime, running_pair(runtime.url, state=tmp_path, plans={"helper": {}}) as pair:
        assert await Owner(pair, key).code("GET", "/admin/keys") == (403, "insufficient_scope")


async def test_without_authentication_nobody_administers_without_a_key(tmp_path: Path) -> None:
    """What any page or program of this machine may ask for is not the right to make keys."""
    key = create_key(tmp_path, scopes=("chat", "admin"))
    open_to_all = {"require_authentication": False}
    async with FakeRuntime() as runtime, running_pair(runtime.url, state=tmp_path, edge=open_to_all) as pair:
        owner = Owner(pair, key)
        assert (await owner.call("POST", NATIVE, question(), key=""))[0] == 200
        assert await owner.code("POST", "/admin/keys", {"name": "x"}, key="") == (401, "missing_token")
        assert (await owner.call("GET", "/admin/keys"))[0] == 200


async def test_what_admins_send_is_limited_as_all_else(tmp_path: Path) -> None:
    key = create_key(tmp_path, "helper", scopes=("admin",))
    plans = {"helper": {"scopes": ["admin"], "requests_per_minute": 2}}
    async with FakeRuntime() as runtime, running_pair(runtime.url, state=tmp_path, plans=plans) as pair:
        owner = Owner(pair, key)
        for _ in range(2):
            assert (await owner.call("GET", "/admin/keys"))[0] == 200
        async with pair.get("/admin/keys", key=key) as response:
            assert (response.status, (await response.json())["error"]["code"]) == (429, "rate_limited")
            assert response.headers["x-ratelimit-limit-requests"] == "2"


# -- keys and invites -------------------------------------------------------------------------------------------------


async def test_a_key_is_made_used_listed_and_revoked(owner: Owner) -> None:
    made = await owner.done("POST", "/admin/keys", {"name": "ci", "expires_in": 3600})
    key = made["key"]
    assert made == {
        "key": key,
        "id": key[4:16],
        "name": "ci",
        "plan": "member",
        "scopes": ["chat"],
        "created_at": made["expires_at"] - 3600,
        "expires_at": made["expires_at"],
        "revoked_at": None,
        "principal": principal_of(key),
        "state": "valid",
    }
    await owner.until(key, (200, None))
    rows = {row["name"]: row for row in (await owner.done("GET", "/admin/keys"))["data"]}
    assert rows["ci"] == {name: value for name, value in made.items() if name != "key"}
    assert await owner.code("POST", "/admin/keys", {"name": "ci"}) == (400, "invalid_request")
    revoked = await owner.done("DELETE", "/admin/keys/ci")
    assert (revoked["id"], revoked["state"]) == (made["id"], "revoked")
    await owner.until(key, (401, "invalid_token"))
    assert await owner.code("DELETE", "/admin/keys/ci") == (404, "not_found")


async def test_a_key_for_another_admin(owner: Owner) -> None:
    body = {"name": "second", "plan": "helper", "scopes": ["admin", "admin"]}
    made = await owner.done("POST", "/admin/keys", body)
    assert made["scopes"] == ["admin"] and made["expires_at"] is None
    await wait_until(lambda: owner.knows(made["key"]))
    assert (await owner.call("GET", "/admin/keys", key=made["key"]))[0] == 200
    assert await owner.chat(made["key"]) == (403, "insufficient_scope")


async def test_an_invite_is_made_used_listed_and_revoked(owner: Owner) -> None:
    made = await owner.done("POST", "/admin/invites", {"name": "beta", "uses": 2, "expires_in": 3600})
    text = made["invite"]
    assert text.startswith("hli_") and (made["uses"], made["used"], made["state"]) == (2, 0, "valid")
    async with owner.pair.client.post(owner.pair.url + "/v1/token", json={"invite": text}) as response:
        assert response.status == 200, await response.text()
        token = (await response.json())["token"]
    assert await owner.chat(token) == (200, None)
    row = next(row for row in (await owner.done("GET", "/admin/invites"))["data"] if row["id"] == made["id"])
    assert row["used"] == 1 and text not in json.dumps(row)
    await owner.done("DELETE", "/admin/invites/beta")
    await owner.until(token, (401, "token_revoked"))
    assert await owner.code("DELETE", "/admin/invites/beta") == (404, "not_found")


# -- limits -----------------------------------------------------------------------------------------------------------


async def test_limits_of_a_single_caller(owner: Owner) -> None:
    key = await owner.new_key("member")
    path = f"/admin/limits/{principal_of(key)}"
    assert await owner.done("GET", path) == {
        "principal": principal_of(key),
        "used": 0,
        "reserved": 0,
        "running": 0,
        "limits": None,
        "revoked_at": None,
    }
    assert await owner.done("PATCH", path, {"tokens_per_day": 30, "streams": None}) == {
        "principal": principal_of(key),
        "limits": {"tokens_per_day": 30, "streams": None},
    }
    await wait_until(lambda: own_limits(owner, key) == {"tokens_per_day": 30, "streams": None})
    assert await owner.chat(key) == (429, "quota_exceeded")
    more = await owner.done("PATCH", path, {"tokens_per_day": 2000})
    assert more["limits"] == {"tokens_per_day": 2000, "streams": None}, "what is not named stays"
    await wait_until(lambda: own_limits(owner, key) == more["limits"])
    assert await owner.chat(key) == (200, None)
    async with owner.pair.get("/v1/me", key=key) as response:
        usage = (await response.json())["usage"]
        assert (usage["tokens"]["limit"], usage["streams"]["limit"]) == (2000, None)
        assert (usage["requests"]["limit"], usage["tokens_per_request"]) == (60, 4096)
    async with owner.pair.post("/v1/token", {}, key=key) as response:
        assert (await response.json())["limits"]["tokens_per_day"] == 2000
    await eventually(lambda: owner.used(key), (12, 0))
    rows = {row["principal"]: row for row in (await owner.done("GET", "/admin/limits"))["data"]}
    assert rows[principal_of(key)]["used"] == 12
    await owner.done("DELETE", path)
    assert await owner.code("DELETE", path) == (404, "not_found")
    await wait_until(lambda: own_limits(owner, key) is None)


def own_limits(owner: Owner, key: str) -> Mapping[str, int | None] | None:
    """What the edge knows of them."""
    return owner.pair.edge.services.store.records.limits.get(principal_of(key))


async def test_a_caller_is_shut_out_and_let_in_again(owner: Owner) -> None:
    """An anonymous one too, which has no credential of its own to revoke: its id is the same for a day."""
    token = await owner.pair.token()
    async with owner.pair.get("/v1/me", key=token, headers=FROM_PAGE) as response:
        principal = (await response.json())["principal"]["id"]
    await owner.done("PATCH", f"/admin/limits/{principal}", {"requests_per_minute": 0})
    await wait_until(lambda: principal in owner.pair.edge.services.store.records.limits)
    async with owner.pair.post(NATIVE, question(), key=await owner.pair.token(), headers=FROM_PAGE) as response:
        error = (await response.json())["error"]
    assert error["code"] == "rate_limited" and error["message"].startswith("Your own limits allow no requests.")
    await owner.done("DELETE", f"/admin/limits/{principal}")
    await wait_until(lambda: principal not in owner.pair.edge.services.store.records.limits)
    assert await owner.chat(token, FROM_PAGE) == (200, None)


async def test_a_day_begins_anew(owner: Owner) -> None:
    key = await owner.new_key("few")
    for used in (12, 24):
        assert await owner.chat(key) == (200, None)
        await eventually(lambda: owner.used(key), (used, 0))
    await owner.done("POST", f"/admin/limits/{principal_of(key)}/reset")
    assert await owner.used(key) == (0, 0)

    async def remaining() -> Any:
        async with owner.pair.get("/v1/me", key=key) as response:
            return (await response.json())["usage"]["tokens"]["used"]

    await eventually(remaining, 0)


# -- revoking ---------------------------------------------------------------------------------------------------------


async def test_one_token_is_revoked(owner: Owner) -> None:
    token, other = await owner.pair.token(), await owner.pair.token()
    await owner.done("POST", "/admin/revoke", {"token": token})
    await owner.until(token, (401, "token_revoked"), headers=FROM_PAGE)
    assert await owner.chat(other, FROM_PAGE) == (200, None)


async def test_all_tokens_of_a_caller_are_revoked(owner: Owner) -> None:
    edge = owner.pair.edge.services
    key = await owner.new_key("member")
    principal = edge.store.lookup(key)
    token = edge.tokens.mint(principal)[0]
    await owner.done("POST", "/admin/revoke", {"principal": principal.id})
    await owner.until(token, (401, "token_revoked"))
    await owner.until(key, (401, "invalid_token"))


async def test_everybodys_tokens_are_revoked_and_keys_go_on(tmp_path: Path) -> None:
    key = create_key(tmp_path, scopes=("chat", "admin"))
    async with FakeRuntime() as runtime, running_pair(runtime.url, state=tmp_path) as pair:
        owner, token = Owner(pair, key), await pair.token()
        await owner.done("POST", "/admin/revoke", {"everyone": True})
        await owner.until(token, (401, "token_revoked"), headers=FROM_PAGE)
        assert await owner.chat(key) == (200, None)

        # A token of the same second is taken for one of before.
        await wait_until(lambda: int(time.time()) > pair.edge.services.store.records.everyone)
        assert await owner.chat(await pair.token(), FROM_PAGE) == (200, None)


async def test_signing_keys_are_rotated_and_never_shown(tmp_path: Path) -> None:
    key = create_key(tmp_path, scopes=("chat", "admin"))
    async with FakeRuntime() as runtime, running_pair(runtime.url, state=tmp_path) as pair:
        owner, token, edge = Owner(pair, key), await pair.token(), pair.edge.services
        before = edge.store.records.signing_keys
        assert await owner.done("GET", "/admin/signing-keys") == {"since": 0, "old": []}
        rotated = await owner.done("POST", "/admin/signing-keys", {})
        assert abs(rotated["since"] - time.time()) < 30 and len(rotated["old"]) == 1
        await wait_until(lambda: edge.store.records.signing_keys.current == before.next)
        assert await owner.chat(token, FROM_PAGE) == (200, None)
        assert await owner.code("POST", "/admin/signing-keys", {}) == (400, "invalid_request"), "a moment ago"
        assert (await owner.done("POST", "/admin/signing-keys", {"leaked": True}))["old"] == []
        await eventually(lambda: refused(owner, token), True)


async def refused(owner: Owner, token: str) -> bool:
    """Because it is revoked, or a moment later because nobody knows its key any more."""
    return (await owner.chat(token, FROM_PAGE)) in ((401, "token_revoked"), (401, "invalid_token"))


async def test_signing_keys_of_the_settings_stay_theirs(tmp_path: Path) -> None:
    key = create_key(tmp_path, scopes=("chat", "admin"))
    own = {"signing_keys": ["k" * 43]}
    async with FakeRuntime() as runtime, running_pair(runtime.url, state=tmp_path, edge=own) as pair:
        for method in ("GET", "POST"):
            status, error = await Owner(pair, key).call(method, "/admin/signing-keys", {})
            assert status == 400 and "edge.signing_keys" in error["message"]


# -- what is sent -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "word"),
    [
        ("POST", "/admin/keys", {}, 400, "name"),
        ("POST", "/admin/keys", {"name": "a b"}, 400, "not a name for a key"),
        ("POST", "/admin/keys", {"name": "x", "plan": "gold"}, 400, "There are: anonymous, few, helper"),
        ("POST", "/admin/keys", {"name": "x", "scopes": ["admin"]}, 400, "does not have the scope 'admin'"),
        ("POST", "/admin/keys", {"name": "x", "scopes": []}, 400, "scopes"),
        ("POST", "/admin/keys", {"name": "x", "scopes": "chat"}, 400, "scopes"),
        ("POST", "/admin/keys", {"name": "x", "expires_in": 0}, 400, "expires_in"),
        ("POST", "/admin/keys", {"name": "x", "expires_in": 10**12}, 400, "expires_in"),
        ("POST", "/admin/keys", {"name": "x", "expires_in": "30"}, 400, "expires_in"),
        ("POST", "/admin/keys", {"name": "x", "secret": "y"}, 400, "Unknown field 'secret'"),
        ("DELETE", "/admin/keys/nobody", None, 404, "No living key is 'nobody'"),
        ("DELETE", "/admin/keys/hlk_0123456789ab_x", None, 400, "does not belong in a URL"),
        ("DELETE", "/admin/invites/hli_0123456789ab_x", None, 400, "does not belong in a URL"),
        ("POST", "/admin/invites", {"uses": 0}, 400, "uses"),
        ("POST", "/admin/invites", {"uses": True}, 400, "uses"),
        ("POST", "/admin/invites", {"plan": "gold"}, 400, "There is no plan 'gold'"),
        ("POST", "/admin/invites", {"expires_in": 10**9}, 400, "expires_in"),
        ("PATCH", "/admin/limits/key_1", {}, 400, "Name one limit at least"),
        ("PATCH", "/admin/limits/key_1", {"streams": -1}, 400, "streams"),
        ("PATCH", "/admin/limits/key_1", {"streams": 1.5}, 400, "streams"),
        ("PATCH", "/admin/limits/key_1", {"seats": 1}, 400, "Unknown field 'seats'"),
        ("PATCH", "/admin/limits/a%20b", {"streams": 1}, 400, "principal"),
        ("GET", "/admin/limits/%D0%B0", None, 400, "principal"),
        ("DELETE", "/admin/limits/key_1", None, 404, "key_1"),
        *(
            (*route, 404, "No caller is called")
            for route in (
                ("GET", "/admin/limits/nobody", None),
                ("PATCH", "/admin/limits/typo", {"streams": 1}),
                ("DELETE", "/admin/limits/tokn_ci", None),
                ("POST", "/admin/limits/key_0123456789ab/reset", None),
                ("POST", "/admin/revoke", {"principal": "nobody"}),
                ("POST", "/admin/revoke", {"principal": "key_typo"}),
            )
        ),
        ("POST", "/admin/revoke", {}, 400, "one of token, principal, or everyone"),
        ("POST", "/admin/revoke", {"principal": "key_1", "everyone": True}, 400, "one of token"),
        ("POST", "/admin/revoke", {"everyone": False}, 400, "everyone"),
        ("POST", "/admin/revoke", {"everyone": 1}, 400, "everyone"),
        ("POST", "/admin/revoke", {"everyone": "true"}, 400, "everyone"),
        ("POST", "/admin/revoke", {"token": "hlt_nothing"}, 400, "no token of this edge"),
        ("POST", "/admin/revoke", {"principal": "a b"}, 400, "principal"),
        ("PUT", "/admin/maintenance", {"message": "a\nb"}, 400, "one line"),
        ("PUT", "/admin/maintenance", {"message": " "}, 400, "one line"),
        ("PUT", "/admin/maintenance", {"message": "x" * 501}, 400, "500"),
        ("PUT", "/admin/maintenance", {"ends_answers": "yes"}, 400, "ends_answers"),
        ("POST", "/admin/signing-keys", {"leaked": 1}, 400, "leaked"),
        ("POST", "/admin/keys/ci", {}, 405, "POST"),
        ("GET", "/admin", None, 404, "no such route"),
        ("GET", "/admin/keys/", None, 404, "no such route"),
    ],
)
async def test_what_cannot_be_done_says_why(
    owner: Owner, method: str, path: str, body: Any, status: int, word: str
) -> None:
    found, error = await owner.call(method, path, body)
    assert (found, word in error["message"] or error["param"] == word) == (status, True), error
    assert "hlt_nothing" not in error["message"]
    assert (await owner.call("GET", "/admin/maintenance"))[1] == {"on": False}


async def test_a_wrong_method_is_told_all_that_there_are(owner: Owner) -> None:
    async with owner.pair.client.put(owner.pair.url + "/admin/keys") as response:
        assert response.status == 405
        assert set(response.headers["allow"].split(", ")) == {"GET", "HEAD", "POST"}


async def test_bodies_are_strict_json(owner: Owner) -> None:
    async def sent(data: bytes, kind: str = "application/json") -> tuple[int, str]:
        headers = {"Authorization": f"Bearer {owner.key}", "Content-Type": kind}
        async with owner.pair.client.post(owner.pair.url + "/admin/keys", data=data, headers=headers) as response:
            return response.status, (await response.json())["error"]["code"]

    assert await sent(b'{"name": "a", "name": "b"}') == (400, "invalid_json")
    assert await sent(b"[]") == (400, "invalid_json")
    assert await sent(b"{}", "text/plain") == (415, "unsupported_media_type")
    assert await sent(b'{"name": "' + b"x" * 20_000 + b'"}') == (413, "payload_too_large")


async def test_own_limits_are_the_plans() -> None:
    from edge.api.admin.limits import OwnLimits

    assert tuple(OwnLimits.model_fields) == LIMITS


# -- what is written down ---------------------------------------------------------------------------------------------


async def test_each_act_is_one_line_without_a_secret(owner: Owner) -> None:
    pair = owner.pair
    pair.audit.clear()
    made = await owner.done("POST", "/admin/keys", {"name": "written"})
    invite = await owner.done("POST", "/admin/invites", {})
    token = await pair.token()
    await owner.done("POST", "/admin/revoke", {"token": token})
    await owner.done("DELETE", "/admin/keys/written")
    await owner.done("DELETE", f"/admin/invites/{invite['id']}")
    lines = [line for line in pair.audit if "act" in line]
    assert [(line["act"], line["target"]) for line in lines] == [
        ("key.create", made["principal"]),
        ("invite.create", f"invite_{invite['id']}"),
        ("token.revoke", pair.edge.services.tokens.verify(token).id),
        ("key.revoke", made["principal"]),
        ("invite.revoke", f"invite_{invite['id']}"),
    ]
    assert {line["principal"] for line in lines} == {principal_of(owner.key)}
    assert lines[0] | {"duration_ms": 0, "request_id": ""} == {
        "method": "POST",
        "route": "/admin/keys",
        "status": 201,
        "duration_ms": 0,
        "request_id": "",
        "principal": principal_of(owner.key),
        "plan": "owner",
        "act": "key.create",
        "target": made["principal"],
    }
    written = json.dumps(pair.audit)
    for secret in (made["key"], invite["invite"], token, owner.key):
        assert secret[-20:] not in written


async def test_an_act_that_fails_is_no_act(tmp_path: Path) -> None:
    """On an edge of its own: of each code ten lines are written in a second."""
    key = create_key(tmp_path, scopes=("admin",))
    async with running_pair(state=tmp_path, wait=False) as pair:
        assert await Owner(pair, key).code("DELETE", "/admin/keys/nobody") == (404, "not_found")
        await wait_until(lambda: pair.audit)
        (line,) = pair.audit
    assert (line["outcome"], line["route"]) == ("not_found", "/admin/keys/{key}") and "act" not in line


async def test_a_secret_is_not_cached(owner: Owner) -> None:
    async with owner.pair.post("/admin/keys", {"name": "uncached"}, key=owner.key) as response:
        assert (response.status, response.headers["cache-control"]) == (201, "no-store")


# -- a store that does not answer -------------------------------------------------------------------------------------


async def test_a_server_that_says_nothing_is_a_503(tmp_path: Path) -> None:
    """The edge still knows who an admin is: keys are in its memory."""
    async with (
        running_redis(tmp_path / "redis") as server,
        FakeRuntime() as runtime,
        running_pair(runtime.url, state=tmp_path, edge={"store": server.url}) as pair,
    ):
        async with pair.edge.services.admin() as admin:
            _, key = await admin.create_key("console", "owner", ("admin",))
        owner = Owner(pair, key)
        await wait_until(lambda: owner.knows(key))
        server.pause()
        try:
            assert await owner.code("PUT", "/admin/maintenance", {}) == (503, "overloaded")
            assert await owner.code("GET", "/admin/keys", key="") == (401, "missing_token")
        finally:
            server.resume()
        await eventually(lambda: owner.code("DELETE", "/admin/keys/nobody"), (404, "not_found"))


async def test_a_database_that_another_process_holds_is_a_503(tmp_path: Path) -> None:
    key = create_key(tmp_path, scopes=("admin",))
    async with FakeRuntime() as runtime, running_pair(runtime.url, state=tmp_path) as pair:
        owner = Owner(pair, key)
        holder = connect(StateDir(tmp_path).database, busy_seconds=1)
        try:
            holder.execute("BEGIN IMMEDIATE")
            assert (await owner.call("GET", "/admin/keys"))[0] == 200, "reading goes on"
            assert await owner.code("POST", "/admin/keys", {"name": "x"}) == (503, "overloaded")
            async with pair.client.get(pair.url + "/livez") as response:
                assert response.status == 200
        finally:
            holder.execute("ROLLBACK")
            holder.close()
        assert (await owner.call("POST", "/admin/keys", {"name": "x"}))[0] == 201


async def test_a_list_of_callers_has_an_end(owner: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge.api.admin.limits._MOST", 1)
    for n in range(2):
        await owner.done("PATCH", f"/admin/limits/user_{n}", {"streams": n})
    found = await owner.done("GET", "/admin/limits")
    assert (len(found["data"]), found["has_more"]) == (1, True)
