"""SGLang: one model per process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from types import MappingProxyType
from typing import Any

from node.runtime import DEFAULT_SLOTS, PARAMETERS, Api, Inference, RuntimeStream
from node.runtimes.client import Client
from node.runtimes.context_window import Windowed
from node.runtimes.dialect import Survey, described, kind_of
from node.runtimes.fields import number, rows, text
from node.runtimes.openapi import offered
from node.runtimes.pacing import MOST, Load, Pacing
from node.runtimes.prometheus_text import Samples
from node.runtimes.transport import Reply
from shared.contract.errors import ApiError
from shared.contract.snapshot import ModelInfo

ABORT_SECONDS = 1.0  # a neighbour answers at once; nobody waits longer for a courtesy
# Where a request may bring an id of its own, by which it can be aborted.
_NAMED: frozenset[Api] = frozenset({"chat", "completions"})


class SGLang(Windowed):
    name = "SGLang"
    kind = "sglang"
    places = ("http://127.0.0.1:30000/v1",)
    parameters = MappingProxyType(
        {name: name for name in PARAMETERS if name != "suffix"} | {"repeat_penalty": "repetition_penalty"}
    )

    def __init__(self, client: Client) -> None:
        super().__init__(client)
        self._apis: frozenset[Api] | None = None
        self._pacing: Pacing | None = None
        self._about: Mapping[str, Any] = {}

    @classmethod
    async def answers(cls, client: Client, models: Reply) -> bool:
        return models.owner == "sglang" or bool(text(await client.json("/get_model_info"), "model_path"))

    async def survey(self, items: list[dict[str, Any]]) -> Survey:
        if self._apis is None:
            self._apis = await offered(self.client)
        if self._pacing is None:
            self._pacing = Pacing(*await self._limits())
            self._about = await self.client.json("/model_info") or await self.client.json("/get_model_info")
        load = _load(Samples(await self.client.text("/metrics")))
        return Survey(
            tuple(self._model(item) for item in items),
            slots=self._pacing.saw(load) if load is not None else self._pacing.slots,
            apis=self._apis,
        )

    def _model(self, item: dict[str, Any]) -> ModelInfo:
        writes = self._about.get("is_generation") is not False
        sees = self._about.get("has_image_understanding") is True
        kind = kind_of(item["id"]) if writes else "embedding"
        return described(item, number(item, "max_model_len"), kind=kind, vision=sees)

    @asynccontextmanager
    async def stream(
        self, inference: Inference, model: ModelInfo, headers: Mapping[str, str]
    ) -> AsyncIterator[RuntimeStream]:
        """One that is left early is aborted by its id: closing its socket is noticed after 2 s, or not at all
        (sglang #34894)."""
        if inference.api not in _NAMED:
            async with super().stream(inference, model, headers) as stream:
                yield stream
            return
        name = headers["X-Request-Id"]
        over = False
        try:
            try:
                stream = await self.opened(inference, model, headers, {"rid": name})
            except ApiError:
                over = True  # it was refused
                raise
            try:
                yield stream
                over = stream.at_end
            finally:
                stream.close()
        finally:
            if not over:
                with suppress(OSError):
                    await self.client.ask(f"{self.client.root}/abort_request", {"rid": name}, ABORT_SECONDS)

    async def _limits(self) -> tuple[int, int]:
        """Slots to begin with, and the most that its schedulers run."""
        info = await self.client.json("/server_info") or await self.client.json("/get_server_info")
        most = sum(number(state, "effective_max_running_requests_per_dp") for state in rows(info, "internal_states"))
        return (most, most) if most else (DEFAULT_SLOTS, MOST)


def _load(samples: Samples) -> Load | None:
    """None where it was started without --enable-metrics."""
    running, waiting = samples.total("sglang:num_running_reqs"), samples.total("sglang:num_queue_reqs")
    if running is None or waiting is None:
        return None
    return Load(int(running), int(waiting), samples.total("sglang:token_usage") or 0.0)
