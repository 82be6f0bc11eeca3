"""The JavaScript client as other people's pages use it: a module script from the edge, no build, in Chromium."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.async_api import Page

from tests.browser import STOPPED_ALREADY, Visitor
from tests.elsewhere import elsewhere
from tests.fake_runtime import FakeRuntime
from tests.fake_scripts import normal, stall_mid_stream, text
from tests.pair import Pair, running_pair

pytestmark = pytest.mark.asyncio(loop_scope="module")

# What a page of somebody else has in a <script type="module">.
SCRIPT = """
import {{ createClient }} from '{edge}/hearthlink.js'
const client = createClient({{ baseUrl: '{edge}' }})
let chat
window.ask = async () => {{
  chat = client.chat({{ messages: [{{ role: 'user', content: 'Where to?' }}] }})
  const output = document.body.appendChild(document.createElement('output'))
  try {{
    for await (const {{ type, delta }} of chat) if (type === 'text') output.textContent += delta
    return 'done'
  }} catch (error) {{
    return `${{error.name}} ${{error.code}}`
  }}
}}
window.stop = () => chat.cancel()
document.title = 'ready'
"""


@asynccontextmanager
async def site(runtime: FakeRuntime, state: Path, host: str = "localhost") -> AsyncIterator[tuple[Pair, str]]:
    """A pair, and another origin that it allows."""
    async with (
        elsewhere(host=host) as origin,
        running_pair(runtime.url, state=state, edge={"allowed_origins": [origin]}) as pair,
    ):
        yield pair, origin


async def open_page(visitor: Visitor, pair: Pair, origin: str) -> Page:
    page = await visitor.open(origin, pair.url)
    await page.add_script_tag(content=SCRIPT.format(edge=pair.url), type="module")
    await page.wait_for_function("document.title === 'ready'")
    return page


async def seen(page: Page) -> str:
    return await page.evaluate("document.querySelector('output:last-of-type')?.textContent ?? ''")


@pytest.mark.parametrize("host", ["localhost", "app.test"])  # app.test is no secure context: no locks, fewer functions
async def test_a_script_tag_is_all_it_takes(visitor: Visitor, tmp_path: Path, host: str) -> None:
    async with FakeRuntime(normal(10, 0.05)) as runtime, site(runtime, tmp_path, host) as (pair, origin):
        page = await open_page(visitor, pair, origin)
        assert await page.evaluate("isSecureContext") == (host == "localhost")
        asking = asyncio.ensure_future(page.evaluate("ask()"))
        steps = {""}
        while not asking.done():
            steps.add(await seen(page))
            await asyncio.sleep(0.02)
        assert await asking == "done"
        assert await seen(page) == text(10)
        assert len(steps) > 4
        assert all(text(10).startswith(step) for step in steps)
        stable = visitor.asked("/hearthlink.js", "GET")
        hashed = [one for one in visitor.requests if urlsplit(one.url).path.endswith("/hearthlink.js")][-1]
        assert len(stable) == 1 and hashed.redirected_from == stable[0]
        assert "immutable" in await (await hashed.response()).header_value("cache-control")  # type: ignore[union-attr]


@pytest.mark.parametrize("how", ["stop", "close the tab", "leave the page"])
async def test_who_leaves_frees_the_slot(visitor: Visitor, tmp_path: Path, how: str) -> None:
    async with FakeRuntime(stall_mid_stream()) as runtime, site(runtime, tmp_path) as (pair, origin):
        page = await open_page(visitor, pair, origin)
        visitor.tolerates(STOPPED_ALREADY)
        asking = asyncio.ensure_future(page.evaluate("ask()"))
        await page.wait_for_function("document.querySelector('output')?.textContent")
        assert pair.open_work()["slots taken"] == 1
        if how == "stop":
            await page.evaluate("stop()")
            assert await asking == "UserAbortError aborted"
        else:
            await (page.close() if how == "close the tab" else page.goto(origin))
            await asyncio.gather(asking, return_exceptions=True)
        await (await runtime.chat(0)).peer_left(1)
        await pair.idle()


@pytest.mark.case("B23")
async def test_tabs_share_a_token_and_its_renewal(visitor: Visitor, tmp_path: Path) -> None:
    async with FakeRuntime() as runtime, site(runtime, tmp_path) as (pair, origin):
        pair.edge.services.tokens._lifetime = 5  # seconds; on a slow machine a question takes its time as well
        tabs = [await open_page(visitor, pair, origin) for _ in range(2)]
        assert await asyncio.gather(*(tab.evaluate("ask()") for tab in tabs)) == ["done", "done"]
        assert len(visitor.asked("/v1/token")) == 1
        await asyncio.sleep(5)  # it ends
        assert await asyncio.gather(*(tab.evaluate("ask()") for tab in tabs)) == ["done", "done"]
        assert len(visitor.asked("/v1/token")) == 2
        assert len(runtime.chats) == 4
