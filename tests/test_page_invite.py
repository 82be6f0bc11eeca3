"""The chat page of an edge by invitation, in Chromium: the field for the code, what is said of a wrong one, and a token
that is renewed without it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Locator, Response, expect

from edge.store.sqlite import invites
from edge.store.sqlite.database import open_for_admin
from edge.tokens import Tokens
from shared.state import StateDir
from tests.browser import Visitor, visiting
from tests.chat_page import ChatPage, pair_with_page
from tests.fake_runtime import FakeRuntime
from tests.fake_scripts import text
from tests.pair import Pair, from_elsewhere
from tests.waiting import HANGS

pytestmark = pytest.mark.asyncio(loop_scope="module")

WHOLE = text(5).strip()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pair]:
    """An edge that lets in nobody without an invite."""
    state = tmp_path_factory.mktemp("state")
    closed = {"anonymous": False, "invites": True}
    async with FakeRuntime() as runtime, pair_with_page(runtime.url, state=state, edge=closed) as pair:
        yield pair


def new_invite(state: Path, uses: int = 1) -> str:
    connection = open_for_admin(StateDir(state).database)
    try:
        return invites.create(connection, "member", uses, int(time.time()) + 3600, None)[1]
    finally:
        connection.close()


def field(page: ChatPage) -> Locator:
    return page.tab.get_by_role("textbox", name="Invite code")


async def at_the_door(visitor: Visitor, pair: Pair) -> ChatPage:
    visitor.expects("status of 401")
    page = await ChatPage.open(visitor, pair, "invite")
    await expect(field(page)).to_be_focused()
    return page


async def enter(page: ChatPage, code: str) -> None:
    await field(page).fill(code)
    await field(page).press("Enter")


async def test_an_invite_lets_in(pair: Pair, guest: Visitor) -> None:
    page = await at_the_door(guest, pair)
    await enter(page, new_invite(pair.state))
    await page.is_("ready")
    await expect(field(page)).to_be_hidden()
    await page.ask()
    assert await page.answered() == WHOLE
    await expect(page.tab.locator("#quota")).to_contain_text("199,988 tokens left today")


async def test_a_wrong_code_says_so_and_the_next_may_be_right(pair: Pair, guest: Visitor) -> None:
    page = await at_the_door(guest, pair)
    await enter(page, "hli_nonsense")
    await expect(page.tab.get_by_role("alert")).to_contain_text("This code does not work")
    await expect(field(page)).to_be_focused()
    await page.is_("invite")
    await enter(page, new_invite(pair.state))
    await page.is_("ready")


async def test_a_code_that_is_used_up_lets_in_nobody_else(pair: Pair, guest: Visitor, chromium: Browser) -> None:
    code = new_invite(pair.state)
    page = await at_the_door(guest, pair)
    await enter(page, code)
    await page.is_("ready")
    async with visiting(chromium, extra_http_headers=from_elsewhere()) as other:
        page = await at_the_door(other, pair)
        await enter(page, code)
        await expect(page.tab.get_by_role("alert")).to_contain_text("This code does not work")


async def test_a_reload_asks_for_the_code_again_which_costs_nothing(pair: Pair, guest: Visitor) -> None:
    code = new_invite(pair.state)
    page = await at_the_door(guest, pair)
    for _ in range(2):
        await enter(page, code)
        await page.is_("ready")
        await page.tab.reload()
        await page.is_("invite")


async def test_guessing_is_slowed_down(pair: Pair, guest: Visitor) -> None:
    page = await at_the_door(guest, pair)
    guest.expects("status of 429")
    for _ in range(6):
        answered = len(guest.asked("/v1/token"))
        await enter(page, "hli_guess")
        async with asyncio.timeout(HANGS):
            while len(guest.asked("/v1/token")) == answered:  # noqa: ASYNC110 - the page has no event for it
                await asyncio.sleep(0.01)
        await expect(page.tab.get_by_role("alert")).not_to_be_empty()
        await expect(field(page)).to_be_focused()
    await expect(page.tab.get_by_role("alert")).to_contain_text("Too many tries")


async def test_a_token_of_an_invite_is_renewed_without_it(pair: Pair, guest: Visitor) -> None:
    await guest.context.clock.install()
    page = await at_the_door(guest, pair)
    await enter(page, new_invite(pair.state))
    await page.is_("ready")
    for asked in (1, 2):
        await page.tab.clock.fast_forward("09:00")  # of the ten minutes that a token lives
        async with page.tab.expect_response(is_a_token) as renewed:
            await page.ask()
        assert "authorization" in await (await renewed.value).request.all_headers()
        assert await page.answered(asked) == WHOLE
    await page.is_("ready")


def is_a_token(response: Response) -> bool:
    return response.url.endswith("/v1/token") and response.ok


async def test_who_was_away_for_too_long_enters_the_code_and_goes_on(pair: Pair, guest: Visitor) -> None:
    code = new_invite(pair.state)
    page = await at_the_door(guest, pair)
    await enter(page, code)
    await page.is_("ready")
    await page.ask("One?")
    await page.answered(1)
    pair.edge.services.tokens, usual = Tokens(["another key"], 600), pair.edge.services.tokens
    try:  # no token of before is good any more
        await page.ask("Two?")
        await page.is_("invite")
        await enter(page, code)
        await page.is_("ready")
        await page.press("Retry")
        assert await page.answered(2) == WHOLE
        assert await page.questions.locator("p").all_inner_texts() == ["One?", "Two?"]
    finally:
        pair.edge.services.tokens = usual
