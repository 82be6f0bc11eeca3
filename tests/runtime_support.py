"""What the tests of runtimes share: a started runtime, its status as it changes, an answer read to its end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from node.runtime import Inference, Runtime, RuntimeStatus

DEMO = Path(__file__).parents[1] / "models" / "demo.gguf"
REQUEST = "req-0123456789"


def ask(model: str = "fake-model", content: str = "hello", *, max_tokens: int = 64, **parameters: Any) -> Inference:
    return Inference("chat", model, {"messages": [{"role": "user", "content": content}]}, max_tokens, parameters)


@asynccontextmanager
async def running(runtime: Runtime) -> AsyncIterator[Callable[[Callable[[RuntimeStatus], bool]], Any]]:
    """A started runtime, and a function that waits until its status is as wanted."""
    changed = asyncio.Event()
    await runtime.start(changed.set)

    async def until(wanted: Callable[[RuntimeStatus], bool]) -> RuntimeStatus:
        async with asyncio.timeout(10):
            while not wanted(runtime.status()):
                changed.clear()
                await changed.wait()
        return runtime.status()

    try:
        yield until
    finally:
        await runtime.close()


def is_ready(status: RuntimeStatus) -> bool:
    return status.state == "ready"


def is_unavailable(status: RuntimeStatus) -> bool:
    return status.state == "unavailable"


async def read_all(runtime: Runtime, inference: Inference) -> bytes:
    pieces = []
    async with runtime.stream(inference, REQUEST) as stream:
        while piece := await stream.read():
            pieces.append(piece)
    return b"".join(pieces)


async def poll(condition: Callable[[], bool | Awaitable[bool]], within: float = 10.0) -> None:
    """Wait for what gives no sign when it changes: a process, a file, a counter in another process."""
    async with asyncio.timeout(within):
        while True:
            found = condition()
            if found if isinstance(found, bool) else await found:
                return
            await asyncio.sleep(0.002)


def said(raw: bytes) -> str:
    """The text of an answer's events."""
    words = []
    for line in raw.decode().splitlines():
        if line.startswith("data: {"):
            choices = json.loads(line[6:])["choices"]
            words.append((choices[0]["delta"].get("content") or "") if choices else "")
    return "".join(words)
