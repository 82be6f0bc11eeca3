"""The hermetic tailnet as a fixture. Tests that ask for it need Linux, root, /dev/net/tun and Go. Without those they
are left out, which one line at the end of the run says; in continuous integration they fail."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.left_out import LeftOut
from tests.tailnet import binaries
from tests.tailnet.requirements import missing
from tests.tailnet.tailnet import PERSON, Members, Tailnet, running_tailnet


def _wants_tailnet(item: pytest.Item) -> bool:
    return "tailnet" in getattr(item, "fixturenames", ())


_LEFT_OUT = LeftOut("tests/tailnet", _wants_tailnet, missing)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    _LEFT_OUT.choose(config, items)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    _LEFT_OUT.tell(terminalreporter, config)


def pytest_collection_finish(session: pytest.Session) -> None:
    if _LEFT_OUT.needs_building(session, binaries.built):
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


@pytest_asyncio.fixture(loop_scope="module")
async def members(module_members: Members) -> Members:
    """An edge, a machine with a GPU and a person's phone, shared by the tests of a module that needs no others. Each
    test begins when the policy's ways between them are there, whatever the one before has done to them."""
    await module_members.edge.meets(module_members.gpu, module_members.phone)
    return module_members


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def module_members(tailnet: Tailnet) -> Members:
    return Members(
        *await asyncio.gather(
            tailnet.member("edge", tags=["tag:edge"]),
            tailnet.member("gpu", tags=["tag:gpu"]),
            tailnet.member("phone", user=PERSON),
        )
    )
