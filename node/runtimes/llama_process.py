"""One run of ``llama_child``: started, waited for, explained when it dies, stopped."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import re
import signal
import sys
from collections import deque
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from node.runtimes import cpu
from node.runtimes.llama_child import Order
from shared.model_names import Shards

COMMAND = (sys.executable, "-P", "-m", "node.runtimes.llama_child")
_ROOT = Path(__file__).resolve().parents[2]
STOP_SECONDS = 2.0  # it ends itself at once when its stdin does, unless it is loading
_KEPT_LINES = 12  # llama.cpp says why first, and then up to ten times that it failed
_LINE_BYTES = 400
# After the start llama.cpp's error lines may quote a request; only those of a dying process are kept.
_DYING = re.compile(rb"GGML_ASSERT|CUDA error|out of memory|terminate called|what\(\):|vk::|ggml_abort", re.I)
_MAPPING = re.compile(r"[0-9a-f]+-[0-9a-f]+ ")  # the first line about each one
_LIBRARY = re.compile(r"lib[\w+.-]+\.so[\w.]*")
_OTHER_RUNTIME = "or use another runtime: --runtime URL (node.runtime.url)"


class ChildFailed(Exception):
    """The child could not start, or ended. ``str(error)`` says what happened, why, and what to do. ``lasting``: trying
    again soon will not help."""

    def __init__(self, reason: str, *, lasting: bool = False) -> None:
        super().__init__(reason)
        self.lasting = lasting


class LlamaProcess:
    """A running child. ``stop()`` belongs to whoever called ``spawn``."""

    def __init__(self, process: asyncio.subprocess.Process, order: Order) -> None:
        self._process = process
        self._order = order
        self._tail = StderrTail()
        self._reading = asyncio.create_task(self._read_stderr(), name="llama-stderr")

    @classmethod
    async def spawn(cls, order: Order, command: Sequence[str] = COMMAND) -> LlamaProcess:
        """Start a child and hand it ``order``. It gets none of our settings from the environment, and answers no signal
        of our terminal."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HEARTHLINK_")}
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *command, stdin=pipe, stdout=pipe, stderr=pipe, env={**environment, "PYTHONPATH": str(_ROOT)}
        )
        child = cls(process, order)
        assert process.stdin is not None
        process.stdin.write(json.dumps(dataclasses.asdict(order)).encode() + b"\n")
        return child

    @property
    def pid(self) -> int:
        return self._process.pid

    def read_share(self, size: int) -> float | None:
        """The share of the model's ``size`` bytes that is in memory so far, 0 to 1; None where the system does not
        tell. Blocking."""
        shards = Shards.of(self._order.model)
        files = {str(Path(self._order.model).with_name(Path(name).name)) for name in shards.files} if shards else set()
        read = resident(Path(f"/proc/{self.pid}/smaps"), files | {self._order.model})
        return min(read / max(size, 1), 1.0) if read is not None else None

    async def report(self) -> dict[str, Any]:
        """Wait for the line that says where it listens. Raises ChildFailed. The caller owns the deadline."""
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line:
            await self.died()
        message = json.loads(line)
        if "failed" in message:
            await self._reading
            raise self._refusal(message["failed"], message["message"])
        self._tail.started()
        return message

    async def died(self) -> NoReturn:
        """Wait for the end of the process, however long it lives. Raises ChildFailed, always."""
        code = await self._process.wait()
        with suppress(TimeoutError):
            async with asyncio.timeout(STOP_SECONDS):
                await asyncio.shield(self._reading)
        raise explain_exit(code, self._tail.last())

    async def stop(self) -> None:
        """End the child, by force when it does not listen; idempotent."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await self._process.wait()
        except TimeoutError:
            pass
        finally:
            if self._process.returncode is None:
                with suppress(ProcessLookupError):
                    self._process.kill()
        await self._process.wait()
        self._reading.cancel()
        with suppress(asyncio.CancelledError):
            await self._reading

    async def _read_stderr(self) -> None:
        assert self._process.stderr is not None
        while chunk := await self._process.stderr.read(4096):
            self._tail.feed(chunk)

    def _refusal(self, what: str, message: str) -> ChildFailed:
        if what == "package":
            return ChildFailed(
                "xllamacpp, which runs models inside the node, is not installed. Install hearthlink[embedded], "
                f"{_OTHER_RUNTIME}.",
                lasting=True,
            )
        if what == "library":
            return _library_missing(message)
        why = self._tail.last() or message
        return ChildFailed(
            f"llama.cpp could not load {self._order.model}: {why} Check that the file is whole, of a kind that "
            f"llama.cpp knows, and fits into memory (less node.runtime.context helps), {_OTHER_RUNTIME}."
        )


def resident(smaps: Path, files: Collection[str]) -> int | None:
    """Bytes of ``files`` that a process has in memory, from its ``smaps`` (proc_pid_smaps(5)); None without them."""
    wanted, kib = False, 0
    try:
        with smaps.open(errors="replace") as lines:
            for line in lines:
                if _MAPPING.match(line):
                    wanted = line.rstrip("\n").split(maxsplit=5)[5:] in [[file] for file in files]
                elif wanted and line.startswith("Rss:"):
                    kib += int(line.split()[1])
    except OSError:
        return None
    return kib * 1024


def explain_exit(code: int, last_line: str) -> ChildFailed:
    """Why a child ended with ``code`` (negative: a signal), for people."""
    if code == -signal.SIGILL:
        missing = ", ".join(cpu.missing_features())
        lacks = f"this processor lacks {missing}" if missing else "it uses an instruction that this processor lacks"
        return ChildFailed(
            f"llama.cpp cannot run here: {lacks}. Use a runtime that was built for this machine: --runtime URL "
            "(node.runtime.url).",
            lasting=True,
        )
    if code == -signal.SIGKILL:
        return ChildFailed(
            "The system killed llama.cpp, most likely because memory ran out. Use a smaller model, or less "
            "node.runtime.context."
        )
    how = f"with {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
    said = f" It said: {last_line}" if last_line else ""
    return ChildFailed(f"llama.cpp ended {how}.{said}")


def _library_missing(message: str) -> ChildFailed:
    found = _LIBRARY.search(message)
    name = found.group() if found else ""
    if name.startswith("libgomp"):
        return ChildFailed(
            f"xllamacpp needs the system library {name}, which is missing. Install it with "
            f"`apt-get install libgomp1` (as root), {_OTHER_RUNTIME}.",
            lasting=True,
        )
    needs = f"the system library {name}" if name else f"something this system does not have ({message[:_LINE_BYTES]})"
    return ChildFailed(f"xllamacpp needs {needs}. Install it, {_OTHER_RUNTIME}.", lasting=True)


class StderrTail:
    """The last lines that llama.cpp wrote to stderr, and after ``started()`` only those of a dying process."""

    def __init__(self) -> None:
        self._lines: deque[bytes] = deque(maxlen=_KEPT_LINES)
        self._rest = b""
        self._started = False

    def started(self) -> None:
        self._started = True
        self._lines.clear()

    def feed(self, chunk: bytes) -> None:
        *lines, rest = (self._rest + chunk).split(b"\n")
        self._rest = rest[-_LINE_BYTES:]
        for line in lines:
            if line.strip() and (not self._started or _DYING.search(line)):
                self._lines.append(line[:_LINE_BYTES])

    def last(self) -> str:
        """The line that says most: the first of the last errors, without time stamp and level."""
        errors = [line for line in self._lines if b" E " in line] or list(self._lines)[-1:]
        if not errors:
            return ""
        text = errors[0].decode("utf-8", "replace")
        text = re.sub(r"^[\d.]+ [A-Z] ", "", text)
        return "".join(letter if letter.isprintable() else " " for letter in text).strip() + "."
