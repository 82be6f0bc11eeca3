"""How the chat page looks with the model that comes along, and whether everybody can use it: axe-core's rules, narrow
screens and zoom. Leaves screenshots under ``build/screenshots``."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from typing import Any
from unittest import mock

import pytest
import pytest_asyncio
from playwright.async_api import Browser, expect

from shared.settings_node import DEMO_MODEL
from tests.browser import Visitor, visiting
from tests.chat_page import ChatPage, pair_with_page
from tests.fake_runtime import FakeRuntime
from tests.fake_scripts import saying, text
from tests.javascript import PACKAGES, install, require_node
from tests.local_app import free_port
from tests.pair import Pair, from_elsewhere
from tests.processes import ROOT

pytestmark = pytest.mark.asyncio(loop_scope="module")

SHOTS = ROOT / "build" / "screenshots"
SCREENS: dict[str, dict[str, Any]] = {
    "390x844": {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True},
    "1280x800": {"viewport": {"width": 1280, "height": 800}},
}
TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
WIDE = (
    "Averylongwordthatnobreakinside" * 12
    + "\n\n```\n"
    + "print('a line of code that is wider than any phone') " * 5
    + "\n```\n\n| "
    + " | ".join(f"column {i}" for i in range(14))
    + " |\n|"
    + "---|" * 14
    + "\n| "
    + " | ".join("value" for _ in range(14))
    + " |\n\nhttps://ok.test/"
    + "path/" * 60
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def real(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pair]:
    """A pair with the demo model."""
    # llama.cpp's threads wait for each other spinning, and stand still when other tests want the cores too.
    with mock.patch.dict(os.environ, OMP_WAIT_POLICY="passive"):
        node = {"runtime": {"kind": "embedded", "model": str(DEMO_MODEL)}}
        edge = {"anonymous_raw_models": True}  # as `hearthlink up` sets it
        async with pair_with_page(state=tmp_path_factory.mktemp("state"), edge=edge, node=node) as pair:
            yield pair


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fake(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Pair, FakeRuntime]]:
    """A pair whose answers break off."""
    state = tmp_path_factory.mktemp("state")
    half = saying("Take the tram to the lake and rent a", whole=False)
    async with FakeRuntime(half) as runtime, pair_with_page(runtime.url, state=state) as pair:
        yield pair, runtime


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def axe() -> str:
    """The source of axe-core."""
    require_node()
    await install(PACKAGES)
    return (PACKAGES / "node_modules" / "axe-core" / "axe.min.js").read_text()


async def violations(page: ChatPage, axe: str) -> list[str]:
    """What axe-core finds, one line each."""
    await page.tab.evaluate(axe)
    found: dict[str, Any] = await page.tab.evaluate("(values) => axe.run({ runOnly: { type: 'tag', values } })", TAGS)
    return [
        f"{one['impact']} {one['id']}: {node['target']} {node['any'] or node['all'] or node['none']}"
        for one in found["violations"]
        for node in one["nodes"]
    ]


async def overflow(page: ChatPage) -> list[int]:
    """By how many pixels the page and its conversation are wider than what is seen of them."""
    script = (
        "[document.scrollingElement, document.getElementById('scroller')].map((e) => e.scrollWidth - e.clientWidth)"
    )
    return await page.tab.evaluate(script)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("screen", SCREENS)
async def test_each_state_is_fit_to_be_seen(
    chromium: Browser, real: Pair, fake: tuple[Pair, FakeRuntime], axe: str, screen: str, scheme: str
) -> None:
    looks = {**SCREENS[screen], "color_scheme": scheme, "extra_http_headers": from_elsewhere()}
    seen: dict[str, list[str]] = {}

    async def look(page: ChatPage, state: str) -> None:
        await page.tab.screenshot(path=SHOTS / f"{state}-{screen}-{scheme}.png", animations="disabled")
        if looks.get("is_mobile") or state == "welcome":
            seen[state] = await violations(page, axe)
        assert await overflow(page) == [0, 0], state

    async with visiting(chromium, **looks) as visitor:
        page = await ChatPage.open(visitor, real)
        await expect(page.tab.locator("#examples button").first).to_be_visible()
        await look(page, "welcome")
        await page.choose("Where to go")
        await page.ask("It is raining and I have two kids with me.")
        await page.answered(1, 30)
        await page.ask("Something cheaper?")
        await page.answered(2, 30)
        await page.is_("ready")
        await look(page, "answer")
        await page.press("Settings")
        await look(page, "settings")
    async with visiting(chromium, **looks) as visitor:
        page = await ChatPage.open(visitor, fake[0])
        await page.ask("Where can four friends go on a sunny afternoon?")
        await expect(page.problem).to_be_visible()
        await look(page, "error")
    assert {state: found for state, found in seen.items() if found} == {}


@pytest.mark.parametrize("width", [320, 390])  # 320 pixels are a phone, or 1280 pixels at 400 %
async def test_nothing_wide_makes_the_page_scroll_sideways(
    chromium: Browser, fake: tuple[Pair, FakeRuntime], width: int
) -> None:
    pair, runtime = fake
    runtime.script = saying(WIDE, 40)
    looks = {"viewport": {"width": width, "height": 640}, "extra_http_headers": from_elsewhere()}
    async with visiting(chromium, **looks) as visitor:
        page = await ChatPage.open(visitor, pair)
        assert await overflow(page) == [0, 0]
        await page.ask("Averylongquestionwithoutaspace" * 10)
        await page.answered()
        assert await overflow(page) == [0, 0]
        await page.press("Settings")
        assert await overflow(page) == [0, 0]


async def test_the_model_that_comes_along(real: Pair, guest: Visitor) -> None:
    page = await ChatPage.open(guest, real)
    await expect(page.tab.get_by_text("You are talking to a toy")).to_be_visible()
    await page.ask("Where shall we go tonight?")
    assert len(await page.answered(seconds=30)) > 20
    await page.press("Settings")
    await expect(page.tab.get_by_role("dialog")).to_contain_text("Answers come from demo.")


async def test_without_javascript_there_is_another_way(chromium: Browser, real: Pair) -> None:
    async with visiting(chromium, java_script_enabled=False) as visitor:
        page = ChatPage(await visitor.open(real.url))
        await expect(page.tab.get_by_role("heading", name="This page needs JavaScript")).to_be_visible()
        assert "curl -N" in await page.tab.locator("noscript pre").inner_text()


async def test_a_page_without_https_works_too(chromium: Browser, fake: tuple[Pair, FakeRuntime]) -> None:
    """As in a home network, where browsers allow a page less."""
    _, runtime = fake
    runtime.script = "normal"
    port = free_port()
    edge = {"listen": f"127.0.0.1:{port}", "allowed_origins": [f"http://app.test:{port}"]}
    async with pair_with_page(runtime.url, edge=edge), visiting(chromium) as visitor:
        visitor.tolerates("Cross-Origin-Opener-Policy header has been ignored")
        page = ChatPage(await visitor.open(f"http://app.test:{port}"))
        await page.is_("ready")
        assert not await page.tab.evaluate("isSecureContext")
        await page.ask()
        assert await page.answered() == text(5).strip()
        await page.press("Copy")
        await expect(page.button("Copy")).to_have_text("Copied")


async def test_still_for_who_asked_for_it(chromium: Browser, fake: tuple[Pair, FakeRuntime]) -> None:
    pair, runtime = fake
    runtime.script = "stall_before_headers"
    async with visiting(chromium, reduced_motion="reduce", extra_http_headers=from_elsewhere()) as visitor:
        page = await ChatPage.open(visitor, pair)
        await page.ask()
        await runtime.chat(len(runtime.chats) - 1)
        moving = "document.getAnimations().filter((one) => one.effect.getComputedTiming().duration > 50).length"
        assert await page.tab.evaluate(moving) == 0
        await page.stop()
