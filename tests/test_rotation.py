"""New signing keys for an edge that runs: no request notices, and an old token works until it ends (case B26)."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator
from configparser import ConfigParser
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.app import Edge, run_edge
from edge.principals import Principal
from edge.store.opening import admin_from
from edge.tokens import Tokens
from hearthlink.__main__ import main
from shared.settings import Settings
from shared.signing_keys import LONGEST_TOKEN, OldKey, SigningKeys
from shared.state import StateDir
from tests import command_line
from tests.fake_runtime import FakeRuntime
from tests.fake_scripts import normal
from tests.pair import ANY_PORT, ORIGIN, Pair, from_elsewhere, question, running_pair, settings_for
from tests.processes import ROOT, Processes, running_processes
from tests.raw_http import RawClient
from tests.redis_server import running_redis
from tests.waiting import HANGS, wait_until

NATIVE = "/v1/chat"
CALLERS = 3
# Every limit of the plan away, so that whatever is refused was refused for its token.
UNLIMITED = {
    "HEARTHLINK_EDGE__TRUSTED_PROXIES": "127.0.0.1",
    "HEARTHLINK_EDGE__REQUESTS_PER_MINUTE_PER_IP": "1000000",
    **{
        f"HEARTHLINK_PLANS__MEMBER__{name}": "unlimited"
        for name in ("REQUESTS_PER_MINUTE", "STREAMS", "TOKENS_PER_DAY", "TOKENS_PER_REQUEST")
    },
}


# -- the keys themselves ----------------------------------------------------------------------------------------------


def test_old_keys_have_a_bound_and_the_refusal_says_the_way_out() -> None:
    """A file that is read whole, and a forged token that is tried with each key, stay small."""
    keys, now = SigningKeys.new(), 1000
    for _ in range(64):
        keys, now = keys.rotated(now, LONGEST_TOKEN), now + 10
    assert len(keys.to_json()) < 16 << 10
    with pytest.raises(ValueError, match="hearthlink key rotate --leaked"):
        keys.rotated(now, LONGEST_TOKEN)
    assert keys.rotated(now, 0).old == ()
    assert len(keys.rotated(keys.old[0].until, LONGEST_TOKEN).old) == 64, "one of them has ended"


def test_a_rotation_makes_the_next_key_current_and_keeps_the_old() -> None:
    first = SigningKeys.new()
    second = first.rotated(1000, 600)
    assert (second.current, second.old) == (first.next, (OldKey(first.current, 1600),))
    assert len({*second.verifying}) == 3 and second.verifying[-1] == second.current
    third = second.rotated(1590, 600)
    assert [old.key for old in third.old] == [first.current, second.current]
    assert [old.key for old in third.rotated(1600, 600).old] == [second.current, third.current], "its tokens have ended"


def test_who_knows_the_keys_before_a_rotation_accepts_what_is_signed_after_it() -> None:
    before = SigningKeys.new()
    after = before.rotated(1000, 600)
    assert after.current in before.verifying and before.current in after.verifying


@given(st.lists(st.tuples(st.integers(5, 10**6), st.integers(1, 600)), min_size=1, max_size=8), st.data())
def test_no_rotation_ends_a_token_on_an_edge_that_has_seen_it_or_not_yet(
    steps: list[tuple[int, int]], data: st.DataObject
) -> None:
    """``steps``: seconds to the next rotation, and the lifetime of a token that is minted in between."""
    now, keys, out = 1_800_000_000, SigningKeys.new(), []
    for wait, lifetime in steps:
        out.append((now + lifetime, minted_with(keys, lifetime, now)))
        now += data.draw(st.integers(0, wait))
        behind, keys = keys, keys.rotated(now, 600) if abs(now - keys.since) >= 5 else keys
        for ends, token in [*out, (now + 600, minted_with(keys, 600, now))]:
            if ends > now:
                for known in (behind, keys):
                    assert Tokens(known.verifying, 600, now=lambda at=now: at).verify(token)


def minted_with(keys: SigningKeys, lifetime: int, now: int) -> str:
    ci = Principal("token_ci", "token", "member", ("chat",))
    return Tokens(keys.verifying, lifetime, now=lambda: now).mint(ci)[0]


def test_leaked_keys_are_all_gone_at_once() -> None:
    keys = SigningKeys.new().rotated(1000, 600)
    renewed = keys.rotated(1001, 0)
    assert not {*keys.verifying} & {*renewed.verifying} and renewed.old == ()


def test_keys_survive_being_written() -> None:
    keys = SigningKeys.new().rotated(1000, 600)
    assert SigningKeys.from_json(keys.to_json()) == keys
    assert keys.current not in repr(keys) and keys.next not in repr(keys) and keys.old[0].key not in repr(keys)


@pytest.mark.parametrize("text", ["{}", "[]", '{"next": "short", "current": "short", "old": []}', "7", "[" * 9999, ""])
def test_what_holds_no_keys_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"signing keys|too short|Expecting value"):
        SigningKeys.from_json(text)


def test_the_timer_rotates_monthly_by_a_verb_that_there_is() -> None:
    unit, timer = (ConfigParser(interpolation=None, strict=False) for _ in range(2))
    unit.read(ROOT / "infra/systemd/hearthlink-key-rotate.service")
    timer.read(ROOT / "infra/systemd/hearthlink-key-rotate.timer")
    assert timer["Timer"]["OnCalendar"] == "monthly" and timer["Timer"]["Persistent"] == "yes"
    program, *verb = unit["Service"]["ExecStart"].split()
    assert program.endswith("/.venv/bin/hearthlink")
    assert main([*verb, "--help"]) == 0


# -- a running edge ---------------------------------------------------------------------------------------------------


@asynccontextmanager
async def load(processes: Processes) -> AsyncIterator[Counter[int]]:
    """Programs that get a token from their key, ask a few times with it, and begin again; the statuses they saw."""
    seen: Counter[int] = Counter()
    over = asyncio.Event()

    async def asked(path: str, credential: str, payload: Any) -> Any:
        headers = {"Authorization": f"Bearer {credential}", **from_elsewhere()}  # an address gets 30 tokens a minute
        async with processes.client.post(processes.url + path, json=payload, headers=headers) as response:
            seen[response.status] += 1
            return await response.json()

    async def page() -> None:
        while not over.is_set():
            token = (await asked("/v1/token", processes.key, {}))["token"]
            for _ in range(4):
                answer = await asked(NATIVE, token, question())
                assert answer["choices"][0]["finish_reason"] == "stop", answer

    pages = [asyncio.create_task(page()) for _ in range(CALLERS)]
    try:
        yield seen
    finally:
        over.set()
        await asyncio.gather(*pages)


@pytest.mark.case("B26")
async def test_rotated_by_the_command_under_load_no_request_is_refused(runtime: FakeRuntime, tmp_path: Path) -> None:
    state = StateDir(tmp_path)
    async with running_processes(runtime.url, tmp_path, environ=UNLIMITED) as processes:
        before = state.signing_keys()
        minted = await command_line.run("token", "mint", "ci", "--hours", "1", state=tmp_path)
        async with load(processes) as seen:
            await until_more(seen, 20)
            rotated = await command_line.run("key", "rotate", state=tmp_path)
            assert rotated.status == 0, rotated.err
            at_rotation = seen.total()
            await wait_until(lambda: "signing keys were rotated" in processes.edge.text())
            await until_more(seen, 20)
        assert set(seen) == {200} and seen.total() >= at_rotation + 20
        after = state.signing_keys()
        assert (after.current, after.old[0].key) == (before.next, before.current)
        assert after.old[0].until >= time.time() + LONGEST_TOKEN - 60
        assert await me(processes, minted.out.strip()) == 200, "signed with what is old now"
        new = (await token_of(processes))["token"]
        assert Tokens([after.current], 600).verify(new), "signed with what is current now"


async def until_more(seen: Counter[int], requests: int) -> None:
    enough = seen.total() + requests
    await wait_until(lambda: seen.total() >= enough or set(seen) - {200}, 20, what=lambda: seen)


async def token_of(processes: Processes) -> dict[str, Any]:
    async with processes.client.post(processes.url + "/v1/token", json={}, headers=processes.bearer()) as response:
        return await response.json()


async def me(processes: Processes, token: str, origin: str | None = None) -> int:
    headers = {"Authorization": f"Bearer {token}", **({"Origin": origin} if origin else {})}
    async with processes.client.get(processes.url + "/v1/me", headers=headers) as response:
        return response.status


@pytest.mark.case("B26")
async def test_rotated_in_the_settings_under_load_no_request_is_refused(runtime: FakeRuntime, tmp_path: Path) -> None:
    """In the three reloads of docs/tokens.md; the second of them signs with the new key."""
    old, new = "o" * 43, "n" * 43
    config = tmp_path / "hearthlink.toml"
    config.touch(mode=0o600)

    def write(*keys: str) -> None:
        config.write_text(f"[edge]\nsigning_keys = {list(keys)}\n")

    write(old)
    environ = {**UNLIMITED, "HEARTHLINK_CONFIG": str(config)}
    async with running_processes(runtime.url, tmp_path, environ=environ) as processes:
        before = (await token_of(processes))["token"]
        async with load(processes) as seen:
            for number, keys in enumerate([(new, old), (old, new)], 1):
                write(*keys)
                await reloaded(processes, number)
                await until_more(seen, 20)
        assert set(seen) == {200}
        after = (await token_of(processes))["token"]
        assert Tokens([new], 600).verify(after) and await me(processes, before) == 200
        write(new)
        await reloaded(processes, 3)
        assert (await me(processes, before), await me(processes, after)) == (401, 200)
        refused = await command_line.run("key", "rotate", "--config", str(config), state=tmp_path)
        assert refused.status == 2 and "edge.signing_keys" in refused.err and str(config) in refused.err


async def reloaded(processes: Processes, times: int) -> None:
    processes.edge.signal(signal.SIGHUP)
    await wait_until(lambda: processes.edge.text().count("reloaded edge.signing_keys") == times)


@pytest.mark.case("B26")
async def test_a_stream_that_runs_notices_no_rotation(pair: Pair, runtime: FakeRuntime) -> None:
    runtime.script = normal(40, 0.05)
    token = await pair.token()
    headers = {**pair.bearer(token), "Origin": ORIGIN}
    async with await RawClient.connect(pair.url) as raw:
        await raw.post(NATIVE, question(stream=True), headers)
        assert (await raw.head()).status == 200
        await raw.read_until(b"one ")
        keys = await rotate(pair, LONGEST_TOKEN)
        await wait_until(lambda: pair.edge.keys == keys)
        assert (await raw.body(10)).endswith(b"data: [DONE]\n\n")
    async with pair.get("/v1/me", key=token, headers={"Origin": ORIGIN}) as response:
        assert response.status == 200


async def rotate(pair: Pair, longest: int) -> SigningKeys:
    async with admin_from(pair.edge.settings, StateDir(pair.state)) as admin:
        return await admin.rotate_signing_keys(longest)


@pytest.mark.case("B26")
async def test_edges_that_share_a_store_accept_each_other_s_tokens_all_along(tmp_path: Path) -> None:
    """One of them always knows of a rotation before the other does."""
    async with (
        running_redis(tmp_path / "redis") as redis,
        run_edge(sharing(redis.url, tmp_path / "one"), lambda line: None) as one,
        run_edge(sharing(redis.url, tmp_path / "two"), lambda line: None) as two,
        aiohttp.ClientSession(trust_env=False) as client,
        admin_from(one.settings, StateDir(tmp_path / "one")) as admin,
    ):
        assert one.keys == two.keys == await admin.signing_keys()
        seen: Counter[int] = Counter()

        async def round_trip(mints: Edge, checks: Edge) -> None:
            page = {"Origin": ORIGIN, **from_elsewhere()}
            async with client.post(mints.public.url + "/v1/token", json={}, headers=page) as response:
                token = (await response.json())["token"]
            bearer = {"Authorization": f"Bearer {token}"}
            async with client.get(checks.public.url + "/v1/me", headers={**page, **bearer}) as response:
                seen[response.status] += 1

        keys = await admin.rotate_signing_keys(600)
        async with asyncio.timeout(10):
            while not one.keys == two.keys == keys or seen.total() < 40:
                await asyncio.gather(round_trip(one, two), round_trip(two, one))
        assert set(seen) == {200}


def sharing(url: str, state: Path) -> Settings:
    edge = {"store": url, "listen": ANY_PORT, "ops_listen": ANY_PORT, "allowed_origins": [ORIGIN]}
    return settings_for(state, {"edge": {**edge, "trusted_proxies": ["127.0.0.1"]}})


async def test_after_a_leak_no_token_that_is_out_works(runtime: FakeRuntime, tmp_path: Path) -> None:
    """The answer that runs on one is ended; keys still give new ones, and so does the page's door."""
    runtime.script = "stall_mid_stream"
    async with running_processes(runtime.url, tmp_path, environ=UNLIMITED) as processes:
        token = (await token_of(processes))["token"]
        async with await RawClient.connect(processes.url) as raw:
            await raw.post(NATIVE, question(stream=True), {"Authorization": f"Bearer {token}"})
            assert (await raw.head()).status == 200
            await raw.read_until(b"one ")
            finished = await command_line.run("key", "rotate", "--leaked", state=tmp_path)
            assert finished.status == 0, finished.err
            await raw.read_until(b"token_revoked", 5)
        async with asyncio.timeout(HANGS):
            while await me(processes, token) != 401 or await works(processes) != 200:  # noqa: ASYNC110 - not our loop
                await asyncio.sleep(0.1)


