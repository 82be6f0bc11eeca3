"""A runtime in this process whose loads a test can hold, watch and fail. It computes nothing: what it is for is which
model is in memory when (``node.runtime.Runtime``)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from node.runtime import Inference, LoadConfig, Loaded, RuntimeStatus, RuntimeStream
from shared.contract.errors import ApiError
from shared.contract.snapshot import ModelInfo, RuntimeState


class LoadableRuntime:
    """``log`` has "load A", "unload A" in their order. While ``gate`` is clear loads stand still; models in ``broken``
    cannot be loaded. ``most`` were in memory at once. ``also`` are other names and parts of the models: they come and
    go with them."""

    kind = "loadable"
    special_tokens = frozenset[str]()

    def __init__(
        self,
        *models: str,
        loaded: str = "",
        evicts: bool = False,
        can_load: bool = True,
        also: Sequence[ModelInfo] = (),
    ) -> None:
        self.can_load = can_load
        self.evicts = evicts
        self.log: list[str] = []
        self.configs: list[LoadConfig] = []
        self.broken: set[str] = set()
        self.spoilt: set[str] = set()  # which shows before a load
        self.stuck: set[str] = set()  # cannot be unloaded
        self.pulled: set[str] = set()  # there once somebody looks
        self.stood_down = False
        self.gate = asyncio.Event()
        self.gate.set()
        self.loading = asyncio.Event()
        self.started = False
        self.most = 0
        infos = tuple(ModelInfo(name, state="loaded" if name == loaded else "available") for name in models)
        self._status = RuntimeStatus("ready", models=(*infos, *also), default_model=loaded or models[0])
        self._on_change: Callable[[], None] = lambda: None

    def status(self) -> RuntimeStatus:
        return self._status

    async def start(self, on_change: Callable[[], None]) -> None:
        self.started = True
        self._on_change = on_change

    async def close(self) -> None:
        pass

    def set(self, model: str, state: Any) -> None:
        """As if it had been done in the runtime's own window."""
        models = tuple(replace(info, state=state) if info.home == model else info for info in self._status.models)
        self._status = replace(self._status, models=models)
        self.most = max(self.most, sum(info.state == "loaded" and info.home == info.id for info in models))
        self._on_change()

    def go(self, state: RuntimeState) -> Callable[[], None]:
        """Be as a runtime that is not there, in ``state`` and without models, until what is given is called."""
        before, self._status = self._status, replace(self._status, state=state, reason="Not there.", models=())

        def come() -> None:
            self._status = before
            self._on_change()

        return come

    @property
    def present(self) -> list[str]:
        return [info.id for info in self._status.models if info.state == "loaded" and info.home == info.id]

    @asynccontextmanager
    async def stream(self, inference: Inference, request_id: str) -> AsyncIterator[RuntimeStream]:
        raise ApiError("not_supported", "It computes nothing.")
        yield

    async def ask(self, inference: Inference, request_id: str) -> dict[str, Any]:
        raise ApiError("not_supported", "It computes nothing.")

    async def count_prompt(self, inference: Inference) -> int | None:
        return None

    async def check(self, model: str) -> None:
        if model in self.pulled:
            infos = (*self._status.models, ModelInfo(model, state="available"))
            self._status = replace(self._status, models=infos)
        if model in self.spoilt:
            raise ApiError("runtime_error", "The model is not whole.")

    async def load(self, model: str, config: LoadConfig, tell: Callable[[float | None], None]) -> Loaded:
        self.log.append(f"load {model}")
        self.configs.append(config)
        self.loading.set()
        tell(0.5)
        await self.gate.wait()
        if model in self.broken:
            raise ApiError("runtime_error", "The model is broken.")
        self.set(model, "loaded")
        given = tuple(config.given())
        return Loaded(
            tuple(name for name in given if name != "gpu_ratio"),
            tuple(name for name in given if name == "gpu_ratio"),
            ("Set the ratio by hand.",) if "gpu_ratio" in given else (),
        )

    async def unload(self, model: str) -> None:
        self.log.append(f"unload {model}")
        if model in self.stuck:
            raise ApiError("runtime_error", "The model cannot be unloaded.")
        self.set(model, "available")

    def stand_down(self) -> None:
        self.stood_down = True
