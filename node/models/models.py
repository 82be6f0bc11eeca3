"""The models of the node: what a name means, which model is in memory, and what is added to requests for it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from loguru import logger

from node.models.absent import doubts
from node.models.defaults import Defaults, load_config, wire_names
from node.models.kept import Kept, KeptFile
from node.models.memory import Memory, OnLoading, Publish
from node.models.wishes import NO_SETTINGS, Wishes
from node.runtime import LoadConfig, Loaded, Runtime, RuntimeStatus
from shared.contract.errors import ApiError
from shared.contract.snapshot import ModelInfo
from shared.settings_models import ModelSettings

YIELDED = "The owner of the machine has taken its GPU back for a while; `hearthlink model resume` ends that."
# To callers, who learn nothing of the machine.
AWAY = "The owner of the machine has taken its GPU back for a while. Try again later."

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Brought:
    """What became of an owner's load. ``status`` is "loaded", "already_loaded", or "activated" where the runtime has no
    way to load. ``loaded`` says what of the configuration was applied."""

    status: str
    loaded: Loaded


class Models:
    """``settings`` are ``[node.models.NAME]``; ``idle_unload`` is in seconds. ``kept`` is a file for what the owner
    decides while the node runs, None keeps nothing. Owned by ``node.app``, which closes it before the runtime."""

    def __init__(
        self,
        runtime: Runtime,
        settings: Mapping[str, ModelSettings] = NO_SETTINGS,
        *,
        idle_unload: float | None = None,
        kept: Path | None = None,
        publish: Publish = lambda kind, **fields: None,
    ) -> None:
        self._runtime = runtime
        self._wishes = Wishes(settings, idle_unload)
        self._file = KeptFile(kept)
        self._publish = publish
        self._memory = Memory(runtime, self._wishes.config, self._wishes.together, publish)
        self._on_change: Callable[[], None] = lambda: None
        self._started = False
        self._restoring: asyncio.Task[None] | None = None
        self._another = asyncio.Event()  # another status
        self._doubted = False  # whether it was said which names in the settings and the file are no model's
        self._shown: tuple[RuntimeStatus, Kept, RuntimeStatus] | None = None  # what ``status`` was made of, and gave
        self._acting = asyncio.Lock()  # one act of the owner at a time changes what is kept
        self._acts: set[asyncio.Task[Any]] = set()

    async def start(self, on_change: Callable[[], None]) -> None:
        """Read what is kept and start the runtime, unless its owner had it yielded; models that the owner had loaded
        are loaded as soon as it is ready."""
        self._wishes.take(await asyncio.to_thread(self._file.read))
        self._on_change = on_change
        if self._kept.yielded:
            on_change()
        else:
            await self._start_runtime()

    async def close(self) -> None:
        """End what still loads. The runtime stays open."""
        if self._restoring is not None:
            self._restoring.cancel()
            await asyncio.gather(self._restoring, return_exceptions=True)
        await self._memory.close()
        await asyncio.gather(*self._acts, return_exceptions=True)

    # What is there.

    @property
    def yielded(self) -> bool:
        return self._kept.yielded

    @property
    def active(self) -> str:
        """The model that was activated, "" without."""
        return self._kept.active

    @property
    def inference(self) -> Mapping[str, Any]:
        """``defaultInference`` of the active model, as it was given."""
        return self._kept.inference

    def status(self) -> RuntimeStatus:
        """The runtime's, as callers may know it: with aliases, with the default that the owner chose, and unavailable
        while it is yielded."""
        status, kept = self._runtime.status(), self._kept
        if self._shown is None or self._shown[0] is not status or self._shown[1] is not kept:
            shown = replace(status, models=self._wishes.listed(status), default_model=self._wishes.default(status))
            if kept.yielded:
                shown = replace(shown, state="unavailable", reason=YIELDED)
            self._shown = status, kept, shown
        return self._shown[2]

    def named(self, name: str | None) -> str:
        """The id of the model that ``name`` means: an alias, ``default``, None, or an id itself. Whether there is such
        a model is not looked at."""
        return self._wishes.named(name, self._runtime.status())

    def defaults(self, model: str) -> Defaults:
        """For requests that go to the model with this id."""
        return self._wishes.defaults(model)

    def config(self, model: str) -> LoadConfig:
        """How ``model`` is loaded: as the owner last did, else as the settings say."""
        return self._wishes.config(model)

    @property
    def _kept(self) -> Kept:
        return self._wishes.kept

    def users(self, model: str) -> int:
        """Answers that run now from the memory of ``model``."""
        return self._memory.users(model)

    def hold(self, model: str, on_loading: OnLoading) -> AbstractAsyncContextManager[None]:
        """``model`` is in memory, and stays there, while the block runs; it is loaded first where that is needed, for
        which ``on_loading`` is called now and then. Raises ApiError."""
        self.refuse_away()
        return self._memory.hold(model, on_loading)

    def refuse_away(self) -> None:
        """Raises ApiError ``node_unavailable`` while the owner has the GPU, for callers."""
        if self.yielded:
            raise ApiError("node_unavailable", AWAY)

    # What the owner does.

    async def activate(self, name: str, inference: Mapping[str, Any] | None) -> str:
        """Make the model ``name`` the default, with ``inference`` added to requests for it; its id. None keeps the
        inference of a model that is active already. Raises ApiError ``model_not_found``."""
        model = (await self._known(name)).id

        def decided(kept: Kept) -> Kept:
            stays = kept.inference if kept.active == model else {}
            return replace(kept, active=model, inference=stays if inference is None else inference)

        await self._act(self._decide(decided))
        self._publish("activated", model=model, parameters=sorted(self._kept.inference))
        return model

    async def load(self, name: str, config: LoadConfig, on_loading: OnLoading) -> Brought:
        """Get the model ``name`` into memory with ``config`` and what the settings say beside it. Raises ApiError
        ``model_not_found``, ``node_unavailable`` while yielded, and as ``Runtime.load``."""
        self._refuse_yielded()
        model = await self._known(name)
        given = config.given()
        if not self._runtime.can_load:
            return _by_hand(model, given, self._runtime.kind)
        home = model.home
        settings = self._wishes.settings.get(home)
        wanted = replace(load_config(settings) if settings is not None else LoadConfig(), **given) if given else None
        there = model.in_memory and (wanted is None or self._memory.loaded_as(home) == wanted)

        def decided(kept: Kept) -> Kept:
            configs = {**kept.configs, home: given} if given else kept.configs
            # Of a node that was yielded meanwhile nothing stays in memory, and all is to come back.
            stay = [name for name in kept.loaded or () if kept.yielded or self._stays(name)]
            return replace(kept, configs=configs, loaded=tuple(dict.fromkeys((*stay, home))))

        try:
            loaded = await self._memory.bring(home, "owner", on_loading, wanted)
        except ApiError:  # of a node that was yielded, ``resume`` does it
            await self._act(self._decide(lambda kept: decided(kept) if kept.yielded else kept))
            raise
        self._memory.release(home)
        await self._act(self._decide(decided))
        asked = Loaded(
            tuple(name for name in loaded.applied if name in given),
            tuple(name for name in loaded.ignored if name in given),
            loaded.workflow if given else (),
        )
        return Brought("already_loaded" if there else "loaded", asked)

    async def unload(self, name: str) -> tuple[str, bool]:
        """Take the model ``name`` out of memory once its answers have ended; its id, and whether it was there. Raises
        ApiError as ``load``."""
        known = await self._known(name)
        model, home = known.id, known.home
        if not self._runtime.can_load:
            raise ApiError(
                "not_supported", f"{self._runtime.kind} has no way to unload a model from outside. Unload it there."
            )
        present = self._memory.present
        gone = await self._memory.unload(model, "owner")

        def decided(kept: Kept) -> Kept:
            wanted = present if kept.loaded is None else kept.loaded
            known = self._runtime.status().model
            return replace(kept, loaded=tuple(name for name in wanted if name != home and known(name) is not None))

        if gone or home in (self._kept.loaded or ()):
            await self._act(self._decide(decided))
        return model, gone

    async def give_up(self, end_answers: Callable[[], Awaitable[None]]) -> list[str]:
        """Refuse requests from now on, also after a restart, and free the memory; the models that were in it.
        ``end_answers`` is called in between; whoever uses a model after it loses it. Raises ApiError as
        ``Runtime.unload``, once all were tried. Begun is begun, whether or not the caller waits; so is every act."""
        return await self._act(self._give_up(end_answers))

    async def resume(self, on_loading: OnLoading) -> list[str]:
        """Take requests again and load what was in memory; the models that were loaded. Raises ApiError as ``load``:
        requests are taken all the same."""
        await self._act(self._take_back())
        await self._until(lambda status: status.state != "starting")
        done = await self._restore(on_loading)
        self._refuse_yielded()  # again, meanwhile
        return done

    def tick(self, now: float) -> None:
        """Once a second, ``now`` being loop time: unload what is idle, and keep which model is to come back."""
        if self.yielded:
            return
        self._memory.unload_idle(now, self._wishes.idle_limit)
        status = self._runtime.status()
        if status.state == "ready" and self._runtime.can_load and not self._memory.present:
            self._remember(status.default_model)

    def changed(self) -> None:
        """The runtime's status is another one."""
        self._another.set()
        if not self.yielded:
            self._memory.noticed()
        status = self._runtime.status()
        if status.models and not self._doubted:
            self._doubted = True
            wanted = filter(None, (self.active, *(self._kept.loaded or ())))
            for doubt in doubts(self._wishes.settings, wanted, status.models, self._wishes.default(status)):
                logger.warning("{}", doubt)

    # Within.

    def _remember(self, default: str) -> None:
        """Nothing is in memory: a runtime that is looked at anew then has no default of its own."""
        if default != self._kept.default:
            self._begin(self._decide(lambda kept: replace(kept, default=default)))

    async def _start_runtime(self) -> None:
        self._started = True
        await self._runtime.start(self._on_change)
        if self._kept.loaded:
            self._restoring = asyncio.create_task(self._restore_when_ready(), name="models-restore")

    async def _restore_when_ready(self) -> None:
        await self._until(lambda status: status.state == "ready" or any(map(status.model, self._kept.loaded or ())))
        with suppress(ApiError):  # which the log has
            await self._restore(lambda model, progress: None)

    async def _until(self, wanted: Callable[[RuntimeStatus], bool]) -> None:
        while not wanted(self._runtime.status()):
            self._another.clear()
            await self._another.wait()

    async def _restore(self, on_loading: OnLoading) -> list[str]:
        """Models that are in memory now. Raises ApiError for the first that cannot be loaded, once all were tried."""
        done: list[str] = []
        failed: ApiError | None = None
        for model, config in self._to_restore() if self._runtime.can_load else ():
            if self.yielded:
                break
            try:
                await self._memory.bring(model, "owner", on_loading, config)
            except ApiError as error:
                failed = failed or error
            else:
                self._memory.release(model)
                done.append(model)
        if failed is not None and not self.yielded:
            raise failed
        return [model for model in done if self._stays(model)]

    def _to_restore(self) -> list[tuple[str, LoadConfig | None]]:
        """What was in memory and still exists, as its owner had it loaded; where nothing of it does, the default as it
        is."""
        status, wanted = self._runtime.status(), self._kept.loaded or ()
        if there := [model for model in wanted if status.model(model) is not None]:
            # Also one that is in memory: Ollama is told with each request how its owner had it loaded.
            return [(model, self._wishes.config(model)) for model in there]
        default = status.model(self._wishes.default(status))
        return [(default.home, None)] if wanted and default is not None else []

    async def _act(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Do ``work`` to its end, though the caller may leave: half of it may be on the disk by then."""
        return await asyncio.shield(self._begin(work))

    def _begin(self, work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        act = asyncio.create_task(work)
        self._acts.add(act)
        act.add_done_callback(self._acts.discard)
        return act

    async def _decide(self, decided: Callable[[Kept], Kept]) -> None:
        async with self._acting:
            await self._keep(decided(self._kept))

    async def _give_up(self, end_answers: Callable[[], Awaitable[None]]) -> list[str]:
        can = self._started and self._runtime.can_load
        async with self._acting:
            await self._memory.abandon(ApiError("node_unavailable", AWAY))
            if self._started:
                self._runtime.stand_down()
            if not self.yielded:
                present = tuple(self._memory.present) if can else ()
                await self._keep(replace(self._kept, yielded=True, loaded=present or self._kept.loaded))
                self._publish("yielded", models=list(present))
            await end_answers()
            return await self._memory.clear("owner") if can else []

    async def _take_back(self) -> None:
        async with self._acting:
            was = self.yielded
            self._memory.reopen()
            await self._keep(replace(self._kept, yielded=False))
            if was:
                self._publish("resumed", models=list(self._kept.loaded or ()))
            if not self._started:
                self._started = True
                await self._runtime.start(self._on_change)

    async def _keep(self, kept: Kept) -> None:
        if kept != self._kept:
            self._wishes.take(kept)
            await asyncio.to_thread(self._file.write, kept)
            self._on_change()

    def _refuse_yielded(self) -> None:
        if self.yielded:
            text = "The node is yielded: its GPU is its owner's. Take it back first with `hearthlink model resume`."
            raise ApiError("node_unavailable", text)

    async def _known(self, name: str) -> ModelInfo:
        """Raises ApiError ``model_not_found``, or ``runtime_error`` for what lies there and is no model."""
        model = self._runtime.status().model(self.named(name))
        if model is None:  # it may have been pulled this moment
            try:
                await self._runtime.check(self.named(name))
            except ApiError as error:
                if error.code == "runtime_error":
                    raise
            model = self._runtime.status().model(self.named(name))
        if model is None:
            text = "The node has no model of that name. GET /admin/models lists what there is."
            raise ApiError("model_not_found", text, param="modelKey")
        return model

    def _stays(self, model: str) -> bool:
        info = self._runtime.status().model(model)
        return info is not None and info.in_memory


def _by_hand(model: ModelInfo, given: Mapping[str, Any], kind: str) -> Brought:
    """For a runtime that has no way to load."""
    there = model.in_memory
    steps = [] if there and not given else [f"Load {model.id} in {kind} by hand."]
    if given:
        steps.append(f"Set {', '.join(wire_names(given))} there.")
    return Brought("already_loaded" if there else "activated", Loaded((), tuple(given), tuple(steps)))
