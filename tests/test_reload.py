"""SIGHUP: edge and node take new settings while they run; a mistake keeps the old ones."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from loguru import logger

from edge.app import run_edge
from node.app import run_node
from shared.settings import load_settings
from shared.state import StateDir
from tests.fake_runtime import FakeRuntime
from tests.pair import ANY_PORT, Pair, create_key, question
from tests.processes import Process, running_processes
from tests.raw_http import RawClient
from tests.waiting import wait_until

NATIVE = "/v1/chat"
ONE, TWO = "http://one.test", "http://two.test"
FIRST, SECOND = "first-token-of-the-node", "second-token-of-the-node"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "hearthlink.toml"
    write(path, f'[edge]\nallowed_origins = ["{ONE}"]\n')
    return path


def write(config: Path, text: str) -> None:
    config.write_text(text)


@pytest.fixture
def told() -> Iterator[list[str]]:
    """What a reload says, as "LEVEL text"."""
    lines: list[str] = []

    def take(message: str) -> None:
        lines.append(message.rstrip())

    sink = logger.add(take, format="{level} {message}", filter="shared.reload")
    yield lines
    logger.remove(sink)


@asynccontextmanager
async def configured_pair(config: Path, state: Path, runtime: FakeRuntime) -> AsyncIterator[Pair]:
    """A pair whose settings are in ``config``, but for addresses and runtime, which are flags."""
    environ = {"HEARTHLINK_STATE": str(state), "HOME": str(state)}
    node_flags = {"node.listen": ANY_PORT, "node.runtime.kind": "openai", "node.runtime.url": runtime.url}
    key = create_key(state)
    async with run_node(load_settings(config=config, flags=node_flags, environ=environ)) as node:
        link = f"ws://127.0.0.1:{node.listener.port}/link"
        edge_flags = {"edge.listen": ANY_PORT, "edge.ops_listen": ANY_PORT, "edge.upstreams.default.url": link}
        settings = load_settings(config=config, flags=edge_flags, environ=environ)
        async with run_edge(settings, lambda line: None) as edge, aiohttp.ClientSession(trust_env=False) as client:
            upstreams = edge.services.upstreams
            await wait_until(lambda: upstreams.ready)
            yield Pair(state, node, edge, key, client)


@pytest.fixture
async def pair(config: Path, tmp_path: Path, runtime: FakeRuntime) -> AsyncIterator[Pair]:
    async with configured_pair(config, tmp_path, runtime) as pair:
        yield pair


async def enters(pair: Pair, origin: str) -> int:
    """Status of a token for a page on ``origin``."""
    async with pair.client.post(pair.url + "/v1/token", json={}, headers={"Origin": origin}) as response:
        allowed = response.headers.get("access-control-allow-origin")
        assert (allowed == origin) == (response.status == 200), "CORS says the same"
        return response.status


# -- the edge ---------------------------------------------------------------------------------------------------------


async def test_origins_follow_the_file(pair: Pair, config: Path, told: list[str]) -> None:
    assert (await enters(pair, ONE), await enters(pair, TWO)) == (200, 403)
    write(config, f'[edge]\nallowed_origins = ["{TWO}"]\n')
    assert await enters(pair, TWO) == 403, "not before it is told to"
    pair.edge.reload()
    assert (await enters(pair, ONE), await enters(pair, TWO)) == (403, 200)
    assert told == ["INFO reloaded edge.allowed_origins"]
    preflight = {"Origin": TWO, "Access-Control-Request-Method": "POST"}
    async with pair.client.options(pair.url + NATIVE, headers=preflight) as response:
        assert (response.status, response.headers["access-control-allow-origin"]) == (200, TWO)


async def test_who_may_call_follows_the_file(pair: Pair, config: Path, told: list[str]) -> None:
    """Names, addresses, connections and answers at once; not the names of an address that was bound at the start."""

    async def status(host: str = "a.test") -> int:
        async with pair.client.get(pair.url + "/livez", headers={"Host": host}) as response:
            return response.status

    assert await status() == 200
    write(config, '[edge]\nallowed_hosts = ["b.test"]\nconnections_per_ip = 7\nmax_streams = 9\n')
    pair.edge.reload()
    assert (await status(), await status("b.test")) == (400, 200)
    assert (pair.edge.services.connections.most, pair.edge.services.load.most) == (7, 9)
    write(config, '[edge]\ndenied_addresses = ["127.0.0.0/8"]\npublic_url = "https://c.test"\n')
    pair.edge.reload()
    assert await status() == 403, "by the address, not by the name: public_url waits for the next start"
    assert "WARNING restart the edge for edge.public_url" in told
    write(config, "")
    pair.edge.reload()
    assert await status() == 200


async def test_a_reload_begins_no_callers_minute_anew(pair: Pair) -> None:
    async def left() -> int:
        async with pair.client.post(pair.url + "/v1/token", json={}, headers={"Origin": ONE}) as response:
            return int(response.headers["x-ratelimit-remaining-requests"])

    before = await left()
    pair.edge.reload()
    after = await left()
    assert after == before - 1 or after >= 29, "or a minute has just begun"
    pair.edge.reload()
    assert [await left() for _ in range(3)][-1] < after


async def test_the_door_for_invites_follows_the_file(pair: Pair, config: Path) -> None:
    async def guess() -> int:
        async with pair.client.post(pair.url + "/v1/token", json={"invite": "hli_guess"}) as response:
            return response.status

    assert await guess() == 400, "a field that nobody knows"
    write(config, "[edge]\ninvites = true\n")
    pair.edge.reload()
    assert await guess() == 401
    write(config, "")
    pair.edge.reload()
    assert await guess() == 400


async def test_the_page_follows_the_file(pair: Pair, config: Path) -> None:
    async def status() -> int:
        async with pair.client.get(pair.url + "/") as response:
            return response.status

    assert await status() == 200
    write(config, "[edge]\npage = false\n")
    pair.edge.reload()
    assert await status() == 404
    write(config, "")
    pair.edge.reload()
    assert await status() == 200


async def test_a_reload_cannot_switch_credentials_off(pair: Pair, config: Path, told: list[str]) -> None:
    write(config, f'[edge]\nallowed_origins = ["{ONE}"]\nrequire_authentication = false\n')
    pair.edge.reload()
    async with pair.client.get(pair.url + "/v1/models") as response:
        assert response.status == 401
    assert told == ["INFO reloaded nothing new", "WARNING restart the edge for edge.require_authentication"]


async def test_a_proxy_that_cannot_be_trusted_keeps_the_old_settings(pair: Pair, config: Path, told: list[str]) -> None:
    write(config, f'[edge]\nallowed_origins = ["{TWO}"]\ntrusted_proxies = ["0.0.0.0/0"]\n')
    pair.edge.reload()
    assert (await enters(pair, ONE), await enters(pair, TWO)) == (200, 403)
    assert len(told) == 1 and told[0].startswith("ERROR the settings stay as they were: ")


async def test_plans_follow_the_file(pair: Pair, config: Path, runtime: FakeRuntime) -> None:
    async def max_tokens() -> int:
        async with pair.post(NATIVE, question(max_tokens=50)) as response:
            assert response.status == 200, await response.text()
        return runtime.chats[-1].json["max_tokens"]

    assert await max_tokens() == 50
    write(config, "[plans.owner]\ntokens_per_request = 7\n")
    pair.edge.reload()
    assert await max_tokens() == 7
    write(config, "[plans.owner]\nrequests_per_minute = 1\n")
    pair.edge.reload()
    async with pair.post(NATIVE, question()) as first, pair.post(NATIVE, question()) as second:
        assert 429 in (first.status, second.status)
    write(config, "")
    pair.edge.reload()
    assert await max_tokens() == 50


async def test_a_running_stream_outlives_a_reload(pair: Pair, config: Path, runtime: FakeRuntime) -> None:
    runtime.script = "slow"
    async with await RawClient.connect(pair.url) as raw:
        await raw.post(NATIVE, question(stream=True), pair.bearer())
        assert (await raw.head()).status == 200
        await raw.read_until(b"one ")
        write(config, f'[edge]\nallowed_origins = ["{TWO}"]\n[node]\nqueue = 3\n[plans.owner]\nstreams = 1\n')
        pair.edge.reload()
        pair.node.reload()
        assert (await raw.body()).endswith(b"data: [DONE]\n\n")
    assert runtime.chats[0].outcome == "completed"
    await pair.idle()


async def test_signing_keys_rotate_without_dropping_anybody(pair: Pair, config: Path) -> None:
    old, new = (letter * 40 for letter in "ab")

    def sign_with(*keys: str) -> None:
        write(config, f'[edge]\nallowed_origins = ["{ONE}"]\nsigning_keys = {list(keys)}\n')
        pair.edge.reload()

    async def accepted(token: str) -> bool:
        async with pair.get("/v1/me", key=token, headers={"Origin": ONE}) as response:
            return response.status == 200

    sign_with(old)
    before = await pair.token(ONE)
    sign_with(old, new)
    after = await pair.token(ONE)
    assert await accepted(before) and await accepted(after)
    sign_with(new)
    assert (await accepted(before), await accepted(after)) == (False, True)


@pytest.mark.case("E68")
@pytest.mark.parametrize(
    ("broken", "says"),
    [
        ("[edge]\nallowed_origin = []\n", "edge.allowed_origin"),
        ('[edge]\nallowed_origins = ["not an origin"]\n', "edge.allowed_origins"),
        ("[edge\n", "hearthlink.toml"),
        ('[plans.owner]\ntokens_per_request = "some"\n', "plans.owner.tokens_per_request"),
    ],
)
async def test_a_broken_file_keeps_the_old(pair: Pair, config: Path, told: list[str], broken: str, says: str) -> None:
    before = (pair.edge.settings, pair.edge.services.policy, pair.edge.services.plans, pair.edge.app)
    write(config, broken)
    pair.edge.reload()
    assert (pair.edge.settings, pair.edge.services.policy, pair.edge.services.plans, pair.edge.app) == before
    assert await enters(pair, ONE) == 200
    (line,) = told
    assert line.startswith("ERROR the settings stay as they were:") and says in line and str(config) in line
    pair.node.reload()
    assert told[1:] == told[:1]


async def test_a_state_that_cannot_be_read_keeps_the_old(pair: Pair, config: Path, told: list[str]) -> None:
    (pair.state / "node-token").chmod(0o644)
    write(config, "[node]\nqueue = 3\n")
    pair.node.reload()
    assert pair.node.services.turns.queue_limit == 64
    assert [("ERROR" in line, "chmod" in line) for line in told] == [(True, True)]


async def test_signing_keys_that_cannot_be_read_keep_the_old(pair: Pair) -> None:
    said: list[str] = []
    sink = logger.add(lambda line: said.append(str(line)), format="{level} {message}", filter="edge.store")
    token = await pair.token(ONE)
    (pair.state / "signing-keys").chmod(0o644)
    try:
        await wait_until(lambda: said)
    finally:
        logger.remove(sink)
    assert "ERROR" in said[0] and "chmod 600" in said[0]
    pair.edge.reload()
    async with pair.get("/v1/me", key=token, headers={"Origin": ONE}) as response:
        assert response.status == 200
    assert await enters(pair, ONE) == 200


async def test_what_needs_a_restart_is_named(pair: Pair, config: Path, told: list[str]) -> None:
    write(
        config,
        f'[edge]\nallowed_origins = ["{TWO}"]\nheartbeat = 5\nrequests_per_minute_per_ip = 7\n'
        '[edge.upstreams.second]\nurl = "ws://127.0.0.1:9/link"\n'
        '[node]\nqueue = 3\nslots = 2\n[node.runtime]\nkey = "sk-secret"\n[logs]\nlevel = "DEBUG"\n',
    )
    pair.edge.reload()
    assert told[0] == "INFO reloaded edge.allowed_origins"
    assert told[1].startswith("WARNING restart the edge for edge.heartbeat, edge.requests_per_minute_per_ip, edge.ups")
    assert "edge.upstreams.second.url" in told[1] and told[1].endswith("logs.level")
    del told[:]
    pair.node.reload()
    assert told == ["INFO reloaded node.queue", "WARNING restart the node for logs.level, node.runtime.key, node.slots"]
    assert pair.node.services.turns.queue_limit == 3
    snapshot = lambda: pair.edge.services.upstreams.all[0].snapshot  # noqa: E731
    await wait_until(lambda: (seen := snapshot()) is not None and seen.queue_limit == 3)


async def test_nothing_new_is_said_so(pair: Pair, told: list[str]) -> None:
    pair.edge.reload()
    pair.node.reload()
    assert told == ["INFO reloaded nothing new"] * 2


# -- the node ---------------------------------------------------------------------------------------------------------


async def models_status(pair: Pair, token: str) -> int:
    """Status of the node's own surface for its bearer ``token``."""
    headers = {"Authorization": f"Bearer {token}"}
    async with pair.client.get(pair.node.listener.url + "/v1/models", headers=headers) as response:
        return response.status


