"""vLLM: one model per process, with its LoRA adapters; asleep, its GPU is free."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from types import MappingProxyType
from typing import Any

from node.runtime import DEFAULT_SLOTS, PARAMETERS, Api, Inference, LoadConfig, Loaded, RuntimeStream
from node.runtimes import load_errors
from node.runtimes.client import Client
from node.runtimes.context_window import Windowed
from node.runtimes.dialect import Survey, described, kind_of
from node.runtimes.fields import number, text
from node.runtimes.openapi import offered
from node.runtimes.pacing import Load, Pacing, Standstill
from node.runtimes.prometheus_text import Samples
from node.runtimes.transport import Reply
from shared.contract.errors import ApiError
from shared.contract.snapshot import ModelInfo

QUIET_SECONDS = 5.0  # for answers under way, before it is sent to sleep
SLEEP_SECONDS = 120.0  # weights move between GPU and RAM, some 10 GB a second
STUCK_SECONDS = 60.0  # without a token while requests wait: longer than any prompt takes
_WORKFLOW = (
    "Stop vLLM.",
    "Start `vllm serve` again with the options that say it: --max-model-len for the context, --gpu-memory-utilization"
    " for the share of the GPU.",
)


class VLLM(Windowed):
    """``can_load`` where it was started with --enable-sleep-mode and VLLM_SERVER_DEV_MODE=1: unloading sends it to
    sleep, loading wakes it."""

    name = "vLLM"
    kind = "vllm"
    places = ("http://127.0.0.1:8000/v1",)
    loads_unasked = True  # it has no other model, and sleeps because it was idle
    parameters = MappingProxyType(
        {name: name for name in PARAMETERS if name != "suffix"} | {"repeat_penalty": "repetition_penalty"}
    )

    def __init__(self, client: Client) -> None:
        super().__init__(client)
        self._apis: frozenset[Api] | None = None  # asked once, as long as it runs
        self._pacing: Pacing | None = None
        self._standstill = Standstill()
        self._answering = 0  # for the node; adapters share its sleep
        self._quiet = asyncio.Event()

    @classmethod
    async def answers(cls, client: Client, models: Reply) -> bool:
        return models.owner == "vllm"

    async def survey(self, items: list[dict[str, Any]]) -> Survey:
        asleep = (await self.client.json("/is_sleeping")).get("is_sleeping")
        self.can_load = isinstance(asleep, bool)
        if self._apis is None:
            self._apis = await offered(self.client)
        contexts = {item["id"]: number(item, "max_model_len") for item in items}
        # An adapter's own entry may lack the length; it shares its base's slots and memory.
        models = tuple(
            described(
                item,
                contexts[item["id"]] or contexts.get(text(item, "parent"), 0),
                state="available" if asleep else "loaded",
                kind=kind_of(item["id"]),
                part_of=parent if (parent := text(item, "parent")) in contexts else "",
            )
            for item in items
        )
        samples = Samples(await self.client.text("/metrics"))
        load = _load(samples)
        return Survey(
            models,
            slots=self._slots(samples, load, max(contexts.values(), default=0)),
            apis=self._apis,
            warning=self._warning(load),
        )

    async def load(self, model: ModelInfo, config: LoadConfig, tell: Callable[[float | None], None]) -> Loaded:
        if not self.can_load:
            return await super().load(model, config, tell)
        tell(None)
        await self._until_asleep(False, "/wake_up")
        ignored = tuple(
            name for name in config.given() if name != "context_length" or config.context_length != model.context
        )
        applied = tuple(name for name in config.given() if name not in ignored)
        return Loaded(applied, ignored, _WORKFLOW if ignored else ())

    async def unload(self, model: ModelInfo) -> None:
        """Level 1 keeps the weights in RAM, so that waking needs nothing but time. What it answers for others than the
        node is aborted."""
        if not self.can_load:
            return await super().unload(model)
        try:
            async with asyncio.timeout(QUIET_SECONDS):
                while self._answering:
                    self._quiet.clear()
                    await self._quiet.wait()
        except TimeoutError:
            text = "vLLM answers with another adapter of this model. Try again when that is over."
            raise ApiError("overloaded", text) from None
        await self._until_asleep(True, "/sleep?level=1&mode=abort")

    @asynccontextmanager
    async def stream(
        self, inference: Inference, model: ModelInfo, headers: Mapping[str, str]
    ) -> AsyncIterator[RuntimeStream]:
        with self._busy():
            async with super().stream(inference, model, headers) as stream:
                yield stream

    async def ask(self, inference: Inference, model: ModelInfo, headers: Mapping[str, str]) -> dict[str, Any]:
        with self._busy():
            return await super().ask(inference, model, headers)

    @contextmanager
    def _busy(self) -> Iterator[None]:
        self._answering += 1
        try:
            yield
        finally:
            self._answering -= 1
            self._quiet.set()

    async def _until_asleep(self, wanted: bool, path: str) -> None:
        """Whatever state it is in; both orders are answered when they are carried out."""
        try:
            if (await self.client.json("/is_sleeping")).get("is_sleeping") is not wanted:
                reply = await self.client.ask(self.client.root + path, {}, SLEEP_SECONDS)
                if reply.status != 200:
                    verb = "sleep" if wanted else "wake up"
                    raise ApiError("runtime_error", f"vLLM did not {verb} (HTTP {reply.status}). Its own log says why.")
        except OSError:
            raise load_errors.gone() from None

    def _slots(self, samples: Samples, load: Load | None, context: int) -> int:
        if self._pacing is None:
            tokens = _whole(samples.label("vllm:cache_config_info", "num_gpu_blocks")) * _whole(
                samples.label("vllm:cache_config_info", "block_size")
            )
            whole = tokens // context if context else 0  # requests that fill the context fit at once
            self._pacing = Pacing(max(DEFAULT_SLOTS, whole))
        return self._pacing.saw(load) if load is not None else self._pacing.slots

    def _warning(self, load: Load | None) -> str:
        if load is None:
            return ""
        still = self._standstill.seconds(load, asyncio.get_running_loop().time())
        if still is None or still < STUCK_SECONDS:
            return ""
        return f"It has {load.queued} requests waiting and has computed nothing for a minute. Restart it."


def _load(samples: Samples) -> Load | None:
    """None where it has no metrics."""
    running = samples.total("vllm:num_requests_running")
    queued = samples.total("vllm:num_requests_waiting")
    if running is None or queued is None:
        return None
    waiting = samples.total("vllm:num_requests_waiting_by_reason", reason="capacity")
    memory = samples.total("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc") or 0.0
    tokens = (samples.total(f"vllm:{kind}_tokens_total") or 0.0 for kind in ("prompt", "generation"))
    return Load(int(running), int(queued if waiting is None else waiting), memory, sum(tokens), int(queued))


def _whole(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() else 0
