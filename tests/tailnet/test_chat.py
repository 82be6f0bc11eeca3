"""Chats end to end: a person's machine asks the edge at its public address, the edge asks the node through the tunnel,
the real runtime answers with the demo model. A runtime that speaks slowly shows what becomes of answers under way."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from shared.contract.sse import Decoder
from tests.fake_scripts import Speaking, normal, text
from tests.pair import question
from tests.tailnet.deployed import Deployed, edge_on, node_on
from tests.tailnet.member import Member
from tests.tailnet.runtime_on import RuntimeOn
from tests.tailnet.tailnet import Members
from tests.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

_SOON = 30.0
# Seconds in which the next request is answered after a change: the product's promise.
_PROMISED = 10.0


@pytest.fixture
def answers() -> Speaking:
    return Speaking(0.05)


@pytest_asyncio.fixture(loop_scope="module")
async def slow(members: Members, answers: Speaking) -> AsyncIterator[RuntimeOn]:
    """A runtime on the node's machine whose answers last until ``answers`` are enough."""
    async with RuntimeOn(members.gpu.machine, answers.script) as runtime:
        yield runtime


@dataclass(slots=True)
class Reading:
    """A streamed answer as it comes in: its text, and in how many pieces it came. ``task`` ends with it."""

    task: asyncio.Task[None] | None = None
    text: str = ""
    pieces: int = 0
    words: int = 0
    finished: bool = False
    errors: list[Any] = field(default_factory=list)

    async def take(self, response: aiohttp.ClientResponse) -> None:
        assert response.status == 200, await response.text()
        decoder = Decoder()
        async for piece in response.content.iter_any():
            self.pieces += 1
            for event in decoder.feed(piece):
                self._take(event.data)

    def _take(self, data: str) -> None:
        assert not self.finished, "nothing comes after the end"
        if data == "[DONE]":
            self.finished = True
            return
        payload = json.loads(data)
        if "error" in payload:
            self.errors.append(payload["error"])
        for choice in payload.get("choices", ()):
            if word := choice["delta"].get("content"):
                self.text += word
                self.words += 1

    async def reached(self, words: int) -> None:
        await wait_until(lambda: self.words >= words, _SOON, what=lambda: self)

    async def whole(self) -> str:
        """Its text, when it has come to its end."""
        assert self.task is not None
        async with asyncio.timeout(_SOON):
            await self.task
        assert (self.finished, self.errors) == (True, []), self
        return self.text

    async def ended(self) -> None:
        """Wait until it is whole, or has ended in the error for an answer that lost its node."""
        assert self.task is not None
        async with asyncio.timeout(_SOON):
            await self.task
        codes = [error["code"] for error in self.errors]
        assert (self.finished, codes) in ((True, []), (False, ["upstream_incomplete"])), self


class Caller:
    """A program on the phone that calls the edge at its public address, with a key."""

    def __init__(self, front: Deployed, client: aiohttp.ClientSession) -> None:
        self._url = f"http://{front.member.machine.address}:8700"
        self._headers = {"Authorization": f"Bearer {front.key()}"}
        self._client = client

    async def known(self) -> None:
        """Wait until the edge, which runs already, has seen the new key."""
        async with asyncio.timeout(_SOON):
            while True:
                async with self._client.get(f"{self._url}/v1/models", headers=self._headers) as response:
                    if response.status == 200:
                        return
                await asyncio.sleep(0.05)

    async def ask(self, **fields: Any) -> Any:
        """The JSON answer."""
        body = question("It's raining and I have two kids with me.", stream=False, **fields)
        async with (
            asyncio.timeout(_SOON),
            self._client.post(f"{self._url}/v1/chat", json=body, headers=self._headers) as response,
        ):
            assert response.status == 200, await response.text()
            return await response.json()

    async def answered(self, seconds: float) -> None:
        """Ask, again where the edge says that it cannot reach the node yet, until there is an answer."""
        body = question("It's raining and I have two kids with me.", stream=False)
        said: object = None
        try:
            async with asyncio.timeout(seconds):
                while True:
                    async with self._client.post(f"{self._url}/v1/chat", json=body, headers=self._headers) as response:
                        said = (response.status, await response.text())
                        if response.status == 200:
                            return
                        assert response.status == 503, said
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise AssertionError(f"not answered within {seconds} s: {said}") from None

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[Reading]:
        """A streamed answer that is read while the block runs; leaving it is leaving the answer."""
        reading = Reading()

        async def read() -> None:
            body = question("It's raining and I have two kids with me.", stream=True)
            async with self._client.post(f"{self._url}/v1/chat", json=body, headers=self._headers) as response:
                await reading.take(response)

        reading.task = asyncio.create_task(read())
        try:
            yield reading
        finally:
            reading.task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reading.task


@asynccontextmanager
async def served(members: Members, folder: Path, **node: Any) -> AsyncIterator[tuple[Caller, Deployed]]:
    """Edge and node on their machines, ready; what calls them from the phone, and the node. ``node`` are settings."""
    listen = f"{members.edge.machine.address}:8700"
    async with (
        node_on(members.gpu, folder, **node) as there,
        edge_on(members.edge, folder, {"gpu": {"node": "gpu"}}, listen=listen) as front,
        members.phone.machine.client() as client,
    ):
        caller = Caller(front, client)
        await front.ready()
        await caller.known()
        yield caller, there


