"""A reader that does not read stops its own stream only; one that hears nothing is kept alive with comments."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from edge.store.opening import admin_from
from edge.store.records import Maintenance
from shared.asgi.protocol import DeadlineProtocol
from shared.state import StateDir
from tests.fake_runtime import Exchange, FakeRuntime
from tests.fake_scripts import DONE, Script, chunk, normal, role_chunk, stall_before_headers, stall_mid_stream, text
from tests.pair import Pair, events_of, question, revoke_key, running_pair
from tests.raw_http import RawClient
from tests.waiting import wait_until

pytestmark = pytest.mark.usefixtures("quick_ticks")

NATIVE = "/v1/chat"
OPENAI = "/v1/chat/completions"
HEARTBEAT = b":\n\n"
READERS = 49


def large_events(count: int = 400) -> Script:
    """32 KiB an event: what the sockets between hold is full long before a chat type's 512 tokens are."""

    async def script(exchange: Exchange) -> None:
        await exchange.start_stream()
        await exchange.send(role_chunk())
        for _ in range(count):
            await exchange.send(chunk({"content": "large " * 5461}))
        await exchange.send(chunk({}, "stop") + DONE)
        await exchange.end_stream()

    return script


def by_question(exchange: Exchange) -> Script:
    return large_events() if exchange.json["messages"][-1]["content"] == "large" else normal(25, 0.02)


def unsent() -> int:
    """Bytes that servers of this process hold for callers who do not read."""
    connections = [thing for thing in gc.get_objects() if isinstance(thing, DeadlineProtocol)]
    return sum(one.transport.get_write_buffer_size() for one in connections)


@asynccontextmanager
async def stalled_reader(pair: Pair) -> AsyncIterator[RawClient]:
    """Asks for a large answer and reads nothing."""
    async with await RawClient.connect(pair.url, receive_buffer=4096) as raw:
        await raw.post(NATIVE, question("large", stream=True), pair.bearer())
        yield raw


async def paused(runtime: FakeRuntime, index: int = 0) -> Exchange:
    """The exchange once its runtime has been made to wait: it wrote nothing for 0.3 s."""
    exchange = await runtime.chat(index)
    async with asyncio.timeout(10):
        before = -1
        while exchange.sent != before:
            before = exchange.sent
            await asyncio.sleep(0.3)
    return exchange


async def test_one_stalled_reader_among_fifty_delays_no_other(tmp_path: Path) -> None:
    async with FakeRuntime(by_question, slots=64) as runtime, running_pair(runtime.url, state=tmp_path) as pair:

        async def read() -> float:
            """Seconds of the longest silence, in a stream that is paced at one event in 20 ms."""
            async with pair.post(NATIVE, question("small", stream=True)) as response:
                longest, heard, stream = 0.0, time.monotonic(), b""
                while piece := await response.content.readany():
                    longest, heard = max(longest, time.monotonic() - heard), time.monotonic()
                    stream += piece
            contents = (json.loads(event.data)["choices"] for event in events_of(stream)[:-1])
            assert "".join(c[0]["delta"].get("content", "") for c in contents if c) == text(25)
            return longest

        async with stalled_reader(pair) as raw:
            exchange = await paused(runtime)
            silences = await asyncio.gather(*(read() for _ in range(READERS)))
            # All of them are through, and the one is where it was: not dropped, not read, its runtime not gone on.
            assert len(pair.edge.services.chats) == 1
            assert exchange.outcome == "running"
            assert max(silences) < 1.0
            # It goes on from there as soon as it reads, and nothing was lost meanwhile.
            await raw.head()
            answer = await raw.body(20)
        assert answer.endswith(DONE)
        assert answer.count(b"large ") == 400 * 5461
        await pair.idle()


async def test_a_stalled_reader_pauses_the_runtime(tmp_path: Path) -> None:
    async with FakeRuntime(large_events(), slots=8) as runtime, running_pair(runtime.url, state=tmp_path) as pair:
        async with stalled_reader(pair):
            exchange = await paused(runtime)
            assert 0 < unsent() < 1 << 20
            # 256 KiB of credit; the rest is what four sockets' buffers hold, which the kernel bounds.
            assert exchange.sent < 12 << 20
            session = next(iter(pair.node.link.sessions))
            assert session.streams == 1
        await exchange.peer_left()
        await pair.idle()


