"""llama.cpp inside the node: a supervised child process with a GGUF, spoken to over loopback HTTP."""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

from node.runtimes import cpu
from node.runtimes.base import DEFAULT_SLOTS, Generation, RuntimeStatus, RuntimeStream, require_model
from node.runtimes.gguf import Header, NotGGUFError
from node.runtimes.llama_child import Order
from node.runtimes.llama_process import COMMAND, ChildFailed, LlamaProcess
from node.runtimes.model_file import read_model
from node.runtimes.prompt_size import count_prompt
from node.runtimes.request_body import request_body
from node.runtimes.servers import Surveyor
from node.runtimes.transport import Transport
from node.runtimes.watched import Watched
from shared.contract.errors import ApiError
from shared.contract.snapshot import RuntimeState
from shared.model_names import title

# Tokens per slot where nobody chose: what a chat needs, and 4 slots of it take some 2 GiB with an 8 B model.
DEFAULT_CONTEXT = 4096
RESTART_SECONDS = (0.25, 1.0, 2.0, 5.0, 10.0, 30.0)  # before each start after a failure; the last one stays
LASTING_SECONDS = 60.0  # between starts when only the owner can help, by installing something
STEADY_SECONDS = 60.0  # a child that lived this long did not fail at starting
FILE_POLL_SECONDS = 1.0  # a missing or broken model file is looked at again
PROGRESS_SECONDS = 1.0
LOAD_SECONDS = 3600.0  # 100 GB from a slow disk
ASK_SECONDS = 5.0


class _FileProblem(Exception):
    """The model file cannot be used. ``str(error)`` says why, and what to do."""


