"""``hearthlink VERB`` as a process of its own, and ``hearthlink up`` with everything it started."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.local_app import free_pair
from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parent.parent
COMMAND = (sys.executable, "-m", "hearthlink")
PYTHON_PATH = {"PYTHONPATH": str(ROOT)}
# Seconds: a start of the pair takes one on an idle machine.
PATIENCE = 120.0


@dataclass(frozen=True, slots=True)
class Finished:
    """How a verb ended."""

    status: int
    out: str
    err: str


def environment(state: Path, environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """What a verb sees: nothing of the machine's own settings and state."""
    base = {"PATH": os.environ["PATH"], "HOME": str(state), "HEARTHLINK_STATE": str(state)}
    return {**base, **PYTHON_PATH, **(environ or {})}


async def start(
    *arguments: str, state: Path, environ: Mapping[str, str] | None = None, stdin: bool = False
) -> asyncio.subprocess.Process:
    """Start a verb in the folder ``state``; with ``stdin`` there is a pipe to write to."""
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(
        *COMMAND,
        *arguments,
        stdin=pipe if stdin else asyncio.subprocess.DEVNULL,
        stdout=pipe,
        stderr=pipe,
        cwd=state,
        env=environment(state, environ),
    )


async def finish(process: asyncio.subprocess.Process, stdin: str | None = None, within: float = PATIENCE) -> Finished:
    """Wait for the end of ``process``, killed when that takes too long."""
    try:
        async with asyncio.timeout(within):
            out, err = await process.communicate(None if stdin is None else stdin.encode())
    finally:
        if process.returncode is None:
            process.kill()
    return Finished(process.returncode or 0, out.decode(), err.decode())


async def run(
    *arguments: str, state: Path, stdin: str | None = None, environ: Mapping[str, str] | None = None
) -> Finished:
    process = await start(*arguments, state=state, environ=environ, stdin=stdin is not None)
    return await finish(process, stdin)


def descendants(pid: int) -> dict[int, str]:
    """Every process below ``pid`` with its command line."""
    listing = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    rows = [(int(row[0]), int(row[1]), row[2]) for row in (line.split(None, 2) for line in listing.splitlines())]
    found: dict[int, str] = {}
    above = {pid}
    while below := {child: command for child, parent, command in rows if parent in above and child not in found}:
        found |= below
        above = set(below)
    return found


def is_alive(pid: int) -> bool:
    """Whether the process runs; one that is dead and not yet waited for does not."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return bool(state) and not state.startswith("Z")


def cpu_seconds(pid: int) -> float:
    """What a process has used of the processors so far; 0.0 where the system does not tell."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


class Up:
    """A running ``hearthlink up``. ``out`` and ``err`` are what it has printed so far."""

    def __init__(self, process: asyncio.subprocess.Process, state: Path) -> None:
        self.process = process
        self.state = state
        self.out = ""
        self.err = ""
        self.began = time.monotonic()
        self._reading = [asyncio.create_task(self._read(name)) for name in ("out", "err")]

    async def _read(self, name: str) -> None:
        stream = self.process.stdout if name == "out" else self.process.stderr
        assert stream is not None
        while chunk := await stream.read(65536):
            setattr(self, name, getattr(self, name) + chunk.decode())

    async def ready(self, within: float = PATIENCE) -> None:
        await wait_until(lambda: "Ctrl-C stops it." in self.out or self.ended, within, what=lambda: self.err)
        assert not self.ended, self.err

    @property
    def ended(self) -> bool:
        return self.process.returncode is not None

    @property
    def url(self) -> str:
        found = re.search(r"^Hearthlink answers at (\S+)$", self.out, re.MULTILINE)
        assert found, self.out
        return found[1]

    @property
    def command(self) -> str:
        """The line to try."""
        found = re.search(r"^  (\S*(?:curl|hearthlink|python\S*) .*)$", self.out, re.MULTILINE)
        assert found, self.out
        return found[1]

    def child(self, part: str) -> int:
        """Process id of the child whose command line has ``part``."""
        return next(pid for pid, command in descendants(self.process.pid).items() if part in command)

    async def stop(self, number: signal.Signals = signal.SIGINT, within: float = PATIENCE) -> int:
        """Signal it and wait for its end; the exit status."""
        if not self.ended:
            self.process.send_signal(number)
        return await self.end(within)

    async def end(self, within: float = PATIENCE) -> int:
        async with asyncio.timeout(within):
            status = await self.process.wait()
            await asyncio.gather(*self._reading)
        return status


@asynccontextmanager
async def running_up(
    *arguments: str, state: Path, environ: Mapping[str, str] | None = None, wait: bool = True
) -> AsyncIterator[Up]:
    """``hearthlink up`` on a port that nobody uses, with more ``arguments``, and gone with all its children when the
    block is left. ``--port 0`` would take one that the system gives to anybody, seconds before it listens there."""
    if "--port" not in arguments:
        arguments = ("--port", str(free_pair()), *arguments)
    up = Up(await start("up", *arguments, state=state, environ=environ), state)
    try:
        if wait:
            await up.ready()
        yield up
    finally:
        below = descendants(up.process.pid)
        with contextlib.suppress(TimeoutError):
            await up.stop()
        for pid in [up.process.pid, *below] if not up.ended else below:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