async def test_a_stalled_reader_is_dropped(tmp_path: Path) -> None:
    edge = {"slow_reader_timeout": 0.8}
    async with FakeRuntime(by_question) as runtime, running_pair(runtime.url, state=tmp_path, edge=edge) as pair:
        began = time.monotonic()
        async with stalled_reader(pair) as raw:
            exchange = await runtime.chat(0)
            await exchange.peer_left(8)
            assert time.monotonic() - began > 0.8
            await pair.idle()
            assert [line["outcome"] for line in pair.audit] == ["slow_consumer"]
            assert unsent() == 0
            # What had left before is all there is: no clean end.
            got = b""
            with contextlib.suppress(ConnectionError, EOFError):
                await raw.head()
                while piece := await raw.read_some():
                    got += piece
            assert b"[DONE]" not in got
        async with pair.post(NATIVE, question("small")) as response:
            assert response.status == 200


async def test_a_slow_reader_that_reads_is_not_dropped(tmp_path: Path) -> None:
    """Slower than the model, but alive: each write gets through in time."""
    edge = {"slow_reader_timeout": 2}
    async with FakeRuntime(large_events(60)) as runtime, running_pair(runtime.url, state=tmp_path, edge=edge) as pair:
        async with await RawClient.connect(pair.url, receive_buffer=65536) as raw:
            await raw.post(NATIVE, question(stream=True), pair.bearer())
            await raw.head()
            size, last = 0, b""
            async with asyncio.timeout(15):
                while piece := await raw.read_some():
                    size += len(piece)
                    last = piece
                    await asyncio.sleep(0.04 if size < 1_500_000 else 0)
        assert last.endswith(DONE)
        await pair.idle()
        assert [line["outcome"] for line in pair.audit] == ["stop"]
        assert runtime.chats[0].outcome == "completed"


async def test_a_caller_who_hears_nothing_gets_comments(tmp_path: Path) -> None:
    """On both surfaces, before the first token, in mid-stream and in the queue; not while the model speaks."""

    def script(exchange: Exchange) -> Script:
        said = {"mid-stream": stall_mid_stream(2), "before": stall_before_headers(), "speaks": normal(40, 0.1)}
        return said[exchange.json["messages"][-1]["content"]]

    async with (
        FakeRuntime(script, slots=5) as runtime,
        running_pair(runtime.url, state=tmp_path, edge={"heartbeat": 0.4}) as pair,
    ):

        async def silent(path: str, what: str) -> bytes:
            """The stream through its second comment."""
            async with await RawClient.connect(pair.url) as raw:
                await raw.post(path, question(what, stream=True, model="default"), pair.bearer())
                assert (await raw.head()).status == 200
                return await raw.read_until(HEARTBEAT, 5) + await raw.read_until(HEARTBEAT, 5)

        async def speaking() -> bytes:
            async with pair.post(NATIVE, question("speaks", stream=True)) as response:
                return await response.read()

        running = [
            asyncio.create_task(silent(path, what)) for path in (NATIVE, OPENAI) for what in ("mid-stream", "before")
        ]
        running.append(asyncio.create_task(speaking()))
        await runtime.until(lambda: len(runtime.chats) == 5)
        queued = await silent(NATIVE, "before")
        *silences, spoken = await asyncio.gather(*running)
        assert [event.event for event in events_of(queued)] == ["queued"]
        for stream in silences:
            assert all(json.loads(event.data)["choices"] for event in events_of(stream))  # a comment is no event
        assert HEARTBEAT not in spoken
        assert spoken.endswith(DONE)


@pytest.mark.case("B25")
@pytest.mark.parametrize("how", ["revoked", "maintenance", "deadline"])
async def test_what_must_end_ends_also_for_who_does_not_read(tmp_path: Path, how: str) -> None:
    """Within the same 5 s, and the line says why."""
    edge = {"request_timeout": 1} if how == "deadline" else {}
    async with FakeRuntime(large_events()) as runtime, running_pair(runtime.url, state=tmp_path, edge=edge) as pair:
        async with stalled_reader(pair):
            await runtime.chat(0)
            if how != "deadline":
                await paused(runtime)
            if how == "revoked":
                revoke_key(tmp_path, pair.key)
            elif how == "maintenance":
                async with admin_from(pair.edge.settings, StateDir(tmp_path)) as admin:
                    await admin.set_maintenance(Maintenance.begun(None, time.time(), ends_answers=True))
            await wait_until(lambda: not pair.edge.services.chats, 9 if how == "deadline" else 5)
            await wait_until(lambda: bool(pair.audit))
            codes = {"revoked": "token_revoked", "maintenance": "maintenance", "deadline": "upstream_stalled"}
            assert [line["outcome"] for line in pair.audit] == [codes[how]]
        await pair.idle()
