"""A tailnet of real daemons that never leaves this machine.

    async with running_tailnet() as tailnet:
        edge = await tailnet.member("edge", tags=["tag:edge"])
        phone = await tailnet.member("phone", user=PERSON)
        stranger = await tailnet.bridge.machine()          # on the same network, not in the tailnet
        await edge.meets(phone)                            # who has just joined is not known to all at once
        async with phone.machine.client() as client: ...   # calls from the phone
        await tailnet.policy({...})                        # in force, and known to all who run

Addresses outside the tailnet are 10.99.0.x, in it 100.64.0.x and fd7a:115c:a1e0::x, names end in tail.test.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
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
    def __init__(
        self, bridge: Bridge, headscale: Headscale, folder: Path, stack: AsyncExitStack, in_force: Policy
    ) -> None:
        self.bridge = bridge
        self.headscale = headscale
        self._folder = folder
        self._stack = stack
        self._programs = build()
        self._members: list[Member] = []
        self._in_force = in_force
        self._marks = 0

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
        self._members.append(member)
        return member

    async def policy(self, policy: Mapping[str, Any]) -> None:
        """Put ``policy`` in force and wait until every machine that runs knows it. headscale says that it has read a
        policy before it has told the machines. It tells them one change after the other, of a policy first what it says
        about the machine itself and then the rest; so the policy comes with a mark for everybody that no program reads,
        twice: who has the second has all that came with the first."""
        if policy == self._in_force:
            return
        self._in_force = policy
        for _ in range(2):
            self._marks += 1
            mark = f"hearthlink.internal/mark-{self._marks}"
            marked = {"target": ["*"], "attr": [mark]}
            await self.headscale.policy({**policy, "nodeAttrs": [*policy.get("nodeAttrs", ()), marked]})
            await asyncio.gather(*(member.has(mark) for member in self._members if member.started))

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
            begun = first or policy()
            headscale = await stack.enter_async_context(
                running_headscale(build().headscale, folder / "headscale", network.hub, begun)
            )
            yield Tailnet(network, headscale, folder, stack, begun)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _folder() -> Path:
    """With a short path, since a socket's is 107 bytes at most, and open to other users, as those of tailscaled are."""
    folder = Path(tempfile.mkdtemp(prefix="tailnet-"))
    folder.chmod(0o755)
    return folder
