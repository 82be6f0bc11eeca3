"""llama.cpp inside the node: each model in memory is a supervised child process, spoken to over loopback HTTP."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

from loguru import logger

from node.runtime import Inference, LoadConfig, Loaded, RuntimeStatus, RuntimeStream, require_model
from node.runtimes.dialect import names_of
from node.runtimes.embedded_status import APIS, TEXT, info_of, kind_of, require_api, state_of, what_is_missing
from node.runtimes.llama_cpp import LlamaCpp
from node.runtimes.llama_instance import FILE_POLL_SECONDS, PROGRESS_SECONDS, FileProblem, LlamaInstance, read_whole
from node.runtimes.llama_order import Habits, outcome
from node.runtimes.llama_process import COMMAND, ChildFailed
from node.runtimes.model_folder import ModelFile, ModelFolder, model_id
from node.runtimes.transport import Transport
from node.runtimes.watched import Watched
from shared.contract.errors import ApiError
from shared.contract.snapshot import ModelInfo, RuntimeState

SCAN_SECONDS = 5.0  # between two looks at the folder: a model that was pulled can be named this much later


class EmbeddedRuntime(Watched):
    """A ``Runtime`` that loads GGUF files: ``model``, the first of its shards if there are several, and what lies below
    ``folder``. Those of ``at_start`` (ids; without it the default model) are loaded at the start.

    ``default_model`` is the id that answers for those who name none; without it, or where it is not there, ``model``,
    else the first of the folder. ``habits`` say how models are loaded. ``command`` starts a child.
    """

    kind = "embedded"
    can_load = True
    evicts = False

    def __init__(
        self,
        model: Path | None,
        *,
        folder: Path | None = None,
        default_model: str | None = None,
        at_start: Collection[str] | None = None,
        habits: Habits | None = None,
        command: Sequence[str] = COMMAND,
    ) -> None:
        super().__init__()
        self._habits = habits or Habits()
        self._folder = ModelFolder(model, folder)
        self._wanted = default_model
        self._due = set(at_start) if at_start is not None else None  # to be loaded from the start on, and not yet there
        self._command = command
        self._files: dict[str, ModelFile] = {}
        self._instances: dict[str, LlamaInstance] = {}
        self._asked: set[str] = set()  # being loaded by ``load``: others need not hear that the node is not ready
        self._special_tokens: frozenset[str] = frozenset()
        self._problem = ""
        self._scanned = False
        self._scanning = asyncio.Lock()
        self._starting = asyncio.Lock()  # two who want one model get one process
        self._on_change: Callable[[], None] = lambda: None
        self._status = self._describe()

    @property
    def special_tokens(self) -> frozenset[str]:
        """Of all models: which one answers is decided after a request was read."""
        return self._special_tokens

    @property
    def pid(self) -> int | None:
        """The process id of the default model's child while there is one."""
        instance = self._instances.get(self._status.default_model)
        return instance.pid if instance is not None else None

    def status(self) -> RuntimeStatus:
        return self._status

    async def start(self, on_change: Callable[[], None]) -> None:
        self._on_change = on_change
        self._begin(self._supervise, "models-folder")

    @asynccontextmanager
    async def stream(self, inference: Inference, request_id: str) -> AsyncIterator[RuntimeStream]:
        model, dialect = self._answering(inference)
        headers = {**dialect.client.headers, "X-Request-Id": request_id}
        async with dialect.stream(inference, model, headers) as stream:
            yield stream

    async def ask(self, inference: Inference, request_id: str) -> dict[str, Any]:
        model, dialect = self._answering(inference)
        return await dialect.ask(inference, model, {**dialect.client.headers, "X-Request-Id": request_id})

    async def count_prompt(self, inference: Inference) -> int | None:
        instance = self._instances.get(inference.model)
        dialect = instance.dialect if instance is not None else None
        return await dialect.count_prompt(inference) if dialect is not None else None

    async def check(self, model: str) -> None:
        await self._checked((await self._found(model))[0])

    async def load(self, model: str, config: LoadConfig, tell: Callable[[float | None], None]) -> Loaded:
        file, transport = await self._found(model)
        self._asked.add(model)
        try:
            async with self._starting:
                instance = await self._holding(file, config, transport)
            await self._loaded(instance, tell)
        except ChildFailed as error:
            raise ApiError("runtime_error", _without_path(error, file), should_retry=False) from None
        finally:
            self._asked.discard(model)
            self._refresh()
        return outcome(config, instance.order, gpu=instance.gpu)

    def stand_down(self) -> None:
        self._due = set()

    async def unload(self, model: str) -> None:
        instance = self._instances.pop(model, None)
        if instance is not None:
            await instance.stop()
            self._refresh()

    def instance(self, model: str = "") -> LlamaInstance:
        """The one that holds ``model``, by default the default model. Raises ApiError while there is none."""
        name = model or self._status.default_model
        instance = self._instances.get(name)
        if instance is None or instance.dialect is None:
            require_model(self._status, name)
            raise ApiError("model_loading", "The model is not in memory just now. Try again in a few seconds.")
        return instance

    async def query(self, path: str, body: object = None) -> object:
        """What the default model's llama.cpp answers on one of its own routes (/slots, /tokenize, ...). Raises ApiError
        or OSError."""
        client = cast(LlamaCpp, self.instance().dialect).client
        reply = await client.ask(client.root + path, body)
        if reply.status != 200:
            raise ApiError("runtime_error", f"llama.cpp answered HTTP {reply.status} on {path}.")
        return reply.payload

    async def busy_slots(self) -> int:
        """The default model's slots that read a prompt or write an answer now."""
        return sum(bool(slot["is_processing"]) for slot in cast("list[dict[str, object]]", await self.query("/slots")))

    def _answering(self, inference: Inference) -> tuple[ModelInfo, LlamaCpp]:
        """Raises ApiError."""
        model = require_model(self._status, inference.model)
        require_api(model, inference.api)
        return model, cast(LlamaCpp, self.instance(inference.model).dialect)

    async def _supervise(self, transport: Transport) -> None:
        """Watch the folder, and load what is to be there from the start as soon as it can be."""
        try:
            while True:
                await self._scan()
                self._start_due(transport)
                self._refresh()
                await asyncio.sleep(FILE_POLL_SECONDS if self._problem else SCAN_SECONDS)
        finally:
            await asyncio.gather(*(instance.stop() for instance in self._instances.values()))

    def _start_due(self, transport: Transport) -> None:
        """What is to be there from the start, once some of it can be; the default where nothing of it exists."""
        due = self._due
        if due is None or (due and self._files and due.isdisjoint(self._files)):
            due = {default} if (default := self._default()) else None
        there = (due or set()) & self._files.keys()
        for name in sorted(there - self._instances.keys()):
            self._start(self._files[name], LoadConfig(), transport, persistent=True)
        self._due = set() if there else due

    async def _scan(self) -> None:
        async with self._scanning:
            files = await asyncio.to_thread(self._folder.scan)
            self._problem = await asyncio.to_thread(what_is_missing, self._folder, files)
        self._scanned = True
        for name, instance in self._instances.items():
            if not instance.ended and name in self._files:
                files.setdefault(name, self._files[name])  # in memory, whatever became of its file
        if files != self._files:
            if not self._files and self._wanted is not None and self._wanted not in files:
                text = "node.runtime.default_model is {!r}, which is not there: {} answers in its place. There are: {}"
                logger.warning(text, self._wanted, self._default_of(files) or "none", names_of(tuple(files)))
            self._files = files
            self._special_tokens = frozenset().union(*(file.header.special_tokens for file in files.values()))

    def _default(self) -> str:
        return self._default_of(self._files)

    def _default_of(self, files: Mapping[str, ModelFile]) -> str:
        if self._wanted is not None and self._wanted in files:
            return self._wanted
        if self._folder.first is not None:
            return model_id(self._folder.first)
        return next((file.id for file in files.values() if kind_of(file, self._habits) == "chat"), "")

    def _start(
        self, file: ModelFile, config: LoadConfig, transport: Transport, *, persistent: bool = False
    ) -> LlamaInstance:
        order = self._habits.order(file, secrets.token_urlsafe(32), config)
        size = file.header.size
        instance = LlamaInstance(order, size, transport, self._command, self._refresh, persistent=persistent)
        self._instances[file.id] = instance
        instance.start()
        return instance

    async def _found(self, model: str) -> tuple[ModelFile, Transport]:
        """Raises ApiError."""
        if model not in self._files and self._transport is not None:
            await self._scan()  # it may have been pulled this moment
            self._refresh()
        file, transport = self._files.get(model), self._transport
        if file is None or transport is None:
            if (why := self._folder.unfit.get(model)) is not None:
                raise ApiError("runtime_error", f"{model} is no model: its file {why}.", should_retry=False)
            require_model(self._status, model)
            raise ApiError("node_unavailable", "The node is stopping. Try again when it runs.")
        return file, transport

    async def _holding(self, file: ModelFile, config: LoadConfig, transport: Transport) -> LlamaInstance:
        """The instance that holds the model or is loading it. Raises ApiError."""
        before = self._instances.get(file.id)
        if before is not None and not before.ended:
            wanted = self._habits.order(file, before.order.key, config) if config.given() else before.order
            if wanted == before.order:
                return before
        await self._make_way(file.id)
        await self._checked(file)
        return await self._replace(before, file, config, transport)

    async def _make_way(self, model: str) -> None:
        """End what is not in memory and would be tried again: there may be room for one only."""
        for name, instance in list(self._instances.items()):
            if name != model and instance.ailing:
                await self.unload(name)

    async def _checked(self, file: ModelFile) -> None:
        """Raises ApiError when the file is not what it was: before anything makes room for it."""
        try:
            await asyncio.to_thread(read_whole, file.path)
        except FileProblem as error:
            advice = f"{_without_path(error, file)} Put the file back, or load another model."
            raise ApiError("runtime_error", advice, should_retry=False) from None

    async def _replace(
        self, before: LlamaInstance | None, file: ModelFile, config: LoadConfig, transport: Transport
    ) -> LlamaInstance:
        """An instance that loads ``file``; the one there was is stopped first, and comes back if this one fails."""
        if before is None:
            return self._start(file, config, transport)
        fallback = before.order if before.state == "loaded" else None
        await before.stop()
        instance = self._start(file, config, transport)
        instance.fallback = fallback
        return instance

    async def _loaded(self, instance: LlamaInstance, tell: Callable[[float | None], None]) -> None:
        """Raises ChildFailed."""
        waiting = asyncio.ensure_future(instance.loaded())
        try:
            while not waiting.done():
                tell(instance.progress)
                await asyncio.wait({waiting}, timeout=PROGRESS_SECONDS)
            waiting.result()
        finally:
            waiting.cancel()

    def _refresh(self) -> None:
        status = self._describe()
        if status != self._status:
            self._status = status
            self._on_change()

    def _describe(self) -> RuntimeStatus:
        state, reason = self._state()
        default = self._default()
        found = [info_of(file, self._instances.get(file.id), self._habits) for file in self._files.values()]
        models = sorted(found, key=lambda model: model.id != default)
        apis = TEXT.union(*(APIS[model.kind] for model in models))
        slots = self._habits.slots_of(default)
        return RuntimeStatus(state, reason, tuple(models), default, slots, apis, frozenset(LlamaCpp.parameters))

    def _state(self) -> tuple[RuntimeState, str]:
        if not self._scanned:
            return "starting", "The node is starting."
        if self._asked:  # requests wait for what is being loaded because it was named
            return "ready", ""
        return state_of(self._instances, self._files, self._problem)


def _without_path(error: ChildFailed, file: ModelFile) -> str:
    """For whoever asked, who need not know where files lie."""
    return str(error).replace(str(file.path), file.id)
