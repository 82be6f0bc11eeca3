"""Fixtures of all tests. What starts servers is in ``tests.pair`` and ``tests.processes``."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
import uvloop
from hypothesis import settings

from shared import ticker
from tests.fake_hub import FakeHub
from tests.fake_runtime import FakeRuntime
from tests.pair import Pair, from_elsewhere, running_pair
from tests.pulling import CONTENT, Pull

if TYPE_CHECKING:
    from playwright.async_api import Browser

    from tests.browser import Visitor

# Playwright is not made for every processor; continuous integration has one that it is made for.
if find_spec("playwright") is None and not os.environ.get("CI"):
    collect_ignore_glob = ["test_page_*.py", "test_client_in_page.py", "test_openai_js.py"]

# A machine that others share makes one example slow now and then; tests of time say so themselves.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")


def pytest_asyncio_loop_factories(config: object, item: object) -> Mapping[str, Callable[[], Any]]:
    """Tests run on the loop that edge and node run on."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
async def runtime() -> AsyncIterator[FakeRuntime]:
    """A fake runtime that answers well; a test sets ``runtime.script`` to what it should do instead."""
    async with FakeRuntime() as runtime:
        yield runtime


@pytest.fixture
async def pair(runtime: FakeRuntime, tmp_path: Path) -> AsyncIterator[Pair]:
    """Edge and node with default settings in front of ``runtime``."""
    async with running_pair(runtime.url, state=tmp_path) as pair:
        yield pair


@pytest.fixture(scope="module")
def quick_ticks() -> Iterator[None]:
    """Servers look at the clock ten times a second, so that the deadlines a test waits for can be short."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ticker, "TICK", 0.1)
        yield


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def module_pair(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Pair, FakeRuntime]]:
    state = tmp_path_factory.mktemp("state")
    trusting = {"trusted_proxies": ["127.0.0.1"]}  # so that a test can call from another address
    async with FakeRuntime() as runtime, running_pair(runtime.url, state=state, edge=trusting) as pair:
        yield pair, runtime


@pytest.fixture
def shared_runtime(module_pair: tuple[Pair, FakeRuntime]) -> FakeRuntime:
    """As ``runtime``, behind ``shared_pair``, and as new for each test."""
    runtime = module_pair[1]
    runtime.script = "normal"
    runtime.chats.clear()
    return runtime


@pytest.fixture
def shared_pair(module_pair: tuple[Pair, FakeRuntime], shared_runtime: FakeRuntime) -> Pair:
    """As ``pair``, for modules with many quick tests: started once, for tests that leave it idle. The module says
    ``pytestmark = pytest.mark.asyncio(loop_scope="module")``."""
    pair = module_pair[0]
    pair.audit.clear()
    return pair


@pytest.fixture(scope="session")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A GGUF of 100 M parameters: slow enough to be caught while it reads a prompt. It says noise, one token per byte
    of prompt, and only ``max_tokens`` ends its answers."""
    from bench.random_model import make  # numpy, which few test runs need

    folder = tmp_path_factory.mktemp("models")
    yield make(folder / "random.gguf", parameters=100_000_000, context=4096)
    shutil.rmtree(folder)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def chromium() -> AsyncIterator[Browser]:
    """A browser, for modules whose tests run on the module's loop."""
    from tests.browser import running_chromium  # Playwright, which few test runs need

    async with running_chromium() as browser:
        yield browser


@pytest_asyncio.fixture(loop_scope="module")
async def visitor(chromium: Browser) -> AsyncIterator[Visitor]:
    """A person with a fresh profile of ``chromium``; its tabs are checked at the end."""
    from tests.browser import visiting

    async with visiting(chromium) as visitor:
        yield visitor


@pytest_asyncio.fixture(loop_scope="module")
async def guest(chromium: Browser) -> AsyncIterator[Visitor]:
    """As ``visitor``, on the edge's own page and from an address of its own, if the edge trusts this machine as its
    proxy: the limits of a module's tests are then each test's own."""
    from tests.browser import visiting

    async with visiting(chromium, extra_http_headers=from_elsewhere()) as visitor:
        yield visitor


@pytest.fixture
async def hub() -> AsyncIterator[FakeHub]:
    """A model hub that has the model ``tests.pulling.MODEL``."""
    async with FakeHub() as hub:
        hub.put("acme/tiny/tiny.gguf", CONTENT)
        yield hub


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    """The folder that the model of ``tests.pulling.MODEL`` belongs in."""
    return tmp_path / "models" / "acme" / "tiny" / "main"


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits before another try, which take no time here."""
    waited: list[float] = []
    monkeypatch.setattr("hearthlink.models.patience.time.sleep", waited.append)
    return waited


@pytest.fixture
def pull(
    hub: FakeHub,
    tmp_path: Path,
    pauses: list[float],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Pull:
    """``await pull()`` runs ``hearthlink model pull`` against ``hub``."""
    monkeypatch.setenv("HEARTHLINK_STATE", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.chdir(tmp_path)
    return Pull(capsys)
