"""A tailnet of real daemons that never leaves this machine.

    async with running_tailnet() as tailnet:
        edge = await tailnet.member("edge", tags=["tag:edge"])
        phone = await tailnet.member("phone", user=PERSON)
        stranger = await tailnet.bridge.machine()          # on the same network, not in the tailnet
        async with phone.machine.client() as client: ...   # calls from the phone
        await tailnet.headscale.policy({...})              # in force for everybody within moments

Addresses outside the tailnet are 10.99.0.x, in it 100.64.0.x and fd7a:115c:a1e0::x, names end in tail.test.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.tailnet.binaries import build
from tests.tailnet.headscale import Headscale, Policy, running_headscale
from tests.tailnet.member import Member
from tests.tailnet.namespaces import Bridge, bridge

CAPABILITY = "hearthlink.internal/cap/gateway"
# A person is written with an @ in a policy, and without it where headscale makes the user.
PERSON = "anna"


def policy(*more: dict[str, Any]) -> dict[str, Any]:
    """Only the edge reaches the node, people reach the edge; ``more`` are grants besides."""
    return {
        "tagOwners": {"tag:edge": [], "tag:gpu": []},
        "grants": [
            {"src": ["tag:edge"], "dst": ["tag:gpu"], "ip": ["tcp:8001"], "app": {CAPABILITY: [{"role": "infer"}]}},
            {"src": [f"{PERSON}@"], "dst": ["tag:edge"], "ip": ["tcp:80", "tcp:443"]},
            *more,
        ],
        # It would try to reach the internet.
        "nodeAttrs": [{"target": ["*"], "attr": ["disable-captive-portal-detection"]}],
    }


class Tailnet:
    def __init__(self, bridge: Bridge, headscale: Headscale, folder: Path, stack: AsyncExitStack) -> None:
        self.bridge = bridge
        self.headscale = headscale
        self._folder = folder
        self._stack = stack
        self._programs = build()

    async def machine(self, name: str, *, tags: Sequence[str] = (), user: str = "", userspace: bool = False) -> Member:
        """A machine that is to become a member: no tailscaled runs yet."""
        folder = self._folder / name
        folder.mkdir()
        member = Member(
            name,
            await self.bridge.machine(),
            folder=folder,
            programs=self._programs,
            headscale=self.headscale,
            tags=tags,
            user=user,
            userspace=userspace,
        )
        self._stack.push_async_callback(member.kill)
        return member

    async def member(self, name: str, *, tags: Sequence[str] = (), user: str = "", userspace: bool = False) -> Member:
        """A machine that is in the tailnet, until the tailnet ends."""
        member = await self.machine(name, tags=tags, user=user, userspace=userspace)
        await member.start()
        await member.login()
        return member


@dataclass(frozen=True)
class Members:
    """What most tests need."""

    edge: Member
    gpu: Member
    phone: Member


@asynccontextmanager
async def running_tailnet(first: Policy | None = None) -> AsyncIterator[Tailnet]:
    """A control server and no members yet, under the policy ``first`` (``policy()``). Everything of it ends with the
    block, or with the test process if that is killed."""
    folder = _folder()
    try:
        async with bridge() as network, AsyncExitStack() as stack:
            headscale = await stack.enter_async_context(
                running_headscale(build().headscale, folder / "headscale", network.hub, first or policy())
            )
            yield Tailnet(network, headscale, folder, stack)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _folder() -> Path:
    """With a short path, since a socket's is 107 bytes at most, and open to other users, as those of tailscaled are."""
    folder = Path(tempfile.mkdtemp(prefix="tailnet-"))
    folder.chmod(0o755)
    return folder
