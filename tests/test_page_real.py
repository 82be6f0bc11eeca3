"""The chat page in front of the real llama.cpp, with a model that takes its time: words as they are made, and a stop
that frees llama.cpp's slot."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path
from unittest import mock

import pytest
import pytest_asyncio
from playwright.async_api import expect

from node.runtimes.embedded import EmbeddedRuntime
from tests.browser import Visitor
from tests.chat_page import ChatPage, pair_with_page
from tests.pair import Pair
from tests.real_model import until

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair(random_model: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pair]:
    # llama.cpp's threads wait for each other spinning, and stand still when other tests want the cores too.
    with mock.patch.dict(os.environ, OMP_WAIT_POLICY="passive"):
        node = {"runtime": {"kind": "embedded", "model": str(random_model)}}
        async with pair_with_page(state=tmp_path_factory.mktemp("state"), node=node) as pair:
            yield pair


@pytest.mark.parametrize("how", ["button", "Escape"])
async def test_words_come_and_a_stop_frees_the_slot(pair: Pair, guest: Visitor, how: str) -> None:
    runtime = pair.node.services.runtime
    assert isinstance(runtime, EmbeddedRuntime)

    async def idle() -> bool:
        return await runtime.busy_slots() == 0

    page = await ChatPage.open(guest, pair)
    await page.ask()
    await page.is_("generating", 30)
    await expect(page.text).not_to_be_empty()
    seen = [await page.text.inner_text()]
    for _ in range(4):
        await expect(page.text).not_to_have_text(seen[-1], use_inner_text=True)
        seen.append(await page.text.inner_text())
    assert await runtime.busy_slots() == 1
    stopped = time.monotonic()
    await page.stop(how)
    await until(idle, 5)
    assert time.monotonic() - stopped < 1
    assert all(len(earlier) < len(later) for earlier, later in pairwise(seen))
    await pair.idle()
    await page.is_("ready")
    assert [line["outcome"] for line in pair.audit if line["route"] == "/v1/chat"][-1] in {"stopped", "cancelled"}
