"""Leaving stops the model: the runtime's side is closed within 100 ms, and nothing stays behind anywhere."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from pathlib import Path
from typing import Any

import pytest

from tests.fake_presets import PRESETS
from tests.fake_runtime import Exchange, FakeRuntime
from tests.fake_scripts import Script, normal
from tests.pair import Pair, events_of, question, revoke_key, running_pair
from tests.raw_http import RawClient
from tests.waiting import Stopwatch, wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

PROMISE = 0.1  # seconds between the caller's leaving and the runtime's seeing it (design §4)
NATIVE = "/v1/chat"
OPENAI = "/v1/chat/completions"


async def asking(pair: Pair, path: str = NATIVE, **fields: Any) -> RawClient:
    """A connection on which a chat has been asked; the caller closes it."""
    raw = await RawClient.connect(pair.url)
    await raw.post(path, question(**fields), pair.bearer())
    return raw


def leave(raw: RawClient, how: str) -> Stopwatch:
    """Runs from the moment at which the caller is gone."""
    left = Stopwatch()
    if how == "FIN":
        raw.close()
    elif how == "RST":
        raw.reset()
    else:
        raw.half_close()
    return left


@pytest.mark.parametrize("how", ["FIN", "RST", "half-close"])
@pytest.mark.parametrize(
    ("script", "stream", "reads"),
    [
        pytest.param("stall_before_headers", True, b"", id="before headers"),
        pytest.param("stall_before_headers", False, b"", id="before headers, not streaming"),
        pytest.param("progress_forever", True, b'"role"', id="in prefill"),
        pytest.param("progress_forever", False, b"", id="in prefill, not streaming"),
        pytest.param("slow", True, b"one ", id="mid-stream"),
        pytest.param("stall_mid_stream", True, b"one ", id="mid-stream of a silent runtime"),
        pytest.param("slow", False, b"", id="not streaming"),
    ],
)
async def test_leaving_closes_the_runtimes_side(
    shared_pair: Pair, shared_runtime: FakeRuntime, script: str, stream: bool, reads: bytes, how: str
) -> None:
    shared_runtime.script = script
    raw = await asking(shared_pair, stream=stream)
    exchange = await shared_runtime.chat(0)
    if reads:
        assert (await raw.head()).status == 200
        await raw.read_until(reads)
    left = leave(raw, how)
    try:
        await exchange.peer_left()
        assert left.seconds < PROMISE
        await shared_pair.idle()
        assert exchange.outcome == "aborted"
        assert shared_pair.audit[-1]["outcome"] == "cancelled"
    finally:
        raw.close()


async def test_leaving_the_nodes_own_surface_does_the_same(shared_pair: Pair, shared_runtime: FakeRuntime) -> None:
    shared_runtime.script = "stall_mid_stream"
    token = shared_pair.edge.services.upstreams.all[0].address.token
    for number, stream in enumerate((True, False)):
        async with await RawClient.connect(shared_pair.node.listener.url) as raw:
            await raw.post(NATIVE, question(stream=stream), shared_pair.bearer(token))
            exchange = await shared_runtime.chat(number)
            if stream:
                await raw.read_until(b"one ") if (await raw.head()).status == 200 else None
            left = leave(raw, "FIN")
        await exchange.peer_left()
        assert left.seconds < PROMISE
    await shared_pair.idle()


async def test_leaving_the_queue_gives_the_place_back(tmp_path: Path) -> None:
    async with FakeRuntime("slow", slots=1) as runtime, running_pair(runtime.url, state=tmp_path) as pair:
        turns = pair.node.services.turns
        running = await asking(pair, stream=True)
        await runtime.chat(0)
        leaving, staying = await asking(pair, stream=True), None
        try:
            await leaving.head()
            await leaving.read_until(b'"position":1')
            staying = await asking(pair, stream=True)
            await staying.head()
            await staying.read_until(b'"position":2')
            left = leave(leaving, "FIN")
            await wait_until(lambda: turns.queued == 1)
            assert left.seconds < PROMISE
            await staying.read_until(b'"position":1')
            leave(running, "FIN")
            await staying.read_until(b"[DONE]", 5)
            assert len(runtime.chats) == 2  # the one who left never reached the runtime
        finally:
            for raw in (running, leaving, staying):
                if raw is not None:
                    raw.close()
        await pair.idle()


async def test_leaving_while_the_body_is_on_its_way_is_no_error(shared_pair: Pair, shared_runtime: FakeRuntime) -> None:
    for path in (NATIVE, OPENAI, "/v1/token"):
        async with await RawClient.connect(shared_pair.url) as raw:
            headers = {"Content-Type": "application/json", "Content-Length": "100", **shared_pair.bearer()}
            await raw.request("POST", path, headers, b'{"messages": [')
            await asyncio.sleep(0.02)
    async with shared_pair.client.get(shared_pair.ops_url + "/metrics") as response:
        assert "internal_error" not in await response.text()
    assert all(line.get("outcome") != "internal_error" for line in shared_pair.audit)
    assert not shared_runtime.chats


@pytest.mark.parametrize("path", [NATIVE, OPENAI])
@pytest.mark.parametrize("script", ["stall_mid_stream", "progress_forever"])
async def test_the_owner_stops_a_stream(shared_pair: Pair, shared_runtime: FakeRuntime, path: str, script: str) -> None:
    """What was said stands, and the stream ends cleanly."""
    shared_runtime.script = script
    async with await asking(shared_pair, path, stream=True) as raw:
        chat_id = (await raw.head()).headers["hearthlink-chat-id"]
        exchange = await shared_runtime.chat(0)
        if script == "stall_mid_stream":
            await raw.read_until("søster ".encode())
        stopped = Stopwatch()
        assert await stop(shared_pair, chat_id) == 204
        await exchange.peer_left()
        assert stopped.seconds < PROMISE
        events = events_of(await raw.body())
        assert events[-1].data == "[DONE]"
        chunks = [json.loads(event.data) for event in events[:-1]]
        assert [c["choices"][0]["finish_reason"] for c in chunks if c["choices"]][-1] == "stop"
        assert await stop(shared_pair, chat_id) == 404  # it has ended
    await shared_pair.idle()
    assert [line["outcome"] for line in shared_pair.audit if line["route"] == path] == ["stopped"]


async def test_the_owner_stops_a_whole_answer(shared_pair: Pair, shared_runtime: FakeRuntime) -> None:
    shared_runtime.script = "stall_mid_stream"
    async with await asking(shared_pair) as raw:
        await shared_runtime.chat(0)
        await wait_until(lambda: len(shared_pair.edge.services.chats) == 1)
        chat_id = next(iter(shared_pair.edge.services.chats._running))  # its header comes with the answer only
        await asyncio.sleep(0.05)
        assert await stop(shared_pair, chat_id) == 204
        head = await raw.head()
        answer = await raw.json()
        assert (head.status, answer["choices"][0]["message"]["content"]) == (200, "one søster ")
        assert answer["choices"][0]["finish_reason"] == "stop"


async def test_the_owner_stops_a_waiting_chat(tmp_path: Path) -> None:
    async with (
        FakeRuntime("stall_mid_stream", slots=1) as runtime,
        running_pair(runtime.url, state=tmp_path) as pair,
        await asking(pair, stream=True),
        await asking(pair, stream=True) as waiting,
    ):
        chat_id = (await waiting.head()).headers["hearthlink-chat-id"]
        await waiting.read_until(b'"position":1')
        assert await stop(pair, chat_id) == 204
        assert (await waiting.body()).endswith(b"data: [DONE]\n\n")
        assert len(runtime.chats) == 1


@pytest.mark.case("B33")
async def test_somebody_elses_chat_looks_like_none(shared_pair: Pair, shared_runtime: FakeRuntime) -> None:
    other = await shared_pair.new_key("owner")
    shared_runtime.script = normal(10, 0.03)
    async with await asking(shared_pair, stream=True) as raw:
        chat_id = (await raw.head()).headers["hearthlink-chat-id"]
        await raw.read_until(b"one ")
        assert await stop(shared_pair, chat_id, other) == 404
        for unknown in ("A" * 22, "x", chat_id[:-1], "%2e%2e"):
            assert await stop(shared_pair, unknown) == 404
        assert (await raw.body()).endswith(b"data: [DONE]\n\n")
    assert shared_runtime.chats[0].outcome == "completed"


async def stop(pair: Pair, chat_id: str, key: str | None = None) -> int:
    async with pair.client.delete(f"{pair.url}{NATIVE}/{chat_id}", headers=pair.bearer(key)) as response:
        return response.status


@pytest.mark.case("B25")
async def test_a_revoked_key_ends_what_it_started(shared_pair: Pair, shared_runtime: FakeRuntime) -> None:
    shared_runtime.script = "stall_mid_stream"
    key = await shared_pair.new_key("owner")
    async with shared_pair.post(NATIVE, question(stream=True), key=key) as response:
        assert response.status == 200
        revoke_key(shared_pair.state, key)
        async with asyncio.timeout(3):  # seen within 1 s, acted on at the next tick
            last = events_of(await response.read())[-1]
    assert last.event == "error"
    assert json.loads(last.data)["error"]["code"] == "token_revoked"
    await (await shared_runtime.chat(0)).peer_left()
    await shared_pair.idle()


SCRIPTS: tuple[Script, ...] = (
    PRESETS["stall_before_headers"],
    PRESETS["progress_forever"],
    PRESETS["stall_mid_stream"],
    normal(3),
    normal(30, 0.001),
)
CANCELS, AT_ONCE = 2000, 24


async def test_2000_random_cancels_leave_nothing_behind(tmp_path: Path) -> None:
    """At random moments, by FIN, RST, DELETE or two of them at once, with more callers than slots."""
    dice = random.Random(20)
    left = CANCELS

    def script(exchange: Exchange) -> Script:
        return SCRIPTS[int(exchange.json["messages"][-1]["content"]) % len(SCRIPTS)]

    async def caller(pair: Pair) -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await cancelled(pair, left, dice)

    async with FakeRuntime(script, slots=16) as runtime, running_pair(runtime.url, state=tmp_path) as pair:
        tasks = len(asyncio.all_tasks())
        await asyncio.gather(*(caller(pair) for _ in range(AT_ONCE)))
        await pair.idle()
        await runtime.idle()
        # Connections that ended well serve again for 3 s; those that were cut are gone at once.
        assert runtime.open_connections <= 16 + 1
        await runtime.until(lambda: runtime.open_connections <= 1, 8)
        await wait_until(lambda: len(asyncio.all_tasks()) <= tasks + 2, what=asyncio.all_tasks)
        assert runtime.aborted > CANCELS / 10  # on a slow machine fewer have come so far before they are left
        spent = sum(line.get("prompt_tokens", 0) + line.get("completion_tokens", 0) for line in pair.audit)
        assert list(pair.ledger().used.values()) == [spent]
        assert not any(line.get("outcome") in ("internal_error", "failed") for line in pair.audit)
        runtime.script = "normal"
        async with pair.post(NATIVE, question()) as response:
            assert response.status == 200


async def cancelled(pair: Pair, number: int, dice: random.Random) -> None:
    """Ask one chat and end it: after some ticks, some milliseconds, the head, or the first bytes."""
    moment = dice.choice(("ticks", "time", "head", "content", "content"))
    raw = await asking(pair, text=str(number), stream=moment in ("head", "content") or dice.random() < 0.5)
    stopping: asyncio.Task[int] | None = None
    if moment == "ticks":
        for _ in range(dice.randrange(30)):
            await asyncio.sleep(0)
    elif moment == "time":
        await asyncio.sleep(dice.uniform(0, 0.05))
    else:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.2):
                chat_id = (await raw.head()).headers["hearthlink-chat-id"]
                if dice.random() < 0.5:
                    stopping = asyncio.create_task(stop(pair, chat_id))
                if moment == "content":
                    await raw.read_some()
    leave(raw, dice.choice(("FIN", "RST")))
    if stopping is not None:
        assert await stopping in (204, 404)