class EmbeddedRuntime(Watched):
    """A ``Runtime`` that loads ``model``, a GGUF file or the first of its shards, into a child process and starts it
    again when it dies.

    ``context`` is in tokens per slot; ``gpu_layers`` -1 puts on the GPU what fits; ``threads`` defaults to
    what ``cpu.inference_threads`` says. ``command`` starts the child.
    """

    kind = "embedded"

    def __init__(
        self,
        model: Path | None,
        *,
        context: int | None = None,
        slots: int | None = None,
        gpu_layers: int = -1,
        threads: int | None = None,
        command: Sequence[str] = COMMAND,
    ) -> None:
        super().__init__()
        self._path = model
        self._context = context
        self._slots = slots or DEFAULT_SLOTS
        self._gpu_layers = gpu_layers
        self._threads = threads or cpu.inference_threads()
        self._command = command
        self._name = re.sub(r"\s+", "-", title(model.name))[:256] if model is not None else ""
        self._headers = {"Authorization": f"Bearer {secrets.token_urlsafe(32)}"}
        self._status = self._say("starting", "The node is starting.")
        self._special_tokens: frozenset[str] = frozenset()
        self._address = ""
        self._child: LlamaProcess | None = None
        self._on_change: Callable[[], None] = lambda: None

    @property
    def special_tokens(self) -> frozenset[str]:
        return self._special_tokens

    @property
    def pid(self) -> int | None:
        """The child's process id while there is one."""
        return self._child.pid if self._child is not None else None

    def status(self) -> RuntimeStatus:
        return self._status

    async def start(self, on_change: Callable[[], None]) -> None:
        self._on_change = on_change
        self._begin(self._supervise, "llama-supervisor")

    @asynccontextmanager
    async def chat(self, generation: Generation, request_id: str) -> AsyncIterator[RuntimeStream]:
        require_model(self._status, generation.model)
        transport = cast(Transport, self._transport)
        headers = {**self._headers, "X-Request-Id": request_id}
        body = request_body(generation, "llama.cpp")
        stream = await transport.stream(f"{self._address}/v1/chat/completions", headers, body)
        try:
            yield stream
        finally:
            stream.close()

    async def count_prompt(self, generation: Generation) -> int | None:
        if self._transport is None or self._status.state != "ready":
            return None
        return await count_prompt(self._transport, f"{self._address}/v1", self._headers, generation)

    async def ask(self, path: str, body: object = None) -> object:
        """What llama.cpp answers on one of its own routes (/slots, /tokenize, ...). Raises ApiError or OSError."""
        require_model(self._status, self._name)
        transport = cast(Transport, self._transport)
        reply = await transport.ask(self._address + path, self._headers, ASK_SECONDS, body)
        if reply.status != 200:
            raise ApiError("runtime_error", f"llama.cpp answered HTTP {reply.status} on {path}.")
        return reply.payload

    async def busy_slots(self) -> int:
        """Slots that read a prompt or write an answer now."""
        return sum(bool(slot["is_processing"]) for slot in cast("list[dict[str, object]]", await self.ask("/slots")))

    async def _supervise(self, transport: Transport) -> None:
        failures = 0
        while True:
            began = time.monotonic()
            try:
                await self._run_once(transport)
            except _FileProblem as error:
                self._set("unavailable", str(error))
                await asyncio.sleep(FILE_POLL_SECONDS)
            except Exception as error:  # whatever it is, the next start may go well
                failed = error if isinstance(error, ChildFailed) else ChildFailed(_unexpected(error))
                self._set("unavailable", str(failed))
                failures = 1 if time.monotonic() - began > STEADY_SECONDS else failures + 1
                pause = LASTING_SECONDS if failed.lasting else RESTART_SECONDS[min(failures, len(RESTART_SECONDS)) - 1]
                await asyncio.sleep(pause)

    async def _run_once(self, transport: Transport) -> None:
        """From reading the file to the end of the child. Raises _FileProblem or ChildFailed, always."""
        header = await asyncio.to_thread(self._read_file)
        self._special_tokens = header.special_tokens
        child = self._child = await LlamaProcess.spawn(self._order(header), self._command)
        try:
            await self._load(child, header)
            await self._become_ready(transport)
            await child.died()
        finally:
            self._child = None
            await child.stop()

    def _read_file(self) -> Header:
        if self._path is None:
            raise _FileProblem(
                "No model is set, and this installation brings none. Name a GGUF file with --model PATH "
                "(node.runtime.model), or a runtime with --runtime URL (node.runtime.url)."
            )
        advice = "Name a GGUF file with --model PATH (node.runtime.model); it is looked for again every second."
        try:
            return read_model(self._path)
        except FileNotFoundError as error:
            raise _FileProblem(f"There is no model file at {error.filename}. {advice}") from None
        except OSError as error:
            file = error.filename or self._path
            raise _FileProblem(f"The model file {file} cannot be read: {error.strerror}. {advice}") from None
        except NotGGUFError as error:
            raise _FileProblem(f"{self._path} is no model: it {error}. {advice}") from None

    def _order(self, header: Header) -> Order:
        trained = header.context or DEFAULT_CONTEXT
        return Order(
            model=str(self._path),
            alias=self._name,
            slots=self._slots,
            context=min(self._context or DEFAULT_CONTEXT, trained),
            threads=self._threads,
            gpu_layers=self._gpu_layers,
            parameters=header.active_parameters,
            key=self._headers["Authorization"].removeprefix("Bearer "),
        )

    async def _load(self, child: LlamaProcess, header: Header) -> None:
        """Await the child's address, telling how long it has been loading. Raises ChildFailed."""
        began = time.monotonic()
        report = asyncio.create_task(child.report())
        try:
            while not report.done():
                seconds = time.monotonic() - began
                if seconds > LOAD_SECONDS:
                    raise ChildFailed(
                        f"Loading {self._name} took over {LOAD_SECONDS / 60:.0f} minutes; starting again."
                    )
                self._set("loading", f"Loading {self._name} ({_size(header.size)}), {seconds:.0f} s so far.")
                await asyncio.wait({report}, timeout=PROGRESS_SECONDS)
            self._address = (await report)["address"]
        finally:
            report.cancel()

    async def _become_ready(self, transport: Transport) -> None:
        surveyor = Surveyor(transport, f"{self._address}/v1", self._headers, ASK_SECONDS)
        try:
            survey = await surveyor.look("llama.cpp")
        except OSError:
            raise ChildFailed("llama.cpp loaded the model but does not answer; it is started again.") from None
        self._set_status(RuntimeStatus("ready", "", survey.models, self._name, self._slots))

    def _say(self, state: RuntimeState, reason: str) -> RuntimeStatus:
        return RuntimeStatus(state, reason, default_model=self._name, slots=self._slots)

    def _set(self, state: RuntimeState, reason: str) -> None:
        self._set_status(self._say(state, reason))

    def _set_status(self, status: RuntimeStatus) -> None:
        if status != self._status:
            self._status = status
            self._on_change()


def _unexpected(error: Exception) -> str:
    return f"llama.cpp could not be started: {type(error).__name__}: {error}. It is tried again."


def _size(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
