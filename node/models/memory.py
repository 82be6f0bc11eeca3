"""Which models are in memory: loaded when they are named, and making room for each other without losing a request.

    hold ── in memory ─────────────────────────────────────────────> used, until the block ends
      └──── not in memory ──> Coming ──> lock ──> room ──> load ──┘
                                          one at a time   └ others end first, new ones wait after PATIENCE

What is counted and closed is a model's home: other names of it, and its adapters, are in the same memory
(``ModelInfo.home``). One lock serialises all loads and unloads of the node. A model that must leave keeps answering
until its last answer has ended; if another one has waited for its place for PATIENCE, what is new for it waits too.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from loguru import logger

from node.runtime import LoadConfig, Loaded, Runtime
from shared.contract.errors import ApiError
from shared.contract.snapshot import ModelInfo

# What somebody who waits for a model hears: its name, and the progress from 0 to 1, None while it is not known.
OnLoading = Callable[[str, float | None], None]
By = Literal["owner", "request", "idle", "outside"]

# Seconds that a model in memory keeps taking new requests while another one waits for its place.
PATIENCE = 5.0
# Seconds in which a model that could not be loaded is not tried again for a request: each try costs the others theirs.
FAILED_FOR = 30.0
# Seconds between two words about the progress, to those who wait.
_TOLD_EVERY = 0.25


class Publish(Protocol):
    """As ``Events.publish``."""

    def __call__(self, kind: str, **fields: Any) -> None: ...


@dataclass(slots=True, eq=False)
class _Coming:
    """A load that waits or runs, with those who wait for it. ``exact``: a model that is there with another
    configuration is not what is wanted. ``began`` is loop time."""

    model: str
    config: LoadConfig
    exact: bool
    by: By
    began: float
    progress: float | None = None
    told_at: float = 0.0
    waiters: dict[asyncio.Future[Loaded], OnLoading] = field(default_factory=dict)
    task: asyncio.Task[None] | None = None

    def tell(self, progress: float | None) -> None:
        now = asyncio.get_running_loop().time()
        if progress == self.progress or (now - self.told_at < _TOLD_EVERY and progress != 1):
            return
        self.progress, self.told_at = progress, now
        for on_loading in self.waiters.values():
            on_loading(self.model, progress)


class Memory:
    """``config`` says how a model is loaded, ``together`` whether two may be in memory at once. ``close`` ends what
    still loads; the runtime stays its maker's."""

    def __init__(
        self,
        runtime: Runtime,
        config: Callable[[str], LoadConfig],
        together: Callable[[str, str], bool],
        publish: Publish,
    ) -> None:
        self._runtime = runtime
        self._config = config
        self._together = together
        self._publish = publish
        self._users: Counter[str] = Counter()
        self._coming: dict[str, _Coming] = {}
        self._closed_from: dict[str, float] = {}  # models that must leave: loop time from which new requests wait
        self._loaded_as: dict[str, tuple[LoadConfig, Loaded]] = {}
        self._failed: dict[str, tuple[float, ApiError]] = {}
        self._used_at: dict[str, float] = {}
        self._shut: ApiError | None = None  # why nothing is loaded now
        self._present: frozenset[str] | None = None  # as last seen, to notice what was done outside
        self._lock = asyncio.Lock()
        self._less = asyncio.Event()  # somebody stopped using, or waiting for, a model
        self._tasks: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        await self.abandon(ApiError("draining", "The node is stopping."))

    def users(self, model: str) -> int:
        """Answers that run now from the memory of ``model``."""
        return self._users[self.home(model)]

    def home(self, model: str) -> str:
        """As ``ModelInfo.home``."""
        info = self._info(model)
        return info.home if info is not None else model

    def loaded_as(self, model: str) -> LoadConfig | None:
        """How it was loaded, if it was by us."""
        known = self._loaded_as.get(self.home(model))
        return known[0] if known is not None else None

    @property
    def present(self) -> list[str]:
        """Models in memory, without other names and adapters."""
        return [model.id for model in self._runtime.status().models if model.in_memory and model.home == model.id]

    @asynccontextmanager
    async def hold(self, model: str, on_loading: OnLoading) -> AsyncIterator[None]:
        """As ``Models.hold``."""
        if not self._runtime.can_load:
            yield
            return
        home = self.home(model)  # now: while it waits the name may go
        if self._is_present(model) and not self._is_closed(home):
            self._users[home] += 1
        else:
            await self.bring(home, "request", on_loading)
        try:
            yield
        finally:
            self.release(home)

    async def bring(self, model: str, by: By, on_loading: OnLoading, config: LoadConfig | None = None) -> Loaded:
        """Have ``model``, a home, in memory, loaded as ``config`` says or as it is there; on return it is in use,
        until ``release``. Loads of one model at once are one load. Raises ApiError as ``Runtime.load``."""
        wanted = config if config is not None else self._config(model)
        while (coming := self._coming.get(model)) is not None and config is not None and coming.config != wanted:
            await asyncio.wait([self._task_of(coming)])
        if self._shut is not None:
            raise _again(self._shut)
        if coming is None:
            now = asyncio.get_running_loop().time()
            if by == "request" and (failed := self._failed.get(model)) is not None and now < failed[0]:
                raise _for_callers(failed[1])
            coming = self._begin(_Coming(model, wanted, config is not None, by, now))
        try:
            return await self._wait_for(coming, on_loading)
        except ApiError as error:
            raise (_for_callers(error) if by == "request" else error) from None

    def release(self, model: str) -> None:
        """A home is not used any more by one who used it."""
        self._users[model] -= 1
        if self._users[model] <= 0:
            del self._users[model]
        self._used_at[model] = asyncio.get_running_loop().time()
        self._less.set()

    async def unload(self, model: str, by: By) -> bool:
        """Take ``model`` out of memory once its answers have ended; False when it is not there. What asks for it
        meanwhile waits, and has it loaded again. Raises ApiError as ``Runtime.unload``."""
        async with self._lock:
            info = self._info(model)
            if info is None or not (info.in_memory or info.state == "loading"):  # or comes back by itself
                return False
            home = self.home(model)
            try:
                await self._emptied([home], asyncio.get_running_loop().time(), None)
                await self._drop(model, by)
            finally:
                self._closed_from.pop(home, None)
        return True

    async def abandon(self, error: ApiError) -> None:
        """End every load and begin none before ``reopen``, ``error`` being what those hear who want one."""
        self._shut = error
        for coming in list(self._coming.values()):
            _fail(coming, error)
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def reopen(self) -> None:
        """Load again what is asked for."""
        self._shut = None

    async def clear(self, by: By) -> list[str]:
        """Unload whatever is in memory, whoever uses it; their names. Raises ApiError as ``Runtime.unload``, once all
        were tried."""
        failed: ApiError | None = None
        async with self._lock:
            gone = [
                model.id
                for model in self._runtime.status().models
                if (model.in_memory or model.state == "loading") and model.home == model.id
            ]
            for model in gone:
                try:
                    await self._drop(model, by)
                except ApiError as error:
                    failed = failed or error
        if failed is not None:
            raise failed
        return gone

    def unload_idle(self, now: float, limit: Callable[[str], float | None]) -> None:
        """Unload what nobody used for as many seconds as ``limit`` says. ``now`` is loop time."""
        if not self._runtime.can_load:
            return
        for model in self.present:
            used_at = self._used_at.setdefault(model, now)
            seconds = limit(model)
            if seconds is None or self._users[model] or now - used_at < seconds or self._lock.locked():
                continue
            self._used_at[model] = now  # once, whatever comes of it
            self._run(self._unload_quietly(model))

    def noticed(self) -> None:
        """The runtime's status changed: tell of what was loaded or unloaded there and not here."""
        status = self._runtime.status()
        if status.state != "ready":
            return
        present = frozenset(self.present)
        before, self._present = self._present, present
        if before is None or self._lock.locked():
            return
        for model in sorted(present - before):
            self._publish("loaded", model=model, by="outside")
        for model in sorted(before - present):
            self._loaded_as.pop(model, None)
            self._publish("unloaded", model=model, by="outside")

    # Who uses what.

    def _is_present(self, model: str) -> bool:
        info = self._info(model)
        return info is not None and info.in_memory

    def _info(self, model: str) -> ModelInfo | None:
        return self._runtime.status().model(model)

    def _is_closed(self, model: str) -> bool:
        at = self._closed_from.get(model)
        return at is not None and asyncio.get_running_loop().time() >= at

    # One load.

    def _begin(self, coming: _Coming) -> _Coming:
        self._coming[coming.model] = coming
        coming.task = self._run(self._load(coming))
        return coming

    @staticmethod
    def _task_of(coming: _Coming) -> asyncio.Task[None]:
        assert coming.task is not None
        return coming.task

    def _run(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _wait_for(self, coming: _Coming, on_loading: OnLoading) -> Loaded:
        future: asyncio.Future[Loaded] = asyncio.get_running_loop().create_future()
        coming.waiters[future] = on_loading
        on_loading(coming.model, coming.progress)
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                self.release(coming.model)  # it was given to us in the same moment
            raise
        finally:
            coming.waiters.pop(future, None)
            self._less.set()

    async def _load(self, coming: _Coming) -> None:
        try:
            async with self._lock:
                loaded = await self._loaded(coming)
                if loaded is not None:
                    for future in list(coming.waiters):
                        if not future.done():
                            self._users[coming.model] += 1
                            future.set_result(loaded)
                self._present = frozenset(self.present)
        except ApiError as error:
            _fail(coming, error)
        except Exception:
            _fail(coming, ApiError("internal_error", "The model could not be loaded. The node's log says why."))
            raise
        finally:
            if self._coming.get(coming.model) is coming:
                del self._coming[coming.model]
            _fail(coming, ApiError("node_unavailable", "The load of the model was given up. Please try again."))

    async def _loaded(self, coming: _Coming) -> Loaded | None:
        """None when nobody waits any more."""
        known = self._loaded_as.get(coming.model)
        if self._is_present(coming.model) and (not coming.exact or (known is not None and known[0] == coming.config)):
            return known[1] if known is not None else Loaded()
        others = [] if self._runtime.evicts else self.present
        leaving = [model for model in others if model != coming.model and not self._together(model, coming.model)]
        again = [coming.model] if self._is_present(coming.model) else []  # another configuration breaks its streams
        gone: list[str] = []
        try:
            await self._runtime.check(coming.model)
            if not await self._emptied([*leaving, *again], coming.began + PATIENCE, coming):
                return None
            for model in leaving:
                await self._drop(model, coming.by)
                gone.append(model)
            return await self._load_now(coming)
        except ApiError as error:
            self._has_failed(coming, error)
            await self._put_back(gone, coming.by)
            raise
        finally:
            for model in (*leaving, *again):
                self._closed_from.pop(model, None)

    async def _emptied(self, models: Iterable[str], closed_from: float, coming: _Coming | None) -> bool:
        """Wait until nobody uses ``models``, and let nobody new in then; False when nobody waits for ``coming`` any
        more."""
        models = list(models)
        for model in models:
            self._closed_from[model] = closed_from
        while any(self._users[model] for model in models):
            if coming is not None and not coming.waiters:
                return False
            self._less.clear()
            await self._less.wait()
        for model in models:
            self._closed_from[model] = float("-inf")
        return coming is None or bool(coming.waiters)

    def _has_failed(self, coming: _Coming, error: ApiError) -> None:
        logger.error("model {} cannot be loaded: {}", coming.model, error.message)
        self._publish("load_failed", model=coming.model, by=coming.by, code=error.code)
        if coming.config == self._config(coming.model):  # what a request would be loaded with
            self._failed[coming.model] = (asyncio.get_running_loop().time() + FAILED_FOR, error)

    async def _load_now(self, coming: _Coming) -> Loaded:
        model, clock = coming.model, asyncio.get_running_loop().time
        began = clock()
        self._publish("load", model=model, by=coming.by)
        loaded = await self._runtime.load(model, coming.config, coming.tell)
        self._failed.pop(model, None)
        self._loaded_as[model] = (coming.config, loaded)
        self._used_at[model] = clock()
        logger.info("model {} is in memory after {:.1f} s (by: {})", model, clock() - began, coming.by)
        self._publish("loaded", model=model, by=coming.by, seconds=round(clock() - began, 3))
        return loaded

    async def _put_back(self, models: list[str], by: By) -> None:
        """What made room for a model that could not be loaded."""
        for model in models:
            config = self._config(model)
            try:
                loaded = await self._runtime.load(model, config, lambda progress: None)
            except ApiError as error:
                self._publish("load_failed", model=model, by=by, code=error.code)
            else:
                self._loaded_as[model] = (config, loaded)
                self._publish("loaded", model=model, by=by)

    async def _drop(self, model: str, by: By) -> None:
        home = self.home(model)
        await self._runtime.unload(model)
        self._loaded_as.pop(home, None)
        self._present = frozenset(self.present)
        logger.info("model {} is out of memory (by: {})", model, by)
        self._publish("unloaded", model=model, by=by)

    async def _unload_quietly(self, model: str) -> None:
        """For one that is idle; whoever came meanwhile keeps it."""
        async with self._lock:
            if self._users[model] or not self._is_present(model):
                return
            self._closed_from[model] = float("-inf")
            try:
                await self._drop(model, "idle")
            except ApiError as error:
                self._publish("error", model=model, code=error.code)
            finally:
                self._closed_from.pop(model, None)


def _fail(coming: _Coming, error: ApiError) -> None:
    for future in list(coming.waiters):
        if not future.done():
            future.set_exception(_again(error))


def _for_callers(error: ApiError) -> ApiError:
    """Why a model does not load may name files and what is in them: that is for its owner."""
    if error.code != "runtime_error":
        return _again(error)
    text = "The model could not be loaded; the node's log says why. Ask for another one, or try again later."
    return ApiError("runtime_error", text, should_retry=False)


def _again(error: ApiError) -> ApiError:
    """One that is raised time and again keeps every frame it passed: each hears of its own."""
    return ApiError.from_wire(error.to_wire())
