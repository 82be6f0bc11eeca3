"""Two nodes behind one edge: which of them is asked, and what callers notice when the machine of one is gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.fake_scripts import normal, text
from tests.pair import question
from tests.tailnet.deployed import PUBLIC, Deployed, edge_on, node_on
from tests.tailnet.member import Member
from tests.tailnet.runtime_on import RuntimeOn
from tests.tailnet.tailnet import Tailnet

pytestmark = pytest.mark.asyncio(loop_scope="module")

# Seconds in which the next request is answered after a change: the promise.
_PROMISED = 10.0
_SOON = 30.0
_BY_PRIORITY = {"second": {"node": "gpu-2", "priority": 1}, "first": {"node": "gpu-1", "priority": 0}}


@dataclass(frozen=True)
class Machine:
    """One with a node. ``answer`` is what it says, and no other."""

    member: Member
    answer: str


@asynccontextmanager
async def machine(tailnet: Tailnet, number: int, folder: Path) -> AsyncIterator[Machine]:
    member = await tailnet.member(f"gpu-{number}", tags=["tag:gpu"])
    async with (
        RuntimeOn(member.machine, normal(number)) as runtime,
        node_on(member, folder, runtime=runtime.settings),
    ):
        yield Machine(member, text(number))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def edge(tailnet: Tailnet) -> Member:
    return await tailnet.member("edge", tags=["tag:edge"])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def first(tailnet: Tailnet, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Machine]:
    async with machine(tailnet, 1, tmp_path_factory.mktemp("first")) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def second(tailnet: Tailnet, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Machine]:
    async with machine(tailnet, 2, tmp_path_factory.mktemp("second")) as made:
        yield made


class Front:
    """An edge with both nodes, and a program on its machine that calls it with a key."""

    def __init__(self, process: Deployed, key: str) -> None:
        self.process = process
        self._headers = {"Authorization": f"Bearer {key}"}

    async def answer(self) -> str:
        """What one chat is answered within ten seconds, whatever becomes of the first node meanwhile."""
        try:
            async with asyncio.timeout(_PROMISED):
                said = await self._ask()
        except TimeoutError:
            said = "no answer in time"
        assert isinstance(said, str), f"refused with {said}\n{self.process.log_text()}"
        return said

    async def known(self) -> None:
        """Wait until the edge has seen the new key."""
        async with asyncio.timeout(_PROMISED):
            while await self._ask() == 401:  # noqa: ASYNC110
                await asyncio.sleep(0.1)

    async def _ask(self) -> str | int:
        """The answer to one chat, or the status of its refusal."""
        async with (
            self.process.member.machine.client() as client,
            client.post(f"{PUBLIC}/v1/chat", json=question(stream=False), headers=self._headers) as response,
        ):
            if response.status != 200:
                return response.status
            return (await response.json())["choices"][0]["message"]["content"]

    async def nodes(self) -> dict[str, Mapping[str, Any]]:
        """What full health says of each, by name."""
        return {node["name"]: node for node in (await self.process.health()).get("nodes", ())}

    async def ready(self, *names: str) -> None:
        """Wait until these could answer, and no others."""
        async with asyncio.timeout(_SOON):
            while {name for name, node in (await self.nodes()).items() if node["ready"]} != {*names}:  # noqa: ASYNC110
                await asyncio.sleep(0.1)


@asynccontextmanager
async def front(
    edge: Member, nodes: tuple[Machine, Machine], folder: Path, upstreams: Mapping[str, Any]
) -> AsyncIterator[Front]:
    await edge.meets(*(node.member for node in nodes))
    async with edge_on(edge, folder, upstreams) as process:
        made = Front(process, process.key())
        await process.ready()
        await made.known()
        yield made


@asynccontextmanager
async def unplugged(machine: Machine) -> AsyncIterator[None]:
    """Its network cable is pulled: nothing arrives, and nobody is told."""
    namespace = machine.member.machine
    await namespace.call("ip", "link", "set", "eth0", "down")
    try:
        yield
    finally:
        await namespace.call("ip", "link", "set", "eth0", "up")


async def test_the_lowest_priority_is_asked_unless_its_machine_is_gone(
    edge: Member, first: Machine, second: Machine, tmp_path: Path
) -> None:
    async with front(edge, (first, second), tmp_path, _BY_PRIORITY) as made:
        await made.ready("first", "second")
        for _ in range(3):
            assert await made.answer() == first.answer
        async with unplugged(first):
            assert await made.answer() == second.answer
            assert not (await made.nodes())["first"]["ready"]
        await made.ready("first", "second")
        assert await made.answer() == first.answer


async def test_behind_a_tag_one_answers_for_the_other(
    edge: Member, first: Machine, second: Machine, tmp_path: Path
) -> None:
    async with front(edge, (first, second), tmp_path, {"any": {"node": "tag:gpu"}}) as made:
        await made.ready("any/gpu-1", "any/gpu-2")
        for one, other in ((first, second), (second, first)):
            await one.member.down()
            assert await made.answer() == other.answer
            await one.member.up()
            await made.ready("any/gpu-1", "any/gpu-2")
