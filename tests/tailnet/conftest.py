"""The hermetic tailnet as a fixture. Tests that ask for it need Linux, root, /dev/net/tun and Go; without those they
are skipped with one line, and fail in continuous integration."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.tailnet import binaries
from tests.tailnet.tailnet import Tailnet, running_tailnet

_COMMANDS = ("ip", "unshare", "nsenter", "setpriv")


def missing() -> str:
    """Why no tailnet can be made here; empty when one can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "A tailnet of its own is made by root on Linux."
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return "A tailnet of its own needs /dev/net/tun."
    if absent := [command for command in _COMMANDS if not shutil.which(command)]:
        return f"A tailnet of its own needs {', '.join(absent)}."
    if subprocess.run(("unshare", "--net", "true"), stderr=subprocess.DEVNULL, check=False).returncode:
        return "A tailnet of its own needs network namespaces, which this machine does not let root make."
    if not binaries.built() and not shutil.which("go"):
        return "A tailnet of its own is built with Go."
    return ""


def pytest_collection_finish(session: pytest.Session) -> None:
    """Build ahead of the tests, whose time is bounded: the first build takes minutes."""
    wanted = any("tailnet" in getattr(item, "fixturenames", ()) for item in session.items)
    if wanted and not session.config.option.collectonly and not missing() and not binaries.built():
        sys.stderr.write("Building tailscaled and headscale, once: this takes some minutes.\n")
        binaries.build()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def tailnet() -> AsyncIterator[Tailnet]:
    """A tailnet without members, shared by the tests of a module, which says
    ``pytestmark = pytest.mark.asyncio(loop_scope="module")``."""
    if why := missing():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(why)
    async with running_tailnet() as tailnet:
        yield tailnet
