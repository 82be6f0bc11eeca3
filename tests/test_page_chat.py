"""Talking on the chat page, in Chromium against a live pair: words as they come, stopping, asking again, and what stays
in the browser."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from itertools import pairwise

import pytest
import pytest_asyncio
from playwright.async_api import expect

from tests.browser import Visitor
from tests.chat_page import ChatPage, pair_with_page
from tests.fake_runtime import FakeRuntime
from tests.fake_scripts import normal, stall_mid_stream, text, words
from tests.pair import Pair

pytestmark = pytest.mark.asyncio(loop_scope="module")

WHOLE = text(5).strip()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def module_site(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Pair, FakeRuntime]]:
    async with FakeRuntime() as runtime, pair_with_page(runtime.url, state=tmp_path_factory.mktemp("state")) as pair:
        yield pair, runtime


@pytest.fixture
def runtime(module_site: tuple[Pair, FakeRuntime]) -> FakeRuntime:
    runtime = module_site[1]
    runtime.script = normal()
    runtime.chats.clear()
    return runtime


@pytest_asyncio.fixture(loop_scope="module")
async def page(module_site: tuple[Pair, FakeRuntime], runtime: FakeRuntime, guest: Visitor) -> ChatPage:
    return await ChatPage.open(guest, module_site[0])


@pytest.fixture
def pair(module_site: tuple[Pair, FakeRuntime]) -> Pair:
    return module_site[0]


async def test_an_answer_is_seen_word_by_word(page: ChatPage, runtime: FakeRuntime) -> None:
    runtime.script = normal(20, 0.05)
    await page.ask()
    await page.is_("generating")
    steps = await page.steps()
    assert await page.answered() == text(20).strip()
    assert len(steps) >= 8
    assert all(later.startswith(earlier) for earlier, later in pairwise(steps))
    await page.is_("ready")


@pytest.mark.parametrize("how", ["button", "Escape"])
async def test_stop_frees_the_slot(page: ChatPage, runtime: FakeRuntime, pair: Pair, guest: Visitor, how: str) -> None:
    runtime.script = stall_mid_stream(2)
    await page.ask()
    await expect(page.text).to_contain_text(words(2)[1].strip())
    assert pair.open_work()["slots taken"] == 1
    await page.stop(how)
    await (await runtime.chat(0)).peer_left(1)
    await pair.idle()
    await expect(page.answers.last).to_have_attribute("data-state", "stopped")
    await expect(page.text).to_have_text(text(2).strip())
    await page.is_("ready")
    await expect(page.problem).to_be_hidden()


async def test_stop_before_the_first_word(page: ChatPage, runtime: FakeRuntime, pair: Pair, guest: Visitor) -> None:
    runtime.script = "stall_before_headers"
    await page.ask()
    await runtime.chat(0)
    await page.stop()
    await (await runtime.chat(0)).peer_left(1)
    await pair.idle()
    await page.is_("ready")


async def test_a_conversation_remembers(page: ChatPage, runtime: FakeRuntime) -> None:
    await page.ask("One?")
    await page.answered(1)
    await page.ask("Two?")
    await page.answered(2)
    said = [(message["role"], message["content"]) for message in runtime.chats[1].json["messages"]]
    assert said[-3:] == [("user", "One?"), ("assistant", text(5)), ("user", "Two?")]


async def test_regenerate(page: ChatPage, runtime: FakeRuntime) -> None:
    await page.ask("One?")
    await page.answered()
    runtime.script = normal(3)
    await page.press("Regenerate")
    await expect(page.text).to_have_text(text(3).strip())
    assert await page.questions.count() == await page.answers.count() == 1
    assert runtime.chats[1].json["messages"] == runtime.chats[0].json["messages"]


async def test_edit_the_last_question(page: ChatPage, runtime: FakeRuntime) -> None:
    await page.ask("One?")
    await page.answered(1)
    await page.ask("Tow?")
    await page.answered(2)
    await page.press("Edit")
    await expect(page.message).to_be_focused()
    await expect(page.message).to_have_value("Tow?")
    await page.ask("Two?")
    await page.answered(2)
    said = [message["content"] for message in runtime.chats[2].json["messages"] if message["role"] == "user"]
    assert said[-2:] == ["One?", "Two?"]


async def test_copy(page: ChatPage, guest: Visitor) -> None:
    await guest.context.grant_permissions(["clipboard-read", "clipboard-write"])
    await page.ask("One?")
    await page.answered()
    await page.press("Copy")
    assert await page.tab.evaluate("navigator.clipboard.readText()") == text(5)


async def test_a_new_chat_forgets(page: ChatPage, runtime: FakeRuntime) -> None:
    await page.ask("One?")
    await page.answered()
    await page.press("New chat")
    assert await page.answers.count() == await page.questions.count() == 0
    await page.ask("Two?")
    await page.answered()
    contents = [message["content"] for message in runtime.chats[1].json["messages"]]
    assert "One?" not in contents and contents[-1] == "Two?"


async def test_a_new_chat_stops_the_old_one(page: ChatPage, runtime: FakeRuntime, pair: Pair) -> None:
    runtime.script = stall_mid_stream(2)
    await page.ask()
    await expect(page.text).to_contain_text(words(1)[0].strip())
    await page.press("New chat")
    await (await runtime.chat(0)).peer_left(1)
    await pair.idle()
    assert await page.answers.count() == 0


async def test_closing_the_tab_frees_the_slot(page: ChatPage, runtime: FakeRuntime, pair: Pair) -> None:
    runtime.script = stall_mid_stream(2)
    await page.ask()
    await expect(page.text).to_contain_text(words(1)[0].strip())
    await page.tab.close()
    await (await runtime.chat(0)).peer_left(1)
    await pair.idle()


async def test_the_kind_of_chat_is_chosen_and_remembered(page: ChatPage, runtime: FakeRuntime, pair: Pair) -> None:
    await page.ask()
    await page.answered()
    await page.press("New chat")
    await page.choose("What to order")
    await page.ask()
    await page.answered()
    prompts = [chat.json["messages"][0]["content"] for chat in runtime.chats]
    assert prompts[0] != prompts[1]
    await page.tab.reload()
    await page.is_("ready")
    await expect(page.choice("What to order")).to_be_checked()


async def test_the_theme_is_chosen_and_remembered(page: ChatPage) -> None:
    colour = "getComputedStyle(document.body).color"
    seen: dict[str, str] = {}
    for theme in ("Light", "Dark"):
        await page.press("Settings")
        await page.choose(theme)
        await page.press("Close")
        seen[theme] = await page.tab.evaluate(colour)
    assert seen["Light"] != seen["Dark"]
    await page.tab.reload()
    assert await page.tab.evaluate(colour) == seen["Dark"]


async def test_a_reload_forgets_what_was_said(page: ChatPage, guest: Visitor) -> None:
    await page.ask("My name is Ann.")
    await page.answered()
    await page.message.fill("And I live in")
    await page.tab.reload()
    await page.is_("ready")
    assert await page.answers.count() == 0
    await expect(page.message).to_have_value("And I live in")  # the unsent draft of this tab
    stored = await page.tab.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}])")
    assert "Ann" not in stored and "one" not in stored
    assert await page.tab.evaluate("indexedDB.databases().then((all) => all.length)") == 0
    other = await guest.open(page.tab.url)
    await expect(ChatPage(other).message).to_have_value("")


async def test_keyboard_only(page: ChatPage, runtime: FakeRuntime) -> None:
    keyboard = page.tab.keyboard
    await expect(page.message).to_be_focused()
    await keyboard.type("One")
    await keyboard.press("Shift+Enter")
    await keyboard.type("two?")
    await keyboard.press("Enter")
    await page.answered()
    assert runtime.chats[0].json["messages"][-1]["content"] == "One\ntwo?"
    reached = []
    for _ in range(40):
        await keyboard.press("Tab")
        focused = "document.activeElement.getAttribute('aria-label') ?? document.activeElement.textContent.trim()"
        reached.append(await page.tab.evaluate(focused))
        outlined = "getComputedStyle(document.activeElement).outlineStyle !== 'none' || document.activeElement.tagName"
        assert await page.tab.evaluate(outlined) in {True, "BODY", "TEXTAREA", "INPUT"}
        if "Regenerate" in reached:
            break
    assert {"New chat", "Settings", "Edit", "Copy"} <= set(reached)
    await keyboard.press("Enter")  # on Regenerate
    await runtime.chat(1)
    await page.answered()
    await page.button("Settings").focus()
    await keyboard.press("Enter")
    await expect(page.tab.get_by_role("dialog")).to_be_visible()
    await keyboard.press("Escape")
    await expect(page.tab.get_by_role("dialog")).to_be_hidden()
    await expect(page.button("Settings")).to_be_focused()


async def test_a_screen_reader_hears_an_answer_once(page: ChatPage, runtime: FakeRuntime) -> None:
    runtime.script = normal(10, 0.03)
    await page.tab.evaluate(
        """() => {
            window.heard = []
            for (const region of document.querySelectorAll('[aria-live=polite], [role=status], [role=alert]'))
                new MutationObserver(() => window.heard.push(region.textContent.trim()))
                    .observe(region, { childList: true, characterData: true, subtree: true })
        }"""
    )
    await page.ask()
    await expect(page.answers.last).to_have_attribute("aria-busy", "true")
    await page.answered()
    await expect(page.answers.last).to_have_attribute("aria-busy", "false")
    heard = await page.tab.evaluate("window.heard")
    assert heard == ["Generating…", text(10).strip()]


async def test_files_are_not_asked_for_again(page: ChatPage, guest: Visitor) -> None:
    transferred = """JSON.stringify(performance.getEntriesByType('resource')
        .filter(({ name }) => name.includes('/static/')).map(({ name, transferSize }) => [name, transferSize]))"""
    first = json.loads(await page.tab.evaluate(transferred))
    assert len(first) > 5
    await page.tab.reload()
    await page.is_("ready")
    again = dict(json.loads(await page.tab.evaluate(transferred)))
    assert {name: size for name, size in again.items() if size} == {}
    assert set(again) == {name for name, _ in first}


async def test_what_is_left_today_is_shown(page: ChatPage) -> None:
    quota = page.tab.locator("#quota")
    await expect(quota).to_contain_text("20,000 tokens left today")
    await page.ask()
    await page.answered()
    await expect(quota).to_contain_text("19,988 tokens left today")
