"""Debian's Chromium, driven by Playwright. A module's tests share one browser; each test has a visitor, a person with a
fresh profile, whose tabs may complain of nothing and send nothing to hosts they were not given:

    async def test_something(visitor: Visitor) -> None:
        page = await visitor.open(pair.url)
        visitor.expects("status of 429")        # what a test provokes it names, and it must come
"""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

from playwright.async_api import Browser, BrowserContext, ConsoleMessage, Page, Request, async_playwright, expect

from tests.javascript import unusable

CHROMIUM = "/usr/bin/chromium"
# Beside what Playwright gives. A name that a page should not know leads nowhere, and app.test, the name of a page on a
# network without https, leads to this machine.
_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP app.test 127.0.0.1,MAP * ~NOTFOUND,EXCLUDE 127.0.0.1,EXCLUDE localhost",
)
# A stop is told by DELETE and by the connection's end; when the edge sees the end first, it knows no such chat.
STOPPED_ALREADY = "status of 404 .*/v1/chat/"
_SECRET = re.compile(r"hl[tkin]_\w")  # how tokens, keys, invites and node tokens begin
_STORED = "JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie])"
# Milliseconds after which what a page should do counts as never coming.
_PATIENCE = 30_000
_NO_HOST = {"data", "blob", "about"}  # schemes of requests that go nowhere


def origin_of(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def require_chromium() -> None:
    if not os.path.exists(CHROMIUM):
        unusable(f"Pages are tested where there is a Chromium at {CHROMIUM}.")


@asynccontextmanager
async def running_chromium(flags: Sequence[str] = (), program: str = CHROMIUM) -> AsyncIterator[Browser]:
    """One browser process until the block is left. Belongs to the loop it was started in. ``program`` starts it."""
    require_chromium()
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=program, args=[*_FLAGS, *flags])
        try:
            yield browser
        finally:
            await browser.close()


class Visitor:
    """A person with a fresh profile. ``requests`` are those of all tabs so far, ``complaints`` what the consoles said
    that is more than a note: refused by the content security policy, uncaught, not loaded."""

    def __init__(self, context: BrowserContext) -> None:
        self.context = context
        self.requests: list[Request] = []
        self.complaints: list[str] = []
        self.origins: set[str] = set()
        self._expected: list[str] = []
        self._tolerated: list[str] = []
        context.on("request", lambda request: self.requests.append(request))
        context.on("console", self._console)
        context.on("weberror", lambda problem: self.complaints.append(f"uncaught: {problem.error}"))

    async def open(self, url: str, *also: str) -> Page:
        """A new tab, which may speak to the origin of ``url`` and of ``also``."""
        self.origins.update(map(origin_of, (url, *also)))
        page = await self.context.new_page()
        await page.goto(url)
        return page

    def expects(self, complaint: str) -> None:
        """A complaint that matches this pattern must come, and is no mistake."""
        self._expected.append(complaint)

    def tolerates(self, complaint: str) -> None:
        """A complaint that matches this pattern may come."""
        self._tolerated.append(complaint)

    def asked(self, path: str, method: str = "POST") -> list[Request]:
        """The requests so far to that path, on any host."""
        return [one for one in self.requests if one.method == method and urlsplit(one.url).path == path]

    def check(self) -> None:
        """Raises AssertionError when a tab complained, did not complain as expected, or wrote to another host."""
        sent = sorted({one.url for one in self.requests if urlsplit(one.url).scheme not in _NO_HOST})
        problems = [f"a request left for {url}" for url in sent if origin_of(url) not in self.origins]
        known = [*self._expected, *self._tolerated]
        problems += [said for said in self.complaints if not any(re.search(one, said) for one in known)]
        for one in self._expected:
            if not any(re.search(one, said) for said in self.complaints):
                problems.append(f"nothing was said that matches {one!r}")
        assert not problems, "\n".join(problems)

    async def check_storage(self) -> None:
        """Raises AssertionError when a tab keeps a token, a key or an invite anywhere but in memory."""
        for page in self.context.pages:
            if urlsplit(page.url).scheme in {"http", "https"}:
                stored = await page.evaluate(_STORED)
                assert not _SECRET.search(stored), stored
        assert await self.context.cookies() == []

    def _console(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning", "assert"}:
            where: Any = message.location
            self.complaints.append(f"{message.type}: {message.text} ({where.get('url')})")


@asynccontextmanager
async def visiting(browser: Browser, **options: Any) -> AsyncIterator[Visitor]:
    """A visitor, whose tabs are checked at the end. ``options`` are those of ``browser.new_context``."""
    context = await browser.new_context(**options)
    context.set_default_timeout(_PATIENCE)
    expect.set_options(timeout=_PATIENCE)  # of everybody, 5 s without it
    try:
        visitor = Visitor(context)
        yield visitor
        visitor.check()
        await visitor.check_storage()
    finally:
        await context.close()