@pytest.mark.parametrize("ahead", [0, 25])
async def test_what_was_forged_with_a_leaked_key_ends_too(runtime: FakeRuntime, tmp_path: Path, ahead: int) -> None:
    """Also a token that says it was issued later than the revocation, as far as clocks are forgiven; and the answers
    of keys, which nobody can forge, go on."""
    runtime.script = "stall_mid_stream"
    thief = Principal("token_thief", "token", "owner", ("chat",))
    async with running_pair(runtime.url, state=tmp_path) as pair:
        keys = StateDir(tmp_path).signing_keys().verifying
        forged = Tokens(keys, 600, now=lambda: time.time() + ahead).mint(thief)[0]
        async with (
            pair.post(NATIVE, question(stream=True), key=forged) as stolen,
            pair.post(NATIVE, question(stream=True)) as own,
        ):
            assert stolen.status == own.status == 200
            finished = await command_line.run("key", "rotate", "--leaked", state=tmp_path)
            assert finished.status == 0, finished.err
            async with asyncio.timeout(HANGS):
                assert b"token_revoked" in await stolen.content.read()
            assert len(pair.edge.services.chats) == 1


async def works(processes: Processes) -> int:
    """Status of a new token: until the edge knows of the rotation it mints with the old key."""
    return await me(processes, (await token_of(processes))["token"])
