"""One of the processes that ``up`` starts: its log as it comes, why it ended, how it is stopped."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any

_MAX_LINE = 1 << 20  # far above the longest line of a log
# Seconds past its own drain that a child gets to close; then it is killed.
_CLOSE_SECONDS = 10.0
# What the rest of the output may take after the end of the process; somebody else may hold the pipe.
_LAST_LINES_SECONDS = 1.0
_SHOWN_LEVELS = frozenset({"WARNING", "ERROR", "CRITICAL"})

# Called with (name of the child, level, message) for what a person should see.
Show = Callable[[str, str, str], None]


class Child:
    """A running deployable. ``stop`` or ``kill`` belongs to whoever called ``start``."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, show: Show, *, verbose: bool) -> None:
        self.name = name
        self._process = process
        self._show = show
        self._verbose = verbose
        self._last_words = ""  # its own sentence about why it cannot go on
        self._raw = ""  # the last line that is none of the log: the end of a traceback
        self._reading = asyncio.create_task(self._read(), name=f"{name}-log")

    @classmethod
    async def start(cls, name: str, environment: Mapping[str, str], show: Show, *, verbose: bool) -> Child:
        """Start ``python -m hearthlink.tied NAME``. It has a session of its own: a Ctrl-C is for us, who then ask it to
        stop; a second SIGINT would cut its drain."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "hearthlink.tied", name),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env=environment,
            start_new_session=True,
            limit=_MAX_LINE,
        )
        return cls(name, process, show, verbose=verbose)

    @property
    def ended(self) -> bool:
        return self._process.returncode is not None

    async def wait(self) -> None:
        """Until the process has ended and its last lines are read."""
        await self._process.wait()
        await asyncio.wait({self._reading}, timeout=_LAST_LINES_SECONDS)

    async def stop(self, drain_seconds: float) -> None:
        """Ask it to stop, wait for its drain, kill it when that takes longer than promised."""
        self._signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(drain_seconds + _CLOSE_SECONDS):
                await self._process.wait()
        except TimeoutError:
            self.kill()
        await self.wait()
        self._reading.cancel()

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        # Not asyncio's terminate() and kill(): they look first whether the process has ended, and so take its exit
        # status from the loop, which then reports 255.
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, number)

    def why(self) -> str:
        """Why the process ended: a sentence or more, with what to do."""
        code = self._process.returncode or 0
        if self._last_words:
            return self._last_words
        if code < 0:
            return f"The {self.name} {_signalled(-code)}"
        if code == 0:
            return f"The {self.name} was stopped by somebody else. Start again."
        said = f" It said: {self._raw}" if self._raw else ""
        return f"The {self.name} failed (exit status {code}); `hearthlink up -v` shows its whole log.{said}"

    async def _read(self) -> None:
        assert self._process.stderr is not None
        while True:
            try:
                line = await self._process.stderr.readline()
            except ValueError:  # longer than any line of ours: left out
                continue
            if not line:
                return
            self._take(line.decode("utf-8", "replace").rstrip("\n"))

    def _take(self, line: str) -> None:
        record = _record(line)
        if record is None:
            self._take_raw(line)
            return
        level, message = str(record.get("level", "")), str(record.get("message", ""))
        refusal = f"the {self.name} cannot start: "
        if message.startswith(refusal):
            self._last_words = message.removeprefix(refusal)  # told by whoever waits for this process
        elif record["event"] == "log" and (self._verbose or level in _SHOWN_LEVELS):
            self._show(self.name, level, message)

    def _take_raw(self, line: str) -> None:
        """What is no log line: a sentence about settings, written before there was a log, or a traceback."""
        self._raw = line
        refusal = f"hearthlink {self.name}: "
        if line.startswith(refusal):
            self._last_words = line.removeprefix(refusal)
        elif self._verbose:
            self._show(self.name, "", line)


def _record(line: str) -> dict[str, Any] | None:
    """The fields of a log line, None for anything else."""
    if not line.startswith("{"):
        return None
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and "event" in record else None


def _signalled(number: int) -> str:
    """The rest of a sentence about a process that signal ``number`` ended."""
    if number == signal.SIGILL:
        from node.runtimes.cpu import missing_features

        lacks = ", ".join(missing_features())
        return (
            "was stopped by the system (SIGILL): it uses an instruction that this processor does not have"
            f"{f' (it lacks {lacks})' if lacks else ''}. Run it on a newer processor."
        )
    if number == signal.SIGKILL:
        return "was killed (SIGKILL), most likely because memory ran out. Free some, or use a smaller model."
    return f"was ended by {signal.Signals(number).name}. Start again; `hearthlink up -v` shows its whole log."