async def test_node_tokens_rotate(pair: Pair, config: Path) -> None:
    made = StateDir(pair.state).node_token()

    def accept(*tokens: str) -> None:
        write(config, f"[node]\ntokens = {list(tokens)}\n")
        pair.node.reload()

    async def accepted() -> list[bool]:
        return [await models_status(pair, token) == 200 for token in (made, FIRST, SECOND)]

    assert await accepted() == [True, False, False]
    accept(FIRST)
    assert await accepted() == [False, True, False]
    accept(FIRST, SECOND)
    assert await accepted() == [False, True, True]
    accept(SECOND)
    assert await accepted() == [False, False, True]
    async with pair.post(NATIVE, question()) as response:
        assert response.status == 200, "a link that was admitted stays"
    accept()
    assert await accepted() == [True, False, False]


async def test_limits_of_the_node_follow_the_file(pair: Pair, config: Path, runtime: FakeRuntime) -> None:
    write(config, '[node]\nmax_tokens = 9\nfirst_token_timeout = "1s"\nstall_timeout = "2s"\n')
    pair.node.reload()
    async with pair.post(NATIVE, question(max_tokens=50)) as response:
        assert response.status == 200
    assert runtime.chats[-1].json["max_tokens"] == 9
    runtime.script = "stall_before_headers"
    async with pair.post(NATIVE, question()) as response:
        assert (response.status, (await response.json())["error"]["code"]) == (504, "first_token_timeout")


