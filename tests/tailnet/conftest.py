"""The hermetic tailnet as a fixture. Tests that ask for it need Linux, root, /dev/net/tun and Go. Without those they
are left out, which one line at the end of the run says; in continuous integration they fail."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.tailnet import binaries
from tests.tailnet.requirements import missing
from tests.tailnet.tailnet import PERSON, Members, Tailnet, running_tailnet

_LEFT_OUT = pytest.StashKey[str]()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what cannot run here. A skip would be a line for each of them."""
    left_out = [item for item in items if _wants_tailnet(item)]
    if left_out and not os.environ.get("CI") and (why := missing()):
        items[:] = [item for item in items if not _wants_tailnet(item)]
        config.hook.pytest_deselected(items=left_out)
        config.stash[_LEFT_OUT] = f"Skipped {len(left_out)} tests in tests/tailnet: {why}"


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if line := config.stash.get(_LEFT_OUT, ""):
        terminalreporter.write_line(line)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Build ahead of the tests, whose time is bounded: the first build takes minutes."""
    wanted = any(_wants_tailnet(item) for item in session.items)
    if wanted and not session.config.option.collectonly and not missing() and not binaries.built():
        sys.stderr.write("Building tailscaled and headscale, once: this takes some minutes.\n")
        binaries.build()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def tailnet(request: pytest.FixtureRequest) -> AsyncIterator[Tailnet]:
    """A tailnet without members, shared by the tests of a module, which says
    ``pytestmark = pytest.mark.asyncio(loop_scope="module")``. It begins under the module's ``POLICY``, if that has
    one."""
    if why := missing():
        pytest.fail(why)
    async with running_tailnet(getattr(request.module, "POLICY", None)) as tailnet:
        yield tailnet


def _wants_tailnet(item: pytest.Item) -> bool:
    return "tailnet" in getattr(item, "fixturenames", ())


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def members(tailnet: Tailnet) -> Members:
    """An edge, a machine with a GPU and a person's phone, shared by the tests of a module that needs no others."""
    return Members(
        *await asyncio.gather(
            tailnet.member("edge", tags=["tag:edge"]),
            tailnet.member("gpu", tags=["tag:gpu"]),
            tailnet.member("phone", user=PERSON),
        )
    )
