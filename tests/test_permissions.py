"""Who may ask what: plans, models, chat types and tokens, and what a caller is told of them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from tests.fake_lm_studio import FakeLMStudio
from tests.fake_runtime import FakeRuntime
from tests.fake_scripts import normal
from tests.pair import ORIGIN, Pair, create_key, principal_of, question, running_pair

pytestmark = pytest.mark.asyncio(loop_scope="module")

NATIVE = "/v1/chat"
OPENAI = "/v1/chat/completions"
TYPES = ["home", "somethingFun", "whatToOrder", "whereToGo"]
FROM_PAGE = {"Origin": ORIGIN}


async def code_of(pair: Pair, path: str, payload: Any, key: str, headers: dict[str, str] | None = None) -> Any:
    """(status, code or None)."""
    async with pair.post(path, payload, key=key, headers=headers) as response:
        answer = await response.json()
        return response.status, answer.get("error", {}).get("code")


async def test_models_of_each_kind_of_caller(tmp_path: Path) -> None:
    async with (
        FakeRuntime(models=("one", "two")) as runtime,
        running_pair(runtime.url, state=tmp_path, node={"runtime": runtime_settings(runtime, "two")}) as pair,
    ):
        token = await pair.token()

        async def asked(model: str | None, key: str, headers: dict[str, str] | None = None, **more: Any) -> Any:
            fields = {} if model is None else {"model": model}
            return await code_of(pair, OPENAI, question(**fields, **more), key, headers)

        for model, sent in ((None, "two"), ("default", "two"), ("one", "one"), ("two", "two"), ("chat:home", "two")):
            assert await asked(model, pair.key) == (200, None)
            assert runtime.chats[-1].json["model"] == sent
        assert await asked("three", pair.key) == (404, "model_not_found")
        assert await asked("chat:home", token, FROM_PAGE) == (200, None)
        count = len(runtime.chats)
        for model in (None, "default", "one", "three"):
            assert await asked(model, token, FROM_PAGE) == (403, "model_not_allowed")
        assert await code_of(pair, NATIVE, question(model="one"), token, FROM_PAGE) == (403, "model_not_allowed")
        assert await code_of(pair, NATIVE, question(model="three"), token, FROM_PAGE) == (403, "model_not_allowed")
        assert len(runtime.chats) == count
        # With a chat type, which is "home" there, the default is the chat type's model.
        assert await code_of(pair, NATIVE, question(model="default"), token, FROM_PAGE) == (200, None)
        assert await code_of(pair, NATIVE, question(model="one"), pair.key) == (200, None)
        assert runtime.chats[-1].json["model"] == "one"

        assert await listed(pair, "/v1/models", "id") == [f"chat:{name}" for name in TYPES] + ["two", "one"]
        assert await listed(pair, "/v1/models", "id", token) == [f"chat:{name}" for name in TYPES]


def runtime_settings(runtime: FakeRuntime, model: str) -> dict[str, str]:
    return {"kind": "openai", "url": runtime.url, "default_model": model}


async def listed(pair: Pair, path: str, field: str, key: str | None = None) -> list[str]:
    async with pair.get(path, key=key, headers=FROM_PAGE) as response:
        assert response.status == 200, await response.text()
        answer = await response.json()
    assert answer["object"] == "list"
    return [row[field] for row in answer["data"]]


async def test_one_model(shared_pair: Pair) -> None:
    async with shared_pair.get("/v1/models/fake-model") as response:
        model = await response.json()
        assert response.status == 200
        assert set(model) == {"id", "object", "created", "owned_by", "context_length"}
        assert (model["id"], model["object"], model["context_length"]) == ("fake-model", "model", 4096)
    async with shared_pair.get("/v1/models/chat:home") as response:
        assert (await response.json())["id"] == "chat:home"
    for missing in ("nope", "owner/name", "fake-model"):
        key = await shared_pair.token() if missing == "fake-model" else None
        async with shared_pair.get(f"/v1/models/{missing}", key=key, headers=FROM_PAGE) as response:
            assert (response.status, (await response.json())["error"]["code"]) == (404, "model_not_found")


async def test_a_chat_type_has_the_context_of_its_own_model(tmp_path: Path) -> None:
    types = tmp_path / "types"
    types.mkdir()
    (types / "home.toml").write_text('system = "Be kind."\n')
    (types / "brief.toml").write_text('system = "Be brief."\nmodel = "small"\n')
    async with FakeLMStudio("large", "small") as studio:
        studio.open("large", context=8192)
        studio.open("small", context=2048)
        node = {"runtime": {"kind": "lm-studio", "url": studio.url, "default_model": "large"}, "chat_types": str(types)}
        async with running_pair(state=tmp_path / "state", node=node) as pair, pair.get("/v1/models") as response:
            contexts = {model["id"]: model["context_length"] for model in (await response.json())["data"]}
    assert (contexts["chat:home"], contexts["chat:brief"]) == (8192, 2048)


async def test_chat_types_are_listed_without_their_prompts(shared_pair: Pair) -> None:
    async with shared_pair.get("/v1/chat/types") as response:
        answer = await response.json()
    assert [row["name"] for row in answer["data"]] == TYPES
    assert all(set(row) == {"name", "description", "max_tokens"} for row in answer["data"])


async def test_anonymous_callers_get_raw_models_where_the_owner_says_so(
    shared_runtime: FakeRuntime, tmp_path: Path
) -> None:
    async with running_pair(shared_runtime.url, state=tmp_path, edge={"anonymous_raw_models": True}) as pair:
        token = await pair.token()
        assert await code_of(pair, OPENAI, question(), token, FROM_PAGE) == (200, None)
        assert "fake-model" in await listed(pair, "/v1/models", "id", token)


async def test_a_plan_of_ones_own(shared_runtime: FakeRuntime, tmp_path: Path) -> None:
    plan = {"chat_types": ["home"], "models": ["other"], "tokens_per_request": 50, "scopes": ["chat"]}
    narrow = create_key(tmp_path, "narrow")
    async with running_pair(shared_runtime.url, state=tmp_path, plans={"narrow": plan}) as pair:
        assert await code_of(pair, NATIVE, question(), narrow) == (200, None)
        assert shared_runtime.chats[-1].json["max_tokens"] == 50
        refused = question(chat_type="whereToGo")
        assert await code_of(pair, NATIVE, refused, narrow) == (403, "chat_type_not_allowed")
        assert await code_of(pair, OPENAI, question(model="chat:whereToGo"), narrow) == (403, "chat_type_not_allowed")
        assert await code_of(pair, OPENAI, question(model="fake-model"), narrow) == (403, "model_not_allowed")
        assert await listed(pair, "/v1/models", "id", narrow) == ["chat:home"]
        assert await listed(pair, "/v1/chat/types", "name", narrow) == ["home"]
        gone = create_key(tmp_path, "removed-plan")
        await _known(pair, gone)
        assert await code_of(pair, NATIVE, question(), gone) == (403, "insufficient_scope")


async def _known(pair: Pair, key: str) -> None:
    until = time.monotonic() + 1
    while (await code_of(pair, NATIVE, question(), key))[1] == "invalid_token":
        assert time.monotonic() < until


@pytest.mark.parametrize(
    ("node", "rows"),
    [  # (asked, plan, sent to the runtime); the chat type's own limit is 512
        (
            4096,
            [(None, "wide", 512), (10, "wide", 10), (10_000, "wide", 512), (None, "tight", 99), (9999, "tight", 99)],
        ),
        (30, [(None, "wide", 30), (31, "wide", 30), (10_000, "tight", 30), (29, "tight", 29)]),
    ],
)
async def test_the_smallest_limit_on_an_answer_counts(
    tmp_path: Path, node: int, rows: list[tuple[int | None, str, int]]
) -> None:
    keys = {plan: create_key(tmp_path, plan) for plan in ("wide", "tight")}
    plans = {"wide": {"tokens_per_request": 4096}, "tight": {"tokens_per_request": 99}}
    async with (
        FakeRuntime() as runtime,
        running_pair(runtime.url, state=tmp_path, node={"max_tokens": node}, plans=plans) as pair,
    ):
        for asked, plan, sent in rows:
            fields: dict[str, Any] = {} if asked is None else {"max_tokens": asked}
            assert await code_of(pair, NATIVE, question(**fields), keys[plan]) == (200, None)
            assert runtime.chats[-1].json["max_tokens"] == sent


async def test_a_longest_answer_of_nothing_is_no_answer(shared_runtime: FakeRuntime, tmp_path: Path) -> None:
    """0 is none at all here as in every limit; a runtime takes it for no limit."""
    key = create_key(tmp_path, "mute")
    async with running_pair(shared_runtime.url, state=tmp_path, plans={"mute": {"tokens_per_request": 0}}) as pair:
        asked: list[dict[str, Any]] = [{}, {"max_tokens": 5}]
        for fields in asked:
            async with pair.post(NATIVE, question(**fields), key=key) as response:
                assert (response.status, (await response.json())["error"]["code"]) == (429, "quota_exceeded")
                assert response.headers["x-should-retry"] == "false"
        assert shared_runtime.chats == []


async def test_an_answer_that_passes_its_limit_is_ended(shared_pair: Pair, shared_runtime: FakeRuntime) -> None:
    """Ollama is reported to ignore max_tokens."""
    shared_runtime.script = normal(20, 0.02)
    async with shared_pair.post(NATIVE, question(max_tokens=3)) as response:
        answer = await response.json()
    assert answer["choices"][0]["finish_reason"] == "length"
    assert 3 <= answer["usage"]["completion_tokens"] <= 5
    assert shared_runtime.chats[0].json["max_tokens"] == 3
    await shared_runtime.until(lambda: shared_runtime.chats[0].outcome == "aborted")


async def test_me(shared_pair: Pair) -> None:
    member = await shared_pair.new_key("member")
    await code_of(shared_pair, NATIVE, question(), member)
    await shared_pair.idle()
    async with shared_pair.get("/v1/me", key=member) as response:
        me = await response.json()
        assert response.status == 200
        assert response.headers["cache-control"] == "no-store"
        assert response.headers["x-ratelimit-limit-requests"] == "60"
    assert me["principal"] == {"id": principal_of(member), "kind": "key", "plan": "member"}
    assert me["scopes"] == ["chat"]
    assert me["expires_at"] is None
    tokens = me["usage"]["tokens"]
    assert (tokens["limit"], tokens["used"], tokens["reserved"], tokens["remaining"]) == (200_000, 12, 0, 199_988)
    assert me["usage"]["streams"] == {"limit": 4, "running": 0}
    assert me["usage"]["requests"]["limit"] == 60


async def test_a_token_says_what_it_is_worth(shared_pair: Pair) -> None:
    async with shared_pair.client.post(shared_pair.url + "/v1/token", json={}, headers=FROM_PAGE) as response:
        minted = await response.json()
        assert response.status == 200
        assert response.headers["cache-control"] == "no-store"
    assert minted["token"].startswith("hlt_")
    assert (minted["token_type"], minted["expires_in"]) == ("Bearer", 600)
    assert (minted["principal"]["kind"], minted["principal"]["plan"]) == ("anonymous", "anonymous")
    assert minted["limits"] == {
        "requests_per_minute": 20,
        "streams": 2,
        "tokens_per_day": 20_000,
        "tokens_per_request": 1024,
    }
    async with shared_pair.get("/v1/me", key=minted["token"], headers=FROM_PAGE) as response:
        me = await response.json()
    assert me["principal"] == minted["principal"]
    assert abs(me["expires_at"] - time.time() - 600) < 30
    assert await shared_pair.token() != minted["token"]
    async with shared_pair.get("/v1/me", key=await shared_pair.token(), headers=FROM_PAGE) as response:
        assert (await response.json())["principal"] == minted["principal"]  # a fresh token is not a fresh quota


async def test_a_key_buys_a_token_of_its_own_plan(shared_pair: Pair) -> None:
    for headers in (shared_pair.bearer(), {"X-API-Key": shared_pair.key}):
        async with shared_pair.client.post(shared_pair.url + "/v1/token", json={}, headers=headers) as response:
            minted = await response.json()
        assert minted["principal"] == {"id": principal_of(shared_pair.key), "kind": "key", "plan": "owner"}
        assert await code_of(shared_pair, NATIVE, question(), minted["token"]) == (
            200,
            None,
        )  # from anywhere: no Origin


async def test_a_token_that_is_given_back_ends(shared_pair: Pair) -> None:
    token, other = await shared_pair.token(), await shared_pair.token()
    headers = shared_pair.bearer(token) | FROM_PAGE
    async with shared_pair.client.delete(shared_pair.url + "/v1/token", headers=headers) as response:
        assert response.status == 204
    assert await code_of(shared_pair, NATIVE, question(), token, FROM_PAGE) == (401, "token_revoked")
    assert await code_of(shared_pair, NATIVE, question(), other, FROM_PAGE) == (200, None)
    async with shared_pair.client.delete(shared_pair.url + "/v1/token", headers=shared_pair.bearer()) as response:
        assert (response.status, (await response.json())["error"]["code"]) == (400, "invalid_request")


async def test_without_authentication_on_loopback_everybody_is_the_owner(
    shared_runtime: FakeRuntime, tmp_path: Path
) -> None:
    async with running_pair(shared_runtime.url, state=tmp_path, edge={"require_authentication": False}) as pair:
        async with pair.client.post(pair.url + OPENAI, json=question()) as response:
            assert response.status == 200
        async with pair.client.post(
            pair.url + OPENAI, json=question(), headers={"Authorization": "Bearer wrong"}
        ) as response:
            assert response.status == 401  # a credential that is shown is checked


async def test_rates_and_streams_are_refused_with_what_to_do(tmp_path: Path) -> None:
    key = create_key(tmp_path, "few")
    plans = {"few": {"requests_per_minute": 3, "streams": 1}}
    async with (
        FakeRuntime("stall_mid_stream") as runtime,
        running_pair(runtime.url, state=tmp_path, plans=plans) as pair,
        pair.post(NATIVE, question(stream=True), key=key) as running,
    ):
        assert running.status == 200
        async with pair.post(NATIVE, question(), key=key) as response:
            assert (response.status, (await response.json())["error"]["code"]) == (429, "concurrency_limited")
            assert response.headers["retry-after"] == "1"
        for _ in range(2):
            async with pair.get("/v1/me", key=key) as response:
                assert response.status == 200
        async with pair.post(NATIVE, question(), key=key) as response:
            assert (response.status, (await response.json())["error"]["code"]) == (429, "rate_limited")
            assert 1 <= int(response.headers["retry-after"]) <= 20
            assert response.headers["x-ratelimit-remaining-requests"] == "0"
        assert len(runtime.chats) == 1


async def test_a_quota_that_is_used_up_is_not_worth_a_retry(shared_runtime: FakeRuntime, tmp_path: Path) -> None:
    key = create_key(tmp_path, "small")
    async with running_pair(shared_runtime.url, state=tmp_path, plans={"small": {"tokens_per_day": 700}}) as pair:
        assert await code_of(pair, NATIVE, question(), key) == (200, None)
        async with pair.post(NATIVE, question(chat_type="whereToGo", messages=long_talk()), key=key) as response:
            assert (response.status, (await response.json())["error"]["code"]) == (429, "quota_exceeded")
            assert response.headers["x-should-retry"] == "false"
            assert response.headers["x-ratelimit-remaining-tokens"] == "688"
        assert len(shared_runtime.chats) == 1


def long_talk() -> list[dict[str, str]]:
    return [{"role": "user", "content": "and then " * 100}]
