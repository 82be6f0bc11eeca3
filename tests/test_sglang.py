"""SGLang: how much it takes, and answers that are left early."""

from __future__ import annotations

import asyncio

import pytest

from node.runtimes.server import ServerRuntime
from shared.contract.errors import ApiError
from tests.fake_runtime import Exchange
from tests.fake_scripts import text
from tests.fake_sglang import FakeSGLang
from tests.runtime_support import REQUEST, ask, is_ready, read_all, running, said


async def test_its_schedulers_say_how_much_runs_at_once() -> None:
    async with FakeSGLang(at_once=24, sees=True) as sglang, running(runtime := ServerRuntime(sglang.url)) as until:
        status = await until(is_ready)
        assert (runtime.kind, status.slots) == ("SGLang", 48)
        assert (status.models[0].context, status.models[0].vision) == (100, True)
        sglang.running, sglang.queued = 20, 3
        for _ in range(2):
            await runtime.look()
        assert runtime.status().slots == 20


async def test_while_its_memory_is_full_it_is_given_no_more() -> None:
    async with FakeSGLang() as sglang, running(runtime := ServerRuntime(sglang.url)) as until:
        assert (await until(is_ready)).slots == 4
        sglang.running, sglang.memory = 4, 0.95
        await runtime.look()
        assert runtime.status().slots == 4
        sglang.memory = 0.5
        await runtime.look()
        assert runtime.status().slots == 5


async def test_a_prompt_of_more_tokens_than_estimated_is_asked_once_more() -> None:
    """Prompt and longest answer together beyond the context are a 400 (runtimes §0.3)."""

    def by_length(exchange: Exchange) -> str:
        return "sglang_context" if exchange.json["max_tokens"] > 40 else "normal"

    async with FakeSGLang(by_length) as sglang, running(runtime := ServerRuntime(sglang.url)) as until:
        await until(is_ready)
        assert said(await read_all(runtime, ask("m", "7" * 60))) == text(5)
        assert [exchange.json["max_tokens"] for exchange in sglang.chats] == [64, 100 - 60 - 8]
        assert not sglang.aborted_ids


async def test_what_it_does_not_tell() -> None:
    async with FakeSGLang() as sglang, running(ServerRuntime(sglang.url)) as until:
        status = await until(is_ready)
        assert (status.slots, status.models[0].vision) == (4, False)


async def test_an_answer_that_is_read_to_its_end_is_not_aborted() -> None:
    async with FakeSGLang() as sglang, running(runtime := ServerRuntime(sglang.url)) as until:
        await until(is_ready)
        assert said(await read_all(runtime, ask("m", repeat_penalty=1.1))) == text(5)
        assert sglang.chats[0].json["repetition_penalty"] == 1.1
        assert sglang.chats[0].json["rid"] == sglang.chats[0].headers["x-request-id"]
        assert not sglang.aborted_ids


async def test_one_that_is_left_early_is_aborted_by_its_id() -> None:
    """The end of its connection is noticed after 2 s, or never (runtimes §5)."""
    async with FakeSGLang("stall_mid_stream") as sglang, running(runtime := ServerRuntime(sglang.url)) as until:
        await until(is_ready)
        async with runtime.stream(ask("m"), REQUEST) as stream:
            await stream.read()
        assert sglang.aborted_ids == [sglang.chats[0].json["rid"]]


async def test_a_full_queue_is_told_as_such() -> None:
    async with FakeSGLang("sglang_busy") as sglang, running(runtime := ServerRuntime(sglang.url)) as until:
        await until(is_ready)
        with pytest.raises(ApiError) as refused:
            await read_all(runtime, ask("m"))
        assert refused.value.code == "overloaded" and not sglang.aborted_ids


async def test_one_that_is_left_before_its_head_is_aborted_too() -> None:
    async with FakeSGLang("stall_before_headers") as sglang, running(runtime := ServerRuntime(sglang.url)) as until:
        await until(is_ready)
        asked = asyncio.create_task(read_all(runtime, ask("m")))
        exchange = await sglang.chat(0)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        assert sglang.aborted_ids == [exchange.json["rid"]]
