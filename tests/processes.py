"""Edge and node as processes of their own, for signals, kill -9 and logs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from tests.pair import ANY_PORT, ORIGIN, LedgerRows, create_key, read_ledger
from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parent.parent
_URL = re.compile(r"https?://127\.0\.0\.1:\d+")


class Process:
    """``python -m edge`` or ``node``; stderr and stdout go to ``log``."""

    def __init__(self, module: str, child: asyncio.subprocess.Process, log: Path, skip: int) -> None:
        self.module = module
        self.child = child
        self.log = log
        self.urls: list[str] = []  # as the process said: the edge's public and ops listener, the node's only one
        self._skip = skip  # bytes that an earlier process wrote

    @classmethod
    async def start(cls, module: str, environ: Mapping[str, str], log: Path) -> Process:
        """Start and wait until it listens. Raises AssertionError with the log when it does not."""
        with log.open("ab") as out:
            skip = out.tell()
            child = await asyncio.create_subprocess_exec(
                sys.executable, "-m", module, cwd=ROOT, env=dict(environ), stdout=out, stderr=out
            )
        process = cls(module, child, log, skip)
        try:
            await wait_until(lambda: process._listens() or child.returncode is not None, 40)
            assert child.returncode is None, process.text()
        except BaseException:
            await process.kill()
            raise
        return process

    def _listens(self) -> bool:
        for line in self.text().splitlines():
            if f"{self.module} listens on" in line:
                self.urls = _URL.findall(line)
        return bool(self.urls)

    def text(self) -> str:
        """What this process has logged so far."""
        return self.log.read_bytes()[self._skip :].decode()

    def lines(self) -> list[dict[str, Any]]:
        """The log's JSON lines."""
        return [json.loads(line) for line in self.text().splitlines() if line.startswith("{")]

    @property
    def url(self) -> str:
        return self.urls[0]

    @property
    def ops_url(self) -> str:
        return self.urls[1]

    def signal(self, number: signal.Signals) -> None:
        self.child.send_signal(number)

    async def exit_status(self, seconds: float) -> int:
        async with asyncio.timeout(seconds):
            return await self.child.wait()

    async def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        with contextlib.suppress(ProcessLookupError):
            self.child.kill()
        await self.child.wait()


@dataclass(slots=True)
class Processes:
    """A pair of processes on one state folder. ``key`` is an owner's."""

    state: Path
    environ: dict[str, str]
    key: str
    node: Process
    edge: Process
    client: aiohttp.ClientSession

    @property
    def url(self) -> str:
        return self.edge.url

    def bearer(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}

    def ledger(self) -> LedgerRows:
        return read_ledger(self.state)

    async def healthy(self, seconds: float = 30.0) -> None:
        """Wait until a chat can be answered."""
        async with asyncio.timeout(seconds):
            while True:
                async with self.client.get(self.url + "/healthz") as response:
                    if response.status == 200:
                        return
                await asyncio.sleep(0.02)

    async def restart_edge(self) -> None:
        self.edge = await Process.start("edge", self.environ, self.edge.log)
        await self.healthy()


@asynccontextmanager
async def running_processes(
    runtime_url: str, state: Path, *, environ: Mapping[str, str] | None = None
) -> AsyncIterator[Processes]:
    """A node and an edge as processes until the block is left, then killed. ``environ`` has settings such as
    ``HEARTHLINK_EDGE__DRAIN_TIMEOUT``. The block begins when a chat can be answered."""
    variables = {
        "PATH": os.environ["PATH"],
        "HOME": str(state),
        "HEARTHLINK_STATE": str(state),
        "HEARTHLINK_LOGS__FORMAT": "json",
        "HEARTHLINK_NODE__LISTEN": ANY_PORT,
        "HEARTHLINK_NODE__RUNTIME__KIND": "openai",
        "HEARTHLINK_NODE__RUNTIME__URL": runtime_url,
        "HEARTHLINK_EDGE__LISTEN": ANY_PORT,
        "HEARTHLINK_EDGE__OPS_LISTEN": ANY_PORT,
        "HEARTHLINK_EDGE__ALLOWED_ORIGINS": ORIGIN,
        **(environ or {}),
    }
    key = create_key(state)
    async with contextlib.AsyncExitStack() as stack:
        node = await Process.start("node", variables, state / "node.log")
        stack.push_async_callback(node.kill)
        variables["HEARTHLINK_EDGE__UPSTREAMS__DEFAULT__URL"] = node.url.replace("http://", "ws://") + "/link"
        edge = await Process.start("edge", variables, state / "edge.log")
        client = await stack.enter_async_context(aiohttp.ClientSession(trust_env=False))
        processes = Processes(state, variables, key, node, edge, client)
        # Those that a test started in their place; a process that is left makes the loop wait for it without end.
        stack.push_async_callback(lambda: processes.edge.kill())
        stack.push_async_callback(lambda: processes.node.kill())
        await processes.healthy()
        yield processes
