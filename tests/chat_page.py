"""The chat page as a person meets it: what can be read and pressed, by the names that a screen reader says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

from playwright.async_api import Locator, Page, expect

from tests.browser import STOPPED_ALREADY, Visitor
from tests.local_app import free_port
from tests.pair import Pair, running_pair
from tests.processes import Processes

State = Literal[
    "connecting",
    "reconnecting",
    "ready",
    "queued",
    "loading",
    "generating",
    "limited",
    "offline",
    "asleep",
    "closed",
    "invite",
]


@asynccontextmanager
async def pair_with_page(
    runtime_url: str | None = None, *, state: Path | None = None, edge: Mapping[str, Any] | None = None, **more: Any
) -> AsyncIterator[Pair]:
    """A pair whose page may ask for tokens, behind a proxy that is trusted; the rest is as for ``running_pair``."""
    port = free_port()
    own = {
        "listen": f"127.0.0.1:{port}",
        "allowed_origins": [f"http://127.0.0.1:{port}"],
        "trusted_proxies": ["127.0.0.1"],
    }
    async with running_pair(runtime_url, state=state, edge={**own, **(edge or {})}, **more) as pair:
        yield pair


class ChatPage:
    """A tab with the chat page."""

    def __init__(self, tab: Page) -> None:
        self.tab = tab
        self.message = tab.get_by_role("textbox", name="Message")
        self.status = tab.locator("#status")
        self.questions = tab.locator("article[data-role=user]")
        self.answers = tab.locator("article[data-role=assistant]")
        self.problem = self.answers.last.locator(".problem")

    @classmethod
    async def open(cls, visitor: Visitor, pair: Pair | Processes, state: State = "ready") -> ChatPage:
        """A new tab, waiting until it says that it is in that state."""
        page = cls(await visitor.open(pair.url + "/"))
        visitor.tolerates(STOPPED_ALREADY)
        await page.is_(state)
        return page

    @property
    def text(self) -> Locator:
        """The text of the last answer."""
        return self.answers.last.locator(".prose")

    def button(self, name: str) -> Locator:
        """The last button of that name, which is the newest message's."""
        return self.tab.get_by_role("button", name=name, exact=True).last

    async def press(self, name: str) -> None:
        await self.button(name).click()

    def choice(self, name: str) -> Locator:
        return self.tab.get_by_role("radio", name=name, exact=True)

    async def choose(self, name: str) -> None:
        await self.choice(name).press(" ")
        await expect(self.choice(name)).to_be_checked()

    async def is_(self, state: State, seconds: float = 30.0) -> None:
        """Wait until the page says that it is in that state."""
        await expect(self.tab.locator("body")).to_have_attribute("data-state", state, timeout=seconds * 1000)

    async def ask(self, question: str = "Where to?") -> None:
        await self.message.fill(question)
        await self.message.press("Enter")

    async def stop(self, how: str = "button") -> None:
        """Stop the answer, by the "button" or a key."""
        await (self.press("Stop") if how == "button" else self.tab.keyboard.press(how))

    async def answered(self, answers: int = 1, seconds: float = 30.0) -> str:
        """The last of so many answers, once it is whole, in sight or not."""
        await expect(self.answers).to_have_count(answers)
        await expect(self.answers.last).to_have_attribute("data-state", "done", timeout=seconds * 1000)
        return (await self.text.text_content() or "").strip()

    async def steps(self) -> list[str]:
        """The texts of the last answer as they were seen while it grew."""
        seen: list[str] = []
        while await self.answers.last.get_attribute("data-state") in {"waiting", "streaming"}:
            now = (await self.text.inner_text()).strip()
            if now and now not in seen[-1:]:
                seen.append(now)
            await asyncio.sleep(0.01)
        return seen
