"""The hermetic tailnet as a fixture. Tests that ask for it need Linux, root, /dev/net/tun and Go; without those they
are skipped with one line, and fail in continuous integration."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.tailnet import binaries
from tests.tailnet.requirements import missing
from tests.tailnet.tailnet import Tailnet, running_tailnet


def pytest_collection_finish(session: pytest.Session) -> None:
    """Build ahead of the tests, whose time is bounded: the first build takes minutes."""
    wanted = any("tailnet" in getattr(item, "fixturenames", ()) for item in session.items)
    if wanted and not session.config.option.collectonly and not missing() and not binaries.built():
        sys.stderr.write("Building tailscaled and headscale, once: this takes some minutes.\n")
        binaries.build()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def tailnet(request: pytest.FixtureRequest) -> AsyncIterator[Tailnet]:
    """A tailnet without members, shared by the tests of a module, which says
    ``pytestmark = pytest.mark.asyncio(loop_scope="module")``. It begins under the module's ``POLICY``, if that has
    one."""
    if why := missing():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(why)
    async with running_tailnet(getattr(request.module, "POLICY", None)) as tailnet:
        yield tailnet