# -- as processes -----------------------------------------------------------------------------------------------------


async def test_sighup_reloads_each_process(runtime: FakeRuntime, config: Path, tmp_path: Path) -> None:
    async with running_processes(runtime.url, tmp_path, environ={"HEARTHLINK_CONFIG": str(config)}) as processes:

        async def max_tokens() -> int:
            body: dict[str, Any] = question(max_tokens=50)
            async with processes.client.post(processes.url + NATIVE, json=body, headers=processes.bearer()) as response:
                assert response.status == 200, await response.text()
            return runtime.chats[-1].json["max_tokens"]

        async def hang_up(process: Process, says: str) -> None:
            process.signal(signal.SIGHUP)
            await wait_until(lambda: says in process.text(), what=process.text)

        assert await max_tokens() == 50
        write(config, "[plans.owner]\ntokens_per_request = 7\n")
        await hang_up(processes.edge, "plans.owner.tokens_per_request")
        assert await max_tokens() == 7
        write(config, "[node]\nmax_tokens = 5\n")
        await hang_up(processes.node, "reloaded node.max_tokens")
        assert await max_tokens() == 5
        write(config, "[node]\nmax_token = 5\n")
        await hang_up(processes.node, "the settings stay as they were")
        assert "node.max_tokens" in processes.node.text().rpartition("the settings stay")[2], "the key that was meant"
        assert await max_tokens() == 5
