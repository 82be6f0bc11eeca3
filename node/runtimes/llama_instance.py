"""One model in memory: a child process that holds it, watched, and started again when it dies."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal, NoReturn

from loguru import logger

from node.runtimes.client import Client
from node.runtimes.fields import number, rows, table
from node.runtimes.gguf import Header, NotGGUFError
from node.runtimes.llama_child import Order
from node.runtimes.llama_cpp import LlamaCpp
from node.runtimes.llama_process import ChildFailed, LlamaProcess
from node.runtimes.model_file import read_model
from node.runtimes.transport import Transport

RESTART_SECONDS = (0.25, 1.0, 2.0, 5.0, 10.0, 30.0)  # before each start after a failure; the last one stays
LASTING_SECONDS = 60.0  # between starts when only the owner can help, by installing something
STEADY_SECONDS = 60.0  # a child that lived this long did not fail at starting
FILE_POLL_SECONDS = 1.0  # a missing or broken model file is looked at again
PROGRESS_SECONDS = 1.0
LOAD_SECONDS = 3600.0  # 100 GB from a slow disk
LOOKED_FOR = " Name a GGUF file with --model PATH (node.runtime.model); it is looked for again every second."
ASK_SECONDS = 5.0
_ALMOST = 0.99  # once all is read, llama.cpp still makes its buffers and warms up

# "failed": it is tried again in a while, or, with ``ended``, it is not.
State = Literal["loading", "loaded", "failed"]


class FileProblem(ChildFailed):
    """The model file cannot be used. ``str(error)`` says why."""


class LlamaInstance:
    """A process for ``order``, a model of ``size`` bytes. ``stop()`` belongs to whoever called ``start``.

    ``persistent``: it is tried again however often it fails. Otherwise a first start that fails is the end of it,
    unless there is a ``fallback``, what worked before; once it was loaded it is always started again. ``on_change`` is
    called whenever ``state`` or ``reason`` changed.
    """

    def __init__(
        self,
        order: Order,
        size: int,
        transport: Transport,
        command: Sequence[str],
        on_change: Callable[[], None],
        *,
        persistent: bool = False,
    ) -> None:
        self.order = order
        self.size = size
        self.fallback: Order | None = None
        self.state: State = "loading"
        self.reason = _progress(order, size, 0)
        self.progress: float | None = None
        self.context = order.context
        self.gpu = False
        self.ended = False
        self.ailing = False  # it failed since it was loaded last
        self.persistent = persistent
        self._transport = transport
        self._command = command
        self._on_change = on_change
        self._child: LlamaProcess | None = None
        self._dialect: LlamaCpp | None = None
        self._task: asyncio.Task[None] | None = None
        self._retry = asyncio.Event()
        self._refused: ChildFailed | None = None  # why not what was asked for, while the fallback starts
        # What became of the start that is under way, for those who wait for it.
        self._outcome: asyncio.Future[ChildFailed | None] = asyncio.get_running_loop().create_future()

    @property
    def pid(self) -> int | None:
        """The child's process id while there is one."""
        return self._child.pid if self._child is not None else None

    @property
    def dialect(self) -> LlamaCpp | None:
        """How it is spoken to; None while it is not loaded."""
        return self._dialect if self.state == "loaded" else None

    @property
    def address(self) -> str:
        """Where it listens, http://HOST:PORT; "" before it does."""
        return self._dialect.client.root if self._dialect is not None else ""

    def start(self) -> None:
        self._task = asyncio.create_task(self._supervise(), name="llama-supervisor")

    async def stop(self) -> None:
        """End the child and wait for its end; idempotent. Its streams break."""
        task, self._task = self._task, None
        self.state, self.ended = "failed", True
        if task is not None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        self._settle(ChildFailed("It was unloaded before it was loaded. Load it again if it is wanted."))

    async def loaded(self) -> None:
        """Wait for the end of the start that is under way, or of the next one, which begins at once. Raises
        ChildFailed; with a fallback, once that was started."""
        if self.state == "failed" and not self.ended:
            if self._outcome.done():
                self._outcome = asyncio.get_running_loop().create_future()
            self._retry.set()
        outcome = await asyncio.shield(self._outcome)
        if outcome is not None:
            raise outcome

    def reach(self, address: str) -> None:
        """Speak to it at ``address`` (http://HOST:PORT) from now on."""
        headers = {"Authorization": f"Bearer {self.order.key}"}
        self._dialect = LlamaCpp(Client(self._transport, f"{address}/v1", headers, ASK_SECONDS))

    async def _supervise(self) -> None:
        failures = 0
        while True:
            began = time.monotonic()
            failed = await self._attempt()
            if self.fallback is not None:
                self.order, self.fallback = self.fallback, None
                self.persistent, self._refused = True, failed
                continue
            self.ended = not self.persistent
            missing = isinstance(failed, FileProblem)
            then = LOOKED_FOR if missing else "" if failed.lasting else " It is started again."
            if not self.ailing and not self.ended:
                logger.warning("model {} is not in memory: {}", self.order.alias, failed)
            self.ailing = True
            self._set("failed", str(failed) + ("" if self.ended else then))
            self._settle(failed)
            if self.ended:
                return
            if not missing:
                failures = 1 if time.monotonic() - began > STEADY_SECONDS else failures + 1
            with suppress(TimeoutError):
                async with asyncio.timeout(_pause(failed, failures)):
                    await self._retry.wait()

    async def _attempt(self) -> ChildFailed:
        """Why a run ended; whatever it is, the next one may go well."""
        try:
            await self._run_once()
        except ChildFailed as error:
            return error
        except Exception as error:
            return ChildFailed(_unexpected(error))

    async def _run_once(self) -> NoReturn:
        """From reading the file to the end of the child. Raises ChildFailed, always."""
        if self._outcome.done():
            self._outcome = asyncio.get_running_loop().create_future()
        self._retry.clear()
        self.size = (await asyncio.to_thread(read_header, Path(self.order.model))).size
        child = self._child = await LlamaProcess.spawn(self.order, self._command)
        try:
            await self._load(child)
            await self._become_loaded()
            await child.died()
        finally:
            self._child = None
            await child.stop()

    async def _load(self, child: LlamaProcess) -> None:
        """Await the child's address, telling how far it is. Raises ChildFailed."""
        began = time.monotonic()
        self.progress = None
        report = asyncio.create_task(child.report())
        try:
            while not report.done():
                seconds = time.monotonic() - began
                if seconds > LOAD_SECONDS:
                    raise ChildFailed(f"Loading {self.order.alias} took over {LOAD_SECONDS / 60:.0f} minutes.")
                share = await asyncio.to_thread(child.read_share, self.size)
                if share is not None:  # it falls again where the weights move on to a GPU
                    self.progress = max(self.progress or 0.0, min(share, _ALMOST))
                self._set("loading", _progress(self.order, self.size, seconds))
                await asyncio.wait({report}, timeout=PROGRESS_SECONDS)
            said = await report
        finally:
            report.cancel()
        self.gpu = said.get("gpu") is True
        self.reach(said["address"])

    async def _become_loaded(self) -> None:
        assert self._dialect is not None
        client = self._dialect.client
        try:
            reply = await client.ask(f"{client.base}/models")
            props = await client.ask(f"{client.root}/props")
        except OSError:
            raise ChildFailed("llama.cpp loaded the model but does not answer.") from None
        self._dialect.learn(self.order.alias, props.payload if isinstance(props.payload, dict) else {})
        for item in rows(reply.payload, "data"):
            self.context = number(table(item, "meta"), "n_ctx") or self.order.context
        self.persistent, self.fallback, self.progress = True, None, None
        self.ailing = False
        self._set("loaded", "")
        self._settle(None)

    def _settle(self, outcome: ChildFailed | None) -> None:
        refused, self._refused = self._refused, None
        if not self._outcome.done():
            self._outcome.set_result(refused or outcome)

    def _set(self, state: State, reason: str) -> None:
        self.state, self.reason = state, reason
        self._on_change()


