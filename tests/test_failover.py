"""A node that is lost before its answer begins costs the caller nothing but time: the next one is asked, silently."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from node.app import Node, run_node
from shared.state import StateDir
from tests.fake_runtime import FakeRuntime
from tests.pair import Pair, node_settings, question, running_pair
from tests.tcp_proxy import TcpProxy
from tests.waiting import HANGS, wait_until


@dataclass(slots=True)
class Two:
    """``first`` is asked first, through ``proxy``; it begins no answer. ``second`` answers at once."""

    pair: Pair
    first: FakeRuntime
    second: FakeRuntime
    proxy: TcpProxy
    other: Node


@asynccontextmanager
async def two_nodes(
    tmp_path: Path, models: tuple[str, str] = ("fake-model", "fake-model"), plans: Mapping[str, Any] | None = None
) -> AsyncIterator[Two]:
    states = [tmp_path / "pair", tmp_path / "other"]
    async with (
        FakeRuntime("stall_before_headers", models=[models[0]]) as first,
        FakeRuntime(models=[models[1]]) as second,
        TcpProxy() as proxy,
        run_node(node_settings(states[1], second.url)) as other,
    ):
        token = StateDir(states[1]).node_token()
        upstreams = {
            "default": {"url": proxy.url},
            "other": {"url": f"ws://127.0.0.1:{other.listener.port}/link", "token": token, "priority": 1, "links": 2},
        }
        edge = {"upstreams": upstreams}
        async with running_pair(first.url, state=states[0], edge=edge, plans=plans, wait=False) as pair:
            proxy.target = pair.node.listener.port
            nodes = pair.edge.services.upstreams
            await wait_until(lambda: all(one.ready for one in nodes.all), 10)
            yield Two(pair, first, second, proxy, other)


async def stop(two: Two, chat_id: str) -> int:
    async with two.pair.client.delete(f"{two.pair.url}/v1/chat/{chat_id}", headers=two.pair.bearer()) as response:
        return response.status


async def answered(two: Two, stream: bool) -> tuple[int, str]:
    async with two.pair.post("/v1/chat", question(stream=stream)) as response:
        return response.status, await response.text()


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_a_node_that_is_cut_off_before_it_answers_is_replaced(tmp_path: Path, stream: bool) -> None:
    async with two_nodes(tmp_path) as two:
        asked = asyncio.create_task(answered(two, stream))
        await two.first.chat(0)
        two.proxy.target = None
        two.proxy.cut()
        status, text = await asked
        assert status == 200, text
        assert ("[DONE]" in text) == stream
        await wait_until(lambda: bool(two.pair.audit))
        (line,) = [line for line in two.pair.audit if line["route"] == "/v1/chat"]
        assert (line["node"], line["outcome"]) == ("other", "stop")
        assert len(two.second.chats) == 1
        await two.pair.idle()
        assert sum(two.pair.ledger().used.values()) == line["prompt_tokens"] + line["completion_tokens"] > 0


async def test_when_both_are_cut_off_each_was_asked_once(tmp_path: Path) -> None:
    async with two_nodes(tmp_path) as two:
        two.second.script = "stall_before_headers"
        asked = asyncio.create_task(answered(two, stream=False))
        await two.first.chat(0)
        two.proxy.cut()
        await two.second.chat(0)
        upstreams = two.pair.edge.services.upstreams
        await wait_until(lambda: all(one.ready for one in upstreams.all), what=lambda: upstreams.all[0].reason)
        (asking,) = [session for session in two.other.link.sessions if session.streams]
        asking.close()  # there is another link to that node
        status, text = await asyncio.wait_for(asked, HANGS)
        assert (status, "node_unavailable" in text) == (503, True)
        assert (len(two.first.chats), len(two.second.chats)) == (1, 1)


async def test_a_model_that_the_plan_lacks_is_not_reached_that_way(tmp_path: Path) -> None:
    """Without a model named each node answers with its own default."""
    plans = {"narrow": {"models": ["small"], "streams": 3}}
    async with two_nodes(tmp_path, ("small", "big"), plans) as two:
        key = await two.pair.new_key("narrow")

        async def ask() -> tuple[int, str]:
            async with two.pair.post("/v1/chat/completions", question(), key=key) as response:
                return response.status, await response.text()

        asked = asyncio.create_task(ask())
        await two.first.chat(0)
        two.proxy.target = None
        two.proxy.cut()
        status, text = await asked
        assert (status, "node_unavailable" in text) == (503, True)
        assert not two.second.chats


async def test_a_chat_is_stopped_whose_node_has_fallen_silent(tmp_path: Path) -> None:
    async with two_nodes(tmp_path) as two:
        two.second.script = "stall_before_headers"
        asked = asyncio.create_task(answered(two, stream=False))
        await two.first.chat(0)
        (chat_id,) = two.pair.edge.services.chats._running
        two.proxy.target = None
        two.proxy.lose()
        assert await stop(two, chat_id) == 204
        status, text = await asked
        assert (status, "was stopped" in text) == (503, True)
        assert not two.second.chats


@pytest.mark.parametrize("answer", [None, False], ids=["lost", "refused"])
async def test_a_chat_is_stopped_that_moves_to_another_node_meanwhile(tmp_path: Path, answer: bool | None) -> None:
    """Whatever the first node says of it, or does not say."""
    async with two_nodes(tmp_path) as two:
        two.second.script = "stall_before_headers"
        asked = asyncio.create_task(answered(two, stream=False))
        await two.first.chat(0)
        (chat,) = two.pair.edge.services.chats._running.values()
        first, told = chat.session, asyncio.Event()

        async def say_when_it_has_moved(chat_id: str, principal: str) -> bool | None:
            told.set()
            await wait_until(lambda: chat.session is not first)
            return answer

        first.stop = say_when_it_has_moved
        stopping = asyncio.create_task(stop(two, chat.id))
        await told.wait()
        two.proxy.target = None
        two.proxy.cut()
        exchange: Any = await two.second.chat(0)
        assert await stopping == 204
        assert "was stopped" in (await asked)[1]
        await exchange.peer_left()
        await two.pair.idle()


async def test_a_node_that_falls_silent_is_not_waited_for_while_another_one_answers(tmp_path: Path) -> None:
    """Half open: nothing comes and nobody is told. The promise is 10 s; the link itself is given up after 12."""
    async with two_nodes(tmp_path) as two:
        asked = asyncio.create_task(answered(two, stream=False))
        await two.first.chat(0)
        began = time.monotonic()
        two.proxy.target = None
        two.proxy.lose()
        status, text = await asked
        assert status == 200, text
        assert time.monotonic() - began < 10
        assert len(two.second.chats) == 1


async def test_a_lone_node_that_falls_silent_is_waited_for(tmp_path: Path) -> None:
    """It may come back, and has the answer half made: with nobody else to ask, nothing is thrown away."""
    async with two_nodes(tmp_path) as two:
        upstreams = two.pair.edge.services.upstreams
        two.other.services.draining = True
        await two.other.drain()
        await wait_until(lambda: sum(one.ready for one in upstreams.all) == 1)
        asked = asyncio.create_task(answered(two, stream=False))
        await two.first.chat(0)
        (running,) = two.pair.edge.services.chats._running.values()
        two.proxy.hold()
        await wait_until(lambda: running.session.suspect, 15)
        await asyncio.sleep(1.5)  # the clock has looked at it
        two.proxy.release()
        assert not running.reply.closed
        await wait_until(lambda: not running.session.suspect)
        asked.cancel()
        await two.pair.idle()


async def test_an_answer_that_has_begun_is_not_asked_for_twice(tmp_path: Path) -> None:
    async with two_nodes(tmp_path) as two:
        two.first.script = "slow"
        async with two.pair.post("/v1/chat", question(stream=True)) as response:
            assert await response.content.readany()
            two.proxy.target = None
            two.proxy.cut()
            rest = await response.text()
        assert "upstream_incomplete" in rest
        assert not two.second.chats


async def test_a_caller_who_leaves_after_that_stops_the_node_that_took_over(tmp_path: Path) -> None:
    async with two_nodes(tmp_path) as two:
        two.second.script = "stall_before_headers"
        asked = asyncio.create_task(answered(two, stream=False))
        await two.first.chat(0)
        two.proxy.target = None
        two.proxy.cut()
        exchange: Any = await two.second.chat(0)
        asked.cancel()
        await exchange.peer_left()
        await two.pair.idle()


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_an_owner_who_takes_the_gpu_back_costs_no_request_that_has_not_begun(
    tmp_path: Path, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.api.answer.COMMIT_WITHIN", HANGS)
    async with two_nodes(tmp_path) as two:
        asked = asyncio.create_task(answered(two, stream))
        await two.first.chat(0)
        key = await two.pair.new_key(scopes=("admin",))
        async with two.pair.post("/admin/models/yield?node=default", {}, key=key) as response:
            assert response.status == 200, await response.text()
        status, text = await asked
        assert status == 200, text
        assert len(two.second.chats) == 1
        await two.pair.idle()