@asynccontextmanager
async def relayed(members: Members) -> AsyncIterator[None]:
    """No UDP passes between the two machines, so that everything takes the relay."""
    edge, gpu = members.edge.machine, members.gpu.machine
    await edge.lose_udp_to(gpu)
    await gpu.lose_udp_to(edge)
    try:
        yield
    finally:
        await edge.deliver_udp_to(gpu)
        await gpu.deliver_udp_to(edge)


async def running(node: Deployed) -> int:
    """How many answers the node's own health says are under way."""
    connector = aiohttp.UnixConnector(str(node.state / "node.sock"))
    async with aiohttp.ClientSession(connector=connector) as owner, owner.get("http://localhost/healthz") as response:
        return (await response.json())["running"]


async def test_events_arrive_one_by_one(members: Members, tmp_path: Path) -> None:
    """A model's words leave the phone's socket as they are said: an answer that somebody on the way had kept until its
    end would come in one piece."""
    async with served(members, tmp_path) as (caller, _), caller.reading() as reading:
        said = await reading.whole()
        assert len(said.split()) >= 6
        assert reading.words > 5 and reading.pieces > 5, reading


async def test_an_answer_in_one_piece(members: Members, tmp_path: Path) -> None:
    async with served(members, tmp_path) as (caller, _):
        answer = await caller.ask(temperature=0.0)
        assert len(answer["choices"][0]["message"]["content"].split()) >= 6
        assert answer["usage"]["completion_tokens"] > 5


async def test_the_relay_carries_a_chat_where_no_udp_passes(members: Members, tmp_path: Path) -> None:
    async with relayed(members):
        async with served(members, tmp_path) as (caller, _), caller.reading() as reading:
            assert len((await reading.whole()).split()) >= 6
        await _pings_by(members, "via DERP(test)")
    await _pings_by(members, f"via {members.gpu.machine.address}:41641")


async def _pings_by(members: Members, way: str) -> None:
    """Wait until pings from the edge to the node go that way."""
    address, said = await members.gpu.address(), ""
    async with asyncio.timeout(_SOON):
        while way not in said:
            with contextlib.suppress(AssertionError):  # it says by its exit status that no direct path was found
                said = await members.edge.tailscale("ping", "--until-direct=false", "--c=1", address)


async def test_leaving_ends_the_work_of_the_runtime(members: Members, slow: RuntimeOn, tmp_path: Path) -> None:
    async with served(members, tmp_path, runtime=slow.settings) as (caller, node):
        async with caller.reading() as reading:
            await reading.reached(5)
            assert await running(node) == 1
        exchange = await slow.chat(0)
        await exchange.peer_left()
        assert exchange.outcome != "completed"
        async with asyncio.timeout(_SOON):
            while await running(node):  # noqa: ASYNC110 - no event tells of it
                await asyncio.sleep(0.05)


async def test_an_answer_under_way_survives_the_loss_of_the_direct_path(
    members: Members, slow: RuntimeOn, answers: Speaking, tmp_path: Path
) -> None:
    async with served(members, tmp_path, runtime=slow.settings) as (caller, _), caller.reading() as reading:
        await reading.reached(5)
        async with relayed(members):
            await _pings_by(members, "via DERP(test)")
            await reading.reached(reading.words + 5)
            answers.enough.set()
            assert [await reading.whole()] == answers.said


@pytest.mark.parametrize("side", ["edge", "gpu"])
async def test_an_answer_under_way_survives_tailscaled(
    members: Members, slow: RuntimeOn, answers: Speaking, tmp_path: Path, side: str
) -> None:
    """Killed and started again on either machine, it interrupts nothing: no word is lost or said twice."""
    member: Member = getattr(members, side)
    async with served(members, tmp_path, runtime=slow.settings) as (caller, _), caller.reading() as reading:
        await reading.reached(5)
        await member.kill()
        await member.start()
        await members.edge.meets(members.gpu)
        assert not reading.finished, "it ran while tailscaled was away"
        await reading.reached(reading.words + 5)
        answers.enough.set()
        assert [await reading.whole()] == answers.said
        assert len(slow.chats) == 1


@pytest.mark.parametrize("side", ["edge", "gpu"])
async def test_the_next_request_is_answered_after_a_new_login(
    members: Members, slow: RuntimeOn, tmp_path: Path, side: str
) -> None:
    """A machine has other addresses then. The answer under way lies between the old ones, so that it cannot go on: if
    it was not over before, it ends in an error that says so, and is never left hanging."""
    member: Member = getattr(members, side)
    async with served(members, tmp_path, runtime=slow.settings) as (caller, _), caller.reading() as reading:
        await reading.reached(5)
        slow.script = normal(3)
        old = await member.address()
        await member.login_anew()
        assert await member.address() != old
        await members.edge.meets(members.gpu)
        await caller.answered(_PROMISED)
        await reading.ended()
        assert text(reading.words) == reading.text, "no word before the end was lost or said twice"
