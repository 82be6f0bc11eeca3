"""A pair with the real llama.cpp behind it, and a doorway in front of llama.cpp that sees what the node sends and when
the node is gone.

    async with real_pair(DEMO, state) as real:
        async with real.pair.post("/v1/chat", question("hi")) as response: ...
        passage = await real.door.chat(0)      # the first chat request that the node sent
        await passage.left()                   # the moment at which the node's side was closed
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from unittest import mock

from node.runtimes.embedded import EmbeddedRuntime
from tests.pair import Pair, running_pair
from tests.waiting import HANGS, wait_until

_CHAT = b"POST /v1/chat/completions HTTP"


@dataclass(slots=True, eq=False)
class Passage:
    """One chat request on its way through the doorway. Times are of the monotonic clock, in seconds."""

    request: bytearray = field(default_factory=bytearray)
    answer: bytearray = field(default_factory=bytearray)
    longest_pause: float = 0.0  # between two pieces of the answer: about what one batch takes
    _heard_at: float | None = None
    _left_at: float | None = None

    @property
    def messages(self) -> list[dict[str, str]]:
        """What the node sent; the request must be here as a whole."""
        return json.loads(bytes(self.request).partition(b"\r\n\r\n")[2])["messages"]

    async def left(self, seconds: float = HANGS) -> float:
        """When the node's side was closed, waiting for it."""
        await wait_until(lambda: self._left_at is not None, seconds)
        assert self._left_at is not None
        return self._left_at

    async def said(self, kind: bytes, times: int, seconds: float = 20.0) -> None:
        """Wait until llama.cpp has written ``kind`` so many times."""
        await wait_until(lambda: self.answer.count(kind) >= times, seconds, what=lambda: bytes(self.answer[-300:]))

    def heard(self, piece: bytes) -> None:
        now = time.monotonic()
        if self._heard_at is not None:
            self.longest_pause = max(self.longest_pause, now - self._heard_at)
        self._heard_at = now
        self.answer += piece

    def gone(self) -> None:
        self._left_at = self._left_at or time.monotonic()


class Doorway:
    """Carries every connection to ``port`` of this machine, byte for byte; ``chats`` are the chat requests so far."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.chats: list[Passage] = []
        self._open: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for writer in self._open.values():
            writer.transport.abort()
        await asyncio.gather(*self._open)

    async def chat(self, index: int) -> Passage:
        await wait_until(lambda: len(self.chats) > index)
        return self.chats[index]

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open[task] = writer
        task.add_done_callback(self._open.pop)
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.port)
        passages: list[Passage] = []  # llama.cpp ends a connection after a stream, so the last one is the only one
        answers = asyncio.create_task(self._answers(far_reader, writer, passages))
        try:
            with suppress(OSError):
                while piece := await reader.read(65536):
                    if piece.startswith(_CHAT):
                        passages.append(Passage())
                        self.chats.append(passages[-1])
                    if passages:
                        passages[-1].request += piece
                    far_writer.write(piece)
        finally:
            if passages:
                passages[-1].gone()
            answers.cancel()
            far_writer.transport.abort()
            writer.transport.abort()

    async def _answers(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, passages: list[Passage]
    ) -> None:
        with suppress(OSError):
            while piece := await reader.read(65536):
                if passages:
                    passages[-1].heard(piece)
                writer.write(piece)
        writer.close()


@dataclass(slots=True)
class RealPair:
    pair: Pair
    runtime: EmbeddedRuntime
    door: Doorway

    def without_door(self) -> None:
        """The node speaks to llama.cpp itself, and sees what a dead process looks like."""
        self.runtime.instance().reach(f"http://127.0.0.1:{self.door.port}")

    async def idle_after(self, since: float) -> float:
        """Seconds from ``since`` until llama.cpp has no slot at work."""

        async def idle() -> bool:
            return await self.runtime.busy_slots() == 0

        await until(idle, 60)
        return time.monotonic() - since

    async def prompt(self, messages: list[dict[str, str]]) -> str:
        """What llama.cpp's template makes of ``messages``."""
        answer: Any = await self.runtime.query("/apply-template", {"messages": messages})
        return answer["prompt"]

    async def control_tokens(self, messages: list[dict[str, str]]) -> list[str]:
        """The control tokens that llama.cpp reads in that prompt."""
        body = {"content": await self.prompt(messages), "parse_special": True, "with_pieces": True}
        answer: Any = await self.runtime.query("/tokenize", body)
        pieces = [token["piece"] for token in answer["tokens"]]  # a list of bytes where it is half a character
        return [piece for piece in pieces if isinstance(piece, str) and piece in self.runtime.special_tokens]


async def until(condition: Callable[[], Awaitable[bool]], seconds: float) -> None:
    """Wait for what must be asked for."""
    async with asyncio.timeout(seconds):
        while not await condition():  # noqa: ASYNC110 - llama.cpp tells nobody
            await asyncio.sleep(0.002)


@asynccontextmanager
async def real_pair(model: Path, state: Path, **node: Any) -> AsyncIterator[RealPair]:
    """Edge and node in front of ``model``, ready; ``node`` are settings of its section."""
    # llama.cpp's threads wait for each other spinning, and stand still when other tests want the cores too.
    with mock.patch.dict(os.environ, OMP_WAIT_POLICY="passive"):
        settings = {"runtime": {"kind": "embedded", "model": str(model)}, **node}
        async with running_pair(state=state, node=settings, wait=False) as pair:
            upstreams = pair.edge.services.upstreams
            await wait_until(lambda: upstreams.ready, 30, what=lambda: pair.node.services.runtime.status())
            runtime = pair.node.services.runtime
            assert isinstance(runtime, EmbeddedRuntime)
            async with Doorway(int(runtime.instance().address.rpartition(":")[2])) as door:
                runtime.instance().reach(door.url)
                yield RealPair(pair, runtime, door)
