"""The chat page when things go wrong, in Chromium against a live pair: limits, queues, tokens that end, machines that
are away. What is wrong is said in words, and the page mends itself when it can."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Route, expect

from edge.store.records import Maintenance
from tests.browser import Visitor
from tests.chat_page import ChatPage, pair_with_page
from tests.fake_runtime import FakeRuntime
from tests.fake_scripts import eof_without_done, normal, refuse, stall_mid_stream, text
from tests.local_app import free_port
from tests.pair import Pair
from tests.processes import Process, Processes, running_processes
from tests.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

WHOLE = text(5).strip()


@asynccontextmanager
async def site(runtime: FakeRuntime, state: Path, **more: Any) -> AsyncIterator[Pair]:
    async with runtime, pair_with_page(runtime.url, state=state, **more) as pair:
        yield pair


# -- closed ------------------------------------------------------------------------------------------------------------


async def test_the_owners_message_is_shown_while_the_edge_is_closed(visitor: Visitor, tmp_path: Path) -> None:
    """To who opens the page then, and to who had it open; nobody has to load it again afterwards."""
    async with site(FakeRuntime(), tmp_path) as pair:
        store, early = pair.edge.services.store, await ChatPage.open(visitor, pair)
        async with pair.edge.services.admin() as admin:
            await admin.set_maintenance(Maintenance("Back at 15:00 UTC.", 0))
            await wait_until(lambda: store.records.maintenance)
            visitor.expects("status of 503")
            await early.ask()
            await expect(early.problem).to_contain_text("Back at 15:00 UTC.")
            await expect(early.problem).to_have_attribute("data-code", "maintenance")
            late = await ChatPage.open(visitor, pair, "closed")
            await expect(late.status).to_contain_text("Closed for a while, looking again")
            await expect(late.tab.locator("#refusal")).to_have_text("Closed for a while. Back at 15:00 UTC.")
            await admin.set_maintenance(None)
            await wait_until(lambda: store.records.maintenance is None)
        await late.is_("ready")
        await expect(late.tab.locator("#refusal")).to_be_empty()
        for page in (early, late):
            await page.ask()
            await expect(page.text).to_have_text(WHOLE)


# -- limits -----------------------------------------------------------------------------------------------------------


async def test_429_is_shown_with_a_countdown(visitor: Visitor, tmp_path: Path) -> None:
    plans = {"anonymous": {"requests_per_minute": 4}}
    async with site(FakeRuntime(), tmp_path, plans=plans) as pair:
        page = await ChatPage.open(visitor, pair)  # takes three of the four
        await page.ask()
        await page.answered(1)
        visitor.expects("status of 429")
        await page.ask()
        await page.is_("limited")
        await expect(page.problem).to_be_visible()
        await expect(page.problem).to_have_attribute("data-code", "rate_limited")
        refused = [line for line in pair.audit if line["route"] == "/v1/chat"][-1]
        await expect(page.problem.locator(".request-id")).to_have_text(refused["request_id"])
        left = int(re.findall(r"again in (\d+) s", await page.status.inner_text())[0])
        assert 5 < left <= 15
        await expect(page.status).to_contain_text(f"again in {left - 1} s")


async def test_a_short_limit_is_waited_for(visitor: Visitor, tmp_path: Path) -> None:
    plans = {"anonymous": {"streams": 1}}
    async with site(FakeRuntime(normal(10, 0.05)), tmp_path, plans=plans) as pair:
        tabs = [await ChatPage.open(visitor, pair) for _ in range(2)]
        await tabs[0].ask()
        await tabs[0].is_("generating")
        visitor.expects("status of 429")
        await tabs[1].ask()
        await tabs[1].is_("limited")
        assert await tabs[1].answered(seconds=15) == text(10).strip()
        await tabs[1].is_("ready")


async def test_the_end_of_a_days_share(visitor: Visitor, tmp_path: Path) -> None:
    plans = {"anonymous": {"tokens_per_day": 100}}
    async with site(FakeRuntime(), tmp_path, plans=plans) as pair:
        page = await ChatPage.open(visitor, pair)
        await expect(page.tab.locator("#quota")).to_contain_text("100 tokens left today")
        visitor.expects("status of 429")
        await page.ask()
        await page.is_("limited")
        await expect(page.problem).to_have_attribute("data-code", "quota_exceeded")
        await expect(page.status).to_contain_text("Limited: again in")
        assert len([line for line in pair.audit if line["route"] == "/v1/chat"]) == 1


async def test_a_place_in_the_queue_is_shown_and_can_be_given_up(visitor: Visitor, tmp_path: Path) -> None:
    async with site(FakeRuntime(stall_mid_stream(1), slots=1), tmp_path, node={"slots": 1}) as pair:
        tabs = [await ChatPage.open(visitor, pair) for _ in range(2)]
        await tabs[0].ask()
        await tabs[0].is_("generating")
        await tabs[1].ask()
        await tabs[1].is_("queued")
        await expect(tabs[1].status).to_contain_text("place 1")
        await tabs[1].stop()
        await tabs[1].is_("ready")
        await wait_until(lambda: pair.open_work()["places in the queue"] == 0)
        await tabs[1].ask()
        await tabs[1].is_("queued")
        await tabs[0].stop()
        await tabs[1].is_("generating")
        await tabs[1].stop()
        await pair.idle()


# -- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "code", "kept"),
    [
        (eof_without_done(), "upstream_incomplete", text(2)),
        ("error_data", "runtime_error", text(2)),
        ("html", "upstream_invalid", ""),
        ("llamacpp_context", "context_length_exceeded", ""),
    ],
)
async def test_an_error_is_said_in_words(visitor: Visitor, tmp_path: Path, script: Any, code: str, kept: str) -> None:
    async with site(FakeRuntime(script), tmp_path) as pair:
        page = await ChatPage.open(visitor, pair)
        if not kept:
            visitor.expects("status of [45]")
        await page.ask()
        await expect(page.problem).to_be_visible(timeout=15_000)  # three tries
        await expect(page.problem).to_have_attribute("data-code", code)
        await expect(page.text).to_have_text(kept.strip())
        request_id = await page.problem.locator(".request-id").inner_text()
        assert request_id in {line["request_id"] for line in pair.audit}


async def test_an_answer_that_broke_off_is_asked_for_again(visitor: Visitor, tmp_path: Path) -> None:
    async with site(FakeRuntime([eof_without_done(), "normal"]), tmp_path) as pair:
        page = await ChatPage.open(visitor, pair)
        await page.ask()
        await expect(page.problem).to_be_visible()
        await page.press("Retry")
        assert await page.answered() == WHOLE
        await expect(page.problem).to_be_hidden()
        assert await page.questions.count() == 1


async def test_a_conversation_that_is_too_long_begins_anew(visitor: Visitor, tmp_path: Path) -> None:
    async with site(FakeRuntime(["llamacpp_context", "normal"]), tmp_path) as pair:
        page = await ChatPage.open(visitor, pair)
        visitor.expects("status of 400")
        await page.ask()
        await page.problem.get_by_role("button", name="New chat").click()
        await expect(page.message).to_be_focused()
        await page.ask()
        assert await page.answered() == WHOLE


# -- tokens -----------------------------------------------------------------------------------------------------------


async def test_a_token_that_ends_is_renewed_unnoticed(visitor: Visitor, tmp_path: Path) -> None:
    async with site(FakeRuntime(), tmp_path) as pair:
        pair.edge.services.tokens._lifetime = 5  # seconds; on a slow machine a question takes its time as well
        tabs = [await ChatPage.open(visitor, pair) for _ in range(2)]
        for renewals in range(2):
            await asyncio.sleep(5 * renewals)
            await asyncio.gather(*(tab.ask() for tab in tabs))
            assert [await tab.answered(1 + renewals) for tab in tabs] == [WHOLE, WHOLE]
            assert len(visitor.asked("/v1/token")) == 1 + renewals  # for both tabs
        assert {line["status"] for line in pair.audit} == {200}


async def test_a_token_that_ends_early_is_renewed_unnoticed(visitor: Visitor, tmp_path: Path) -> None:
    async def as_if_an_hour(route: Route) -> None:
        answer = await route.fetch()
        await route.fulfill(response=answer, json={**await answer.json(), "expires_in": 3600})

    async with site(FakeRuntime(), tmp_path) as pair:
        await visitor.context.route("**/v1/token", as_if_an_hour)  # as for a laptop that slept meanwhile
        pair.edge.services.tokens._lifetime = 1
        page = await ChatPage.open(visitor, pair)
        await page.ask()
        await page.answered()
        visitor.expects("status of 401")
        await asyncio.sleep(1)
        await page.ask()
        assert await page.answered(2) == WHOLE
        assert "token_expired" in {line.get("outcome") for line in pair.audit}


# -- machines that are away -------------------------------------------------------------------------------------------


@asynccontextmanager
async def processes(runtime: FakeRuntime, state: Path) -> AsyncIterator[Processes]:
    """A pair of processes with ports that a restart keeps."""
    edge = f"127.0.0.1:{free_port()}"
    environ = {
        "HEARTHLINK_EDGE__LISTEN": edge,
        "HEARTHLINK_EDGE__ALLOWED_ORIGINS": f"http://{edge}",
        "HEARTHLINK_NODE__LISTEN": f"127.0.0.1:{free_port()}",
    }
    async with runtime, running_processes(runtime.url, state, environ=environ) as pair:
        yield pair


async def test_an_edge_that_restarts_in_the_middle(visitor: Visitor, tmp_path: Path) -> None:
    async with processes(FakeRuntime([stall_mid_stream(2), "normal"]), tmp_path) as pair:
        page = await ChatPage.open(visitor, pair)
        await page.ask()
        await expect(page.text).to_contain_text(text(2).strip())
        visitor.expects("net::ERR_")
        await pair.edge.kill()
        await expect(page.problem).to_be_visible()
        await expect(page.text).to_have_text(text(2).strip())  # what came is kept
        await page.is_("offline")
        await pair.restart_edge()
        await page.is_("ready")
        await page.press("Retry")
        assert await page.answered() == WHOLE


async def test_a_node_that_is_away(visitor: Visitor, tmp_path: Path) -> None:
    async with processes(FakeRuntime(), tmp_path) as pair:
        page = await ChatPage.open(visitor, pair)
        visitor.expects("status of 503")
        await pair.node.kill()
        await page.tab.evaluate("document.dispatchEvent(new Event('visibilitychange', { bubbles: true }))")  # came back
        await page.is_("asleep")
        await expect(page.status).to_contain_text("asleep")
        await page.ask()
        await page.is_("reconnecting")
        await expect(page.status).to_contain_text("trying again in")
        pair.node = await Process.start("node", pair.environ, tmp_path / "node.log")
        assert await page.answered() == WHOLE  # nobody had to do anything
        await page.is_("ready")
        await pair.node.kill()


async def test_who_asks_for_a_minute_is_not_asked_again_at_once(visitor: Visitor, tmp_path: Path) -> None:
    busy = refuse(503, {"error": {"message": "busy"}}, [("Retry-After", "60")])
    async with site(runtime := FakeRuntime(busy), tmp_path) as pair:
        page = await ChatPage.open(visitor, pair)
        visitor.expects("status of 503")
        await page.ask()
        await expect(page.problem).to_have_attribute("data-code", "overloaded")
        await expect(page.button("Retry")).to_be_visible()
        assert len(runtime.chats) == 1


async def test_a_device_without_a_network(visitor: Visitor, tmp_path: Path) -> None:
    async with site(FakeRuntime(), tmp_path) as pair:
        page = await ChatPage.open(visitor, pair)
        visitor.tolerates("ERR_INTERNET_DISCONNECTED")
        await visitor.context.set_offline(True)
        await page.is_("offline")
        await visitor.context.set_offline(False)
        await page.is_("ready")
        await page.ask()
        assert await page.answered() == WHOLE
