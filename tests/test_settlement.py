"""Tokens are reserved before they are spent and settled exactly once, whatever the ending; the rows of the ledger's
database are what is looked at."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.fake_runtime import Exchange, FakeRuntime
from tests.fake_scripts import Script, chunk, normal, role_chunk, stall_mid_stream
from tests.pair import Pair, create_key, principal_of, question, read_ledger, revoke_key, running_pair
from tests.processes import Processes, running_processes
from tests.raw_http import RawClient
from tests.waiting import held_up, wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

NATIVE = "/v1/chat"
LOST = 0.1  # seconds of settlements that kill -9 may cost (design §6)


@pytest_asyncio.fixture(loop_scope="module")
async def own_pair(shared_pair: Pair) -> Pair:
    """``shared_pair`` with a key that has spent nothing."""
    upstreams = shared_pair.edge.services.upstreams
    await wait_until(lambda: upstreams.ready)
    shared_pair.key = await shared_pair.new_key()
    return shared_pair


async def once(pair: Pair) -> tuple[int, dict[str, Any]]:
    """(tokens in the ledger, the one chat's audit line) once all is settled, and still so a while later."""
    await pair.idle()
    principal = principal_of(pair.key)
    used = pair.ledger().used.get(principal, 0)
    await asyncio.sleep(0.1)  # two commits
    assert pair.ledger().used.get(principal, 0) == used
    (line,) = [line for line in pair.audit if line["route"] == NATIVE]
    assert used == line.get("prompt_tokens", 0) + line.get("completion_tokens", 0)
    return used, line


async def read_some_of(pair: Pair, mark: bytes) -> RawClient:
    raw = await RawClient.connect(pair.url)
    await raw.post(NATIVE, question(stream=True), pair.bearer())
    await raw.head()
    await raw.read_until(mark)
    return raw


@pytest.mark.parametrize("stream", [False, True])
async def test_a_good_end_costs_what_the_runtime_counted(own_pair: Pair, stream: bool) -> None:
    async with own_pair.post(NATIVE, question(stream=stream)) as response:
        await response.read()
    used, line = await once(own_pair)
    assert (used, line["outcome"]) == (7 + 5, "stop")


async def test_an_answer_that_the_runtime_does_not_count_costs_an_estimate_of_its_prompt(
    own_pair: Pair, shared_runtime: FakeRuntime
) -> None:
    nothing = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    for words in (0, 3):
        own_pair.key = await own_pair.new_key()
        own_pair.audit.clear()
        shared_runtime.script = normal(words, usage=nothing)
        async with own_pair.post(NATIVE, question("x" * 3000)) as response:
            assert response.status == 200
        used, line = await once(own_pair)
        assert line["completion_tokens"] == words
        assert 1000 < used - words < 1200


async def test_while_it_runs_the_most_it_may_cost_is_reserved(own_pair: Pair, shared_runtime: FakeRuntime) -> None:
    shared_runtime.script = "stall_mid_stream"
    raw = await read_some_of(own_pair, b"one ")
    await wait_until(lambda: own_pair.ledger().reserved)
    (reserved,) = own_pair.ledger().reserved.values()
    assert 512 < reserved < 1024  # the chat type's longest answer, and the prompt's estimate
    assert principal_of(own_pair.key) not in own_pair.ledger().used
    async with own_pair.get("/v1/me") as response:
        assert (await response.json())["usage"]["tokens"]["reserved"] == reserved
    raw.close()
    used, _ = await once(own_pair)
    assert 2 < used < reserved


async def test_leaving_mid_stream_costs_the_tokens_made(own_pair: Pair, shared_runtime: FakeRuntime) -> None:
    shared_runtime.script = stall_mid_stream(4)
    raw = await read_some_of(own_pair, "🌍 ".encode())
    raw.reset()
    used, line = await once(own_pair)
    assert (line["outcome"], line["completion_tokens"]) == ("cancelled", 4)
    assert 0 < line["prompt_tokens"] < 300  # nobody counted it: the estimate
    assert used == line["prompt_tokens"] + 4


async def test_leaving_a_whole_answer_costs_the_tokens_made(own_pair: Pair, shared_runtime: FakeRuntime) -> None:
    """Its head would have come with its end; what the model made until then was made all the same."""
    shared_runtime.script = stall_mid_stream(4)
    async with await RawClient.connect(own_pair.url) as raw:
        await raw.post(NATIVE, question(), own_pair.bearer())
        await shared_runtime.chat(0)
        await asyncio.sleep(0.1)
    used, line = await once(own_pair)
    assert (line["outcome"], line["completion_tokens"]) == ("cancelled", 4)
    assert used == line["prompt_tokens"] + 4 > 4


async def test_leaving_before_the_model_began_costs_nothing(own_pair: Pair, shared_runtime: FakeRuntime) -> None:
    shared_runtime.script = "stall_before_headers"
    async with await RawClient.connect(own_pair.url) as raw:
        await raw.post(NATIVE, question(), own_pair.bearer())
        await shared_runtime.chat(0)
    used, line = await once(own_pair)
    assert (used, line["outcome"]) == (0, "cancelled")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("script", ["llamacpp_context", "vllm_busy", "html", "garbage"])
async def test_a_refusal_costs_nothing(own_pair: Pair, shared_runtime: FakeRuntime, script: str, stream: bool) -> None:
    shared_runtime.script = script
    async with own_pair.post(NATIVE, question(stream=stream)) as response:
        assert response.status >= 400
    used, _ = await once(own_pair)
    assert used == 0


@pytest.mark.parametrize("script", ["reset_mid_stream", "eof_without_done", "error_data"])
async def test_a_whole_answer_that_was_never_given_costs_nothing(
    own_pair: Pair, shared_runtime: FakeRuntime, script: str
) -> None:
    shared_runtime.script = script
    async with own_pair.post(NATIVE, question()) as response:
        assert response.status == 502
    used, _ = await once(own_pair)
    assert used == 0


@pytest.mark.parametrize("script", ["reset_mid_stream", "eof_without_done", "error_data", "cut_mid_stream"])
async def test_a_cut_answer_costs_what_was_shown(own_pair: Pair, shared_runtime: FakeRuntime, script: str) -> None:
    shared_runtime.script = script
    async with own_pair.post(NATIVE, question(stream=True)) as response:
        await response.read()
    used, line = await once(own_pair)
    assert line["completion_tokens"] == 2
    assert used == line["prompt_tokens"] + 2 > 2


async def test_a_stopped_answer_costs_what_was_made(own_pair: Pair, shared_runtime: FakeRuntime) -> None:
    shared_runtime.script = stall_mid_stream(3)
    async with await RawClient.connect(own_pair.url) as raw:
        await raw.post(NATIVE, question(stream=True), own_pair.bearer())
        chat_id = (await raw.head()).headers["hearthlink-chat-id"]
        await raw.read_until("日本 ".encode())
        for _ in range(2):  # the second one finds nothing
            async with own_pair.client.delete(
                f"{own_pair.url}{NATIVE}/{chat_id}", headers=own_pair.bearer()
            ) as response:
                assert response.status in (204, 404)
        await raw.body()
    _, line = await once(own_pair)
    assert (line["outcome"], line["completion_tokens"]) == ("stopped", 3)


async def test_a_revoked_key_pays_for_what_was_made(own_pair: Pair, shared_runtime: FakeRuntime) -> None:
    shared_runtime.script = stall_mid_stream(3)
    raw = await read_some_of(own_pair, "日本 ".encode())
    revoke_key(own_pair.state, own_pair.key)
    await raw.read_until(b"token_revoked", 3)
    raw.close()
    _, line = await once(own_pair)
    assert (line["outcome"], line["completion_tokens"]) == ("token_revoked", 3)


async def test_a_reader_that_was_dropped_pays_once(tmp_path: Path) -> None:
    async with (
        FakeRuntime(large_words()) as runtime,
        running_pair(runtime.url, state=tmp_path, edge={"slow_reader_timeout": 0.5}) as pair,
    ):
        async with await RawClient.connect(pair.url, receive_buffer=4096) as raw:
            await raw.post(NATIVE, question(stream=True), pair.bearer())
            await (await runtime.chat(0)).peer_left(10)
            _, line = await once(pair)
        assert line["outcome"] == "slow_consumer"
        assert 8 <= line["completion_tokens"] < 512


def large_words() -> Script:
    """32 KiB an event: what the sockets between hold is full long before a chat type's 512 tokens are."""

    async def script(exchange: Exchange) -> None:
        await exchange.start_stream()
        await exchange.send(role_chunk())
        while True:
            await exchange.send(chunk({"content": "large " * 5461}))

    return script


async def test_a_lost_node_costs_an_estimate_of_what_was_shown(own_pair: Pair, shared_runtime: FakeRuntime) -> None:
    """No END will ever say: the prompt's estimate, and a token for each 256 bytes relayed."""
    shared_runtime.script = stall_mid_stream(5)
    raw = await read_some_of(own_pair, b"end. ")
    for session in list(own_pair.node.link.sessions):
        session.close()
    await raw.read_until(b"upstream_incomplete")
    raw.close()
    _, line = await once(own_pair)
    assert line["outcome"] == "upstream_incomplete"
    assert 0 < line["prompt_tokens"] < 300
    assert 1 <= line["completion_tokens"] <= 10


async def test_a_drained_chat_pays_for_what_was_made(tmp_path: Path) -> None:
    async with (
        FakeRuntime(stall_mid_stream(3)) as runtime,
        running_pair(runtime.url, state=tmp_path, edge={"drain_timeout": 0.1}) as pair,
    ):
        raw = await read_some_of(pair, "日本 ".encode())
        await pair.edge.drain()
        await raw.read_until(b"server_draining")
        raw.close()
        _, line = await once(pair)
        assert (line["outcome"], line["completion_tokens"]) == ("server_draining", 3)


async def test_a_quota_counts_what_runs_and_gets_back_what_was_not_spent(tmp_path: Path) -> None:
    key = create_key(tmp_path, "small")
    async with (
        FakeRuntime(normal(5, 0.05)) as runtime,
        running_pair(runtime.url, state=tmp_path, plans={"small": {"tokens_per_day": 1000}}) as pair,
    ):
        async with pair.post(NATIVE, question(stream=True), key=key) as running:
            async with pair.post(NATIVE, question(), key=key) as response:
                assert (response.status, (await response.json())["error"]["code"]) == (429, "quota_exceeded")
            assert (await running.read()).endswith(b"[DONE]\n\n")
        await pair.idle()
        async with pair.post(NATIVE, question(), key=key) as response:
            assert response.status == 200
        await pair.idle()
        assert pair.ledger().used[principal_of(key)] == 2 * 12


# -- the edge as a process --------------------------------------------------------------------------------------------


async def ask(pair: Processes, key: str | None = None, **fields: Any) -> int:
    headers = {"Authorization": f"Bearer {key}"} if key else pair.bearer()
    async with pair.client.post(pair.url + NATIVE, json=question(**fields), headers=headers) as response:
        await response.read()
        return response.status


@pytest.mark.case("E62")
async def test_kill_9_of_the_edge(shared_runtime: FakeRuntime, tmp_path: Path) -> None:
    """Settled chats are kept, open ones are settled at their estimate at the next start, and only at that one."""
    async with running_processes(shared_runtime.url, tmp_path) as pair:
        assert {await ask(pair) for _ in range(10)} == {200}
        await wait_until(lambda: sum(read_ledger(tmp_path).used.values()) == 10 * 12)
        shared_runtime.script = "stall_mid_stream"
        running = [await RawClient.connect(pair.url) for _ in range(3)]
        for raw in running:
            await raw.post(NATIVE, question(stream=True), pair.bearer())
            await raw.head()
            await raw.read_until(b"one ")
        await wait_until(lambda: len(read_ledger(tmp_path).reserved) == 3)
        before = read_ledger(tmp_path)
        assert list(before.used.values()) == [10 * 12]
        assert len(before.reserved) == 3
        pair.edge.signal(signal.SIGKILL)
        for raw in running:
            with pytest.raises((EOFError, ConnectionError)):  # cut: never a clean end
                await raw.body()
            raw.close()
        await shared_runtime.idle(12)  # the node saw the link go, and stopped the model
        assert read_ledger(tmp_path) == before
        expected = 10 * 12 + sum(before.reserved.values())
        for _ in range(2):
            await pair.edge.kill()
            await pair.restart_edge()
            after = pair.ledger()
            assert (list(after.used.values()), after.reserved) == ([expected], {})
        shared_runtime.script = "normal"
        assert await ask(pair) == 200
        await wait_until(lambda: list(pair.ledger().used.values()) == [expected + 12])


async def test_kill_9_at_once_loses_a_tenth_of_a_second_at_most(tmp_path: Path) -> None:
    async with FakeRuntime(slots=8) as runtime, running_processes(runtime.url, tmp_path) as pair:
        ended: list[float] = []
        clock = asyncio.get_running_loop().time

        async def caller() -> None:
            while True:
                assert await ask(pair) == 200
                ended.append(clock())

        callers = [asyncio.create_task(caller()) for _ in range(4)]
        before = held_up(pair.edge.child.pid)

        def old_enough() -> int:
            """Answers that must be kept: an edge that was not given the processor could not write them down."""
            held = held_up(pair.edge.child.pid) - before
            return sum(1 for moment in ended if moment < clock() - LOST - held)

        await wait_until(lambda: old_enough() > 20, 30)
        must = old_enough()
        pair.edge.signal(signal.SIGKILL)
        await asyncio.gather(*callers, return_exceptions=True)
        await pair.edge.kill()
        kept = sum(pair.ledger().used.values()) / 12 + len(pair.ledger().reserved)
        assert must <= kept <= len(ended) + len(callers)


async def test_keys_made_and_revoked_elsewhere_are_seen_within_a_second(
    shared_runtime: FakeRuntime, tmp_path: Path
) -> None:
    async with running_processes(shared_runtime.url, tmp_path) as pair:
        key = create_key(tmp_path, "member")
        for change, expected in ((None, 200), (revoke_key, 401)):
            if change is not None:
                change(tmp_path, key)
            async with asyncio.timeout(3):  # a second, and what a machine that others use takes to answer
                while await ask(pair, key) != expected:  # noqa: ASYNC110 - it is at the other end of a socket
                    await asyncio.sleep(0.02)