def read_header(path: Path) -> Header:
    """The header of a model. Raises FileProblem."""
    try:
        return read_model(path)
    except FileNotFoundError as error:
        raise FileProblem(f"There is no model file at {error.filename}.") from None
    except OSError as error:
        file = error.filename or path
        raise FileProblem(f"The model file {file} cannot be read: {error.strerror}.") from None
    except NotGGUFError as error:
        raise FileProblem(f"{path} is no model: it {error}.") from None


def read_whole(path: Path) -> None:
    """Raises FileProblem, also when the file ends before its weights do."""
    if (missing := read_header(path).missing) > 0:
        raise FileProblem(f"{path} is no whole model: its last {missing} bytes are missing, so fetch it again.")


def _pause(failed: ChildFailed, failures: int) -> float:
    if isinstance(failed, FileProblem):
        return FILE_POLL_SECONDS
    return LASTING_SECONDS if failed.lasting else RESTART_SECONDS[min(failures, len(RESTART_SECONDS)) - 1]


def _unexpected(error: Exception) -> str:
    return f"llama.cpp could not be started: {type(error).__name__}: {error}."


def _progress(order: Order, size: int, seconds: float) -> str:
    return f"Loading {order.alias} ({_size(size)}), {seconds:.0f} s so far."


def _size(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
