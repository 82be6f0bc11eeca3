"""Callers who want to be somebody else, or nobody in particular: what they say of themselves changes nothing."""

from __future__ import annotations

import string
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.fake_runtime import FakeRuntime
from tests.invariants import unharmed
from tests.pair import ORIGIN, Pair, from_elsewhere, question, running_pair
from tests.raw_http import RawClient

pytestmark = pytest.mark.asyncio(loop_scope="module")

NATIVE = "/v1/chat"
PAGE = {"Origin": ORIGIN}


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def nothing_is_left(shared_pair: Pair) -> AsyncIterator[None]:
    async with unharmed(shared_pair):
        yield


async def minted(pair: Pair, headers: Mapping[str, str] = PAGE) -> dict[str, Any]:
    """What ``POST /v1/token`` answers, 200 or an error."""
    async with pair.client.post(pair.url + "/v1/token", json={}, headers=headers) as response:
        return await response.json()


async def code_of(pair: Pair, token: str) -> str | None:
    async with pair.get("/v1/me", key=token) as response:
        return (await response.json()).get("error", {}).get("code")


def spellings(token: str) -> list[str]:
    """What lenient readers of base64 take for ``token``, and what is nearly it."""
    alphabet = string.ascii_uppercase + string.ascii_lowercase + string.digits + "-_"
    at = alphabet.index(token[-1])
    spare_bits = [token[:-1] + alphabet[at ^ spare] for spare in (1, 2, 3)]
    return [
        *spare_bits,
        token + "=",
        token.replace(".", "=."),
        token + "\t",
        token[:20] + "%00" + token[20:],
        token[:-1],
    ]


@pytest.mark.case("B22")
async def test_a_token_that_was_given_back_stays_revoked_however_it_is_spelled(shared_pair: Pair) -> None:
    token = (await minted(shared_pair))["token"]
    assert await code_of(shared_pair, token) is None
    async with shared_pair.client.delete(
        shared_pair.url + "/v1/token", headers={**shared_pair.bearer(token), **PAGE}
    ) as gone:
        assert gone.status == 204
    assert await code_of(shared_pair, token) == "token_revoked"
    for other in spellings(token):
        assert await code_of(shared_pair, other) in ("invalid_token", "token_revoked"), other


CALLER = "203.0.113.7"
FORGERIES = [
    "1.2.3.4, %s",
    "127.0.0.1, %s",
    "::1, %s",
    "unknown, %s",
    "x' OR 1=1 --, %s",
    ", , %s",
    "%s:51234",
    "::ffff:%s",
    "[::ffff:%s]:443",
    "1.2.3.4,5.6.7.8,9.10.11.12,\t%s",
    "1" * 5000 + ",%s",
]


@pytest.mark.case("B30")
@pytest.mark.parametrize("forged", FORGERIES)
async def test_what_stands_left_in_x_forwarded_for_makes_nobody_new(shared_pair: Pair, forged: str) -> None:
    known = await minted(shared_pair, {**PAGE, "X-Forwarded-For": CALLER})
    again = await minted(shared_pair, {**PAGE, "X-Forwarded-For": forged % CALLER})
    assert again["principal"] == known["principal"]


@pytest.mark.case("B30")
async def test_a_network_of_ipv6_is_one_caller(shared_pair: Pair) -> None:
    network = [f"2001:db8:1:2:{part}::{part}" for part in ("1", "ffff", "a")]
    callers = [await minted(shared_pair, {**PAGE, "X-Forwarded-For": address}) for address in network]
    other = await minted(shared_pair, {**PAGE, "X-Forwarded-For": "2001:db8:1:3::1"})
    assert len({caller["principal"]["id"] for caller in callers}) == 1
    assert other["principal"]["id"] != callers[0]["principal"]["id"]


@pytest.mark.case("B30")
@pytest.mark.parametrize("trusted", [[], ["127.0.0.1"]])
async def test_a_rate_is_not_escaped_with_x_forwarded_for(
    shared_runtime: FakeRuntime, tmp_path: Path, trusted: list[str]
) -> None:
    """Without a trusted proxy nothing is read; behind one, only what that proxy wrote."""
    edge = {"requests_per_minute_per_ip": 5, "trusted_proxies": trusted}
    plans = {"member": {"tokens_per_day": 100_000}}
    async with running_pair(shared_runtime.url, state=tmp_path, edge=edge, plans=plans) as pair:
        key = await pair.new_key("member")
        found = []
        for number in range(8):
            forged = f"198.51.100.{number}, {CALLER}" if trusted else f"198.51.100.{number}"
            async with pair.get("/v1/me", key=key, headers={"X-Forwarded-For": forged}) as response:
                found.append(response.status)
        assert found == [200] * 5 + [429] * 3


@pytest.mark.case("B29")
@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({}, 401, "missing_token"),
        ({"Authorization": "Bearer hlt_x"}, 401, "invalid_token"),
        ({"Authorization": "Bearer PAGE"}, 403, "origin_not_allowed"),
        ({"Authorization": "Bearer PAGE", "Origin": "null"}, 403, "origin_not_allowed"),
        ({"Authorization": "Bearer PAGE", "Origin": ORIGIN + ".evil.test"}, 403, "origin_not_allowed"),
        ({"Authorization": "Bearer PAGE", "Origin": ORIGIN.upper()}, 403, "origin_not_allowed"),
    ],
)
async def test_who_may_not_is_told_before_the_body_is_sent(
    shared_pair: Pair, shared_runtime: FakeRuntime, headers: dict[str, str], status: int, code: str
) -> None:
    token = (await minted(shared_pair, PAGE | from_elsewhere()))["token"]
    headers = {name: value.replace("PAGE", token) for name, value in headers.items()}
    async with await RawClient.connect(shared_pair.url) as raw:
        await raw.request("POST", NATIVE, {"Content-Type": "application/json", "Content-Length": "1000", **headers})
        head = await raw.head()
        assert (head.status, (await raw.json())["error"]["code"]) == (status, code)
    assert not shared_runtime.chats


@pytest.mark.case("B33")
async def test_nobody_stops_another_callers_answer(shared_pair: Pair, shared_runtime: FakeRuntime) -> None:
    """Not with a key, not with another page's token, not from another address; and the owner's other token may."""
    shared_runtime.script = "stall_mid_stream"
    mine = PAGE | from_elsewhere()
    token, again = (await minted(shared_pair, mine))["token"], (await minted(shared_pair, mine))["token"]
    stranger = (await minted(shared_pair, PAGE | from_elsewhere()))["token"]
    key = await shared_pair.new_key("owner")
    async with await RawClient.connect(shared_pair.url) as raw:
        await raw.post(NATIVE, question(stream=True), shared_pair.bearer(token) | mine)
        chat = f"{NATIVE}/{(await raw.head()).headers['hearthlink-chat-id']}"
        for method, path in (("DELETE", chat), ("GET", chat + "/events"), ("GET", chat)):
            for other in (shared_pair.bearer(stranger) | PAGE, shared_pair.bearer(key)):
                found = await status_of(shared_pair, method, path, other)
                assert found == (404 if path.endswith("events") or method == "DELETE" else 405)
        assert await status_of(shared_pair, "DELETE", chat, shared_pair.bearer(again) | PAGE) == 204


async def status_of(pair: Pair, method: str, path: str, headers: Mapping[str, str]) -> int:
    async with pair.client.request(method, pair.url + path, headers=headers) as response:
        return response.status
