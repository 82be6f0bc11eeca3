"""The door for tokens of an OpenID Connect issuer: a real one, which rotates its keys and goes away."""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from loguru import logger

from edge.doors import jwks
from tests.fake_runtime import FakeRuntime
from tests.fake_scripts import text
from tests.javascript import run as node
from tests.local_app import free_port
from tests.oidc_issuer import AUDIENCE, PLAN_CLAIM, Issuer, running_issuer
from tests.pair import ORIGIN, Pair, from_elsewhere, question, running_pair
from tests.processes import ROOT
from tests.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

ALGORITHMS = ["RS256", "ES256", "EdDSA"]
ELSEWHERE = "http://other.test"


@pytest.fixture(autouse=True, scope="module")
def asks_at_once() -> Iterator[None]:
    """An unknown key is asked for without the half minute in between, which ``test_jwks`` is about."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jwks, "_BETWEEN_ASKS", 0.0)
        patch.setattr(jwks, "_AFTER_FAILURE", 0.0)
        yield


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def issuer() -> AsyncIterator[Issuer]:
    async with running_issuer() as issuer:
        yield issuer


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair(issuer: Issuer) -> AsyncIterator[Pair]:
    async with edge_of(issuer.url) as pair:
        yield pair


@asynccontextmanager
async def edge_of(issuer: str | None) -> AsyncIterator[Pair]:
    audience = [AUDIENCE, *(f"{AUDIENCE}/{name}" for name in ALGORITHMS)]
    oidc = {"issuer": issuer, "audience": audience, "algorithms": ALGORITHMS, "plan_claim": PLAN_CLAIM}
    edge = {"trusted_proxies": ["127.0.0.1"], **({"oidc": oidc} if issuer is not None else {})}
    async with FakeRuntime() as runtime, running_pair(runtime.url, edge=edge, plans={"beta": {"streams": 1}}) as pair:
        yield pair


async def exchange(pair: Pair, bearer: str, **headers: str) -> tuple[int, dict[str, Any]]:
    async with pair.post("/v1/token", {}, key=bearer, headers=from_elsewhere() | headers) as response:
        return response.status, await response.json()


async def refusal(pair: Pair, bearer: str, **headers: str) -> tuple[int, str]:
    status, answer = await exchange(pair, bearer, **headers)
    assert bearer not in json.dumps(answer)
    return status, answer["error"]["code"]


def claims_of(bearer: str) -> dict[str, Any]:
    payload = bearer.split(".")[1]
    return json.loads(urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_a_token_of_the_issuer_becomes_one_of_ours(pair: Pair, issuer: Issuer, algorithm: str) -> None:
    status, minted = await exchange(pair, await issuer.token(resource=f"{AUDIENCE}/{algorithm}"))
    assert status == 200, minted
    assert (minted["principal"]["kind"], minted["principal"]["plan"]) == ("oidc", "member")
    async with pair.post("/v1/chat", question(), key=minted["token"]) as response:
        assert response.status == 200
    async with pair.get("/v1/me", key=minted["token"]) as response:
        me = await response.json()
    assert me["principal"] == minted["principal"] and me["scopes"] == ["chat"]


async def test_one_subject_is_one_caller(pair: Pair, issuer: Issuer) -> None:
    ids = [(await exchange(pair, await issuer.token(name)))[1]["principal"]["id"] for name in ("someone",) * 2]
    other = (await exchange(pair, await issuer.token("tester")))[1]["principal"]["id"]
    assert ids[0] == ids[1] != other and ids[0].startswith("oidc_") and "someone" not in ids[0]


async def test_ours_never_outlives_theirs(pair: Pair, issuer: Issuer) -> None:
    bearer = await issuer.token()
    _, minted = await exchange(pair, bearer)
    async with pair.get("/v1/me", key=minted["token"]) as response:
        assert (await response.json())["expires_at"] == claims_of(bearer)["exp"]


async def test_a_claim_names_the_plan(pair: Pair, issuer: Issuer) -> None:
    _, minted = await exchange(pair, await issuer.token("tester"))
    assert minted["principal"]["plan"] == "beta" and minted["limits"]["streams"] == 1
    for client in ("stranger", "confused"):
        assert await refusal(pair, await issuer.token(client)) == (403, "insufficient_scope")


async def test_a_token_for_something_else_opens_nothing(pair: Pair, issuer: Issuer) -> None:
    assert await refusal(pair, await issuer.token(resource="https://mail.example.org/RS256")) == (401, "invalid_token")
    bearer = await issuer.token()
    head, payload, _ = bearer.split(".")
    for changed in (f"{head}.{payload}.", bearer[:-6], "eyJhbGciOiJub25lIn0." + payload + "."):
        assert await refusal(pair, changed) == (401, "invalid_token")


async def test_theirs_is_exchanged_and_opens_nothing_else(pair: Pair, issuer: Issuer) -> None:
    bearer = await issuer.token()
    async with pair.post("/v1/chat", question(), key=bearer) as response:
        assert (response.status, (await response.json())["error"]["code"]) == (401, "invalid_token")
    async with pair.client.post(pair.url + "/v1/token", json={}, headers={"X-API-Key": bearer}) as response:
        assert response.status == 200, "in either header"


async def test_a_page_has_to_be_listed_and_is_what_the_token_is_for(pair: Pair, issuer: Issuer) -> None:
    bearer = await issuer.token()
    for headers in ({"Origin": ELSEWHERE}, {"Sec-Fetch-Site": "cross-site"}, {"Origin": "null"}):
        assert await refusal(pair, bearer, **headers) == (403, "origin_not_allowed")
    _, minted = await exchange(pair, bearer, Origin=ORIGIN)
    for origin, status in ((ORIGIN, 200), (ELSEWHERE, 403)):
        async with pair.post("/v1/chat", question(), key=minted["token"], headers={"Origin": origin}) as response:
            assert response.status == status


async def test_other_doors_are_as_they_were(pair: Pair) -> None:
    async with pair.post("/v1/token", {}) as response:
        assert (await response.json())["principal"]["kind"] == "key"
    assert await pair.token()
    assert await refusal(pair, "hlk_000000000000_" + "A" * 43) == (401, "invalid_token")


async def test_the_issuer_rotates_its_keys_and_nobody_notices(pair: Pair, issuer: Issuer) -> None:
    before = await issuer.token()
    await issuer.rotate(keep=True)
    for bearer in (await issuer.token(), before):
        assert (await exchange(pair, bearer))[0] == 200


async def test_what_a_withdrawn_key_signed_opens_nothing(pair: Pair, issuer: Issuer) -> None:
    before = await issuer.token()
    await issuer.rotate(keep=False)
    assert (await exchange(pair, await issuer.token()))[0] == 200
    assert await refusal(pair, before) == (401, "invalid_token")


async def test_a_door_that_is_off_is_not_there(issuer: Issuer) -> None:
    async with edge_of(None) as pair:
        refusals = [await exchange(pair, bearer) for bearer in (await issuer.token(), "whatever", "a.b.c")]
    said = [(status, answer["error"]) for status, answer in refusals]
    assert said[0] == said[1] == said[2] and said[0][0] == 401


async def test_an_issuer_that_goes_away_and_comes_back() -> None:
    """The edge begins without it, tells callers to come again, finds it, and goes on without it."""
    port = free_port()
    lines: list[str] = []
    sink = logger.add(lines.append, format="{message}", filter="edge.doors.jwks")
    try:
        async with edge_of(f"http://127.0.0.1:{port}") as pair:
            await wait_until(lambda: lines)
            assert "not to be had" in lines[0] and "cannot be reached" in lines[0]
            async with running_issuer(port) as issuer:
                bearers = [await issuer.token() for _ in range(2)]
                assert (await exchange(pair, bearers[0]))[0] == 200
            assert (await exchange(pair, bearers[1]))[0] == 200
    finally:
        logger.remove(sink)
    assert not any(bearer in line for bearer in bearers for line in lines)


async def test_nobody_is_refused_for_an_issuer_that_is_down() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    async with running_issuer() as other:
        bearer = await other.token()
    async with edge_of(url) as pair, pair.post("/v1/token", {}, key=bearer) as response:
        assert (response.status, (await response.json())["error"]["code"]) == (503, "node_unavailable")
        assert int(response.headers["Retry-After"]) > 0


async def test_nothing_of_a_token_is_written_down(pair: Pair, issuer: Issuer) -> None:
    lines: list[str] = []
    sink = logger.add(lines.append, level="TRACE", format="{message} {extra}")
    try:
        bearer = await issuer.token()
        await exchange(pair, bearer)
        await refusal(pair, bearer[:-2])
    finally:
        logger.remove(sink)
    written = "".join(lines) + json.dumps(pair.audit)
    assert "oidc_" in written and not any(part in written for part in (*bearer.split("."), "someone"))


async def test_a_page_with_a_login_of_its_own_chats_as_the_documents_say(
    pair: Pair, issuer: Issuer, tmp_path: Path
) -> None:
    page = (ROOT / "docs" / "doors.md").read_text()
    example = page.partition("```js\n")[2].partition("```")[0].replace("https://edge.example.org", pair.url)
    (tmp_path / "example.mjs").write_text(example)
    modules = tmp_path / "node_modules" / "@hearthlink"
    modules.mkdir(parents=True)
    (modules / "client").symlink_to(ROOT / "clients" / "js")
    preload = str(ROOT / "tests" / "examples" / "as_a_page.js")
    environ = {"PAGE_ORIGIN": ORIGIN, "BEARER": await issuer.token()}
    said = await node("node", "--import", preload, "example.mjs", cwd=tmp_path, seconds=30, **environ)
    assert "".join(said.split()) == "".join(text(5).split())
    assert pair.audit[-1]["principal"].startswith("oidc_") and pair.audit[-1]["outcome"] == "stop", pair.audit[-1]


async def test_the_exchange_is_counted_for_each_address(pair: Pair, issuer: Issuer) -> None:
    """A token that is refused costs a signature check; nobody gets more of them than of tokens."""
    bearer = await issuer.token()
    statuses = list[int]()
    for _ in range(40):
        async with pair.post("/v1/token", {}, key=bearer[:-9]) as response:
            statuses.append(response.status)
    assert statuses[0] == 401 and statuses[-1] == 429
