"""LM Studio, the app or its headless server, from 0.4 on: models are loaded and unloaded through its own REST API.

It would load a second instance of a model that is there already, and another one for each of the first requests that
come together. So whatever may load goes through one lock here, and looks first at what is in memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from loguru import logger

from node.runtime import DEFAULT_SLOTS, Api, Inference, LoadConfig, Loaded, RuntimeStream
from node.runtimes import load_errors
from node.runtimes.client import Client
from node.runtimes.dialect import Dialect, Survey, loaded_first, names_of
from node.runtimes.fields import number, rows, table, text
from node.runtimes.lms import Lms
from node.runtimes.named_stream import NamedStream
from node.runtimes.transport import Reply
from shared.contract.errors import ApiError
from shared.contract.snapshot import ModelInfo, ModelKind

_APIS: frozenset[Api] = frozenset({"chat", "completions", "embeddings", "responses", "messages"})
LOAD_SECONDS = 600.0  # the answer comes when the model is in memory; 60 GB from a slow disk take some minutes
UNLOAD_SECONDS = 60.0
_KINDS: Mapping[str, ModelKind] = MappingProxyType({"embedding": "embedding"})


@dataclass(frozen=True, slots=True)
class Instance:
    """One copy of a model in memory. ``context`` in tokens, ``parallel`` answers at once; 0 when it does not tell."""

    id: str
    context: int = 0
    parallel: int = 0


class LMStudio(Dialect):
    name = "LM Studio"
    kind = "lm-studio"
    places = ("http://127.0.0.1:1234/v1",)
    parameters = MappingProxyType(
        {
            name: name
            for name in (
                "temperature", "top_p", "top_k", "min_p", "repeat_penalty", "presence_penalty", "frequency_penalty",
                "stop", "seed", "logit_bias", "response_format", "tools", "tool_choice", "reasoning_effort",
            )
        }
    )  # fmt: skip
    can_load = True
    evicts = False  # it makes room for models that it loads just in time, and for none that it is told to load

    def __init__(self, client: Client, lms: Lms | None = None) -> None:
        """``lms`` is LM Studio's command; without it, it is looked for."""
        super().__init__(client)
        self._lms = lms or Lms.beside(client.root)
        self._lock = asyncio.Lock()  # around all that loads and unloads
        self._looking = asyncio.Lock()
        self._instances: dict[str, tuple[Instance, ...]] = {}  # by the model's key
        self._parallel: dict[str, int] = {}  # by key, as it was last in memory
        self._looked_at = float("-inf")  # loop time at which the last look began
        self._ratios: dict[str, float] = {}  # the share on the GPU of instances that were loaded here, by id

    @classmethod
    async def answers(cls, client: Client, models: Reply) -> bool:
        listed = (await client.json("/api/v1/models")).get("models")
        return isinstance(listed, list) and all(
            isinstance(item, dict) and "loaded_instances" in item for item in listed
        )

    async def survey(self, items: list[dict[str, Any]]) -> Survey:
        """Its own list counts: the OpenAI-compatible one tells neither context nor state, and while just-in-time
        loading is off it leaves out what could be loaded."""
        listed = await self._list()
        models = [model for item in listed for model in self._models(item)]
        slots = max((instance.parallel for kept in self._instances.values() for instance in kept), default=0)
        chat = tuple(text(item, "key") for item in listed if text(item, "type") != "embedding")
        return Survey(loaded_first(tuple(models)), chat, slots or DEFAULT_SLOTS, apis=_APIS)

    async def _list(self) -> list[dict[str, Any]]:
        """Its models, after a note of which are in memory. Raises OSError."""
        began = asyncio.get_running_loop().time()
        listed = [item for item in rows(await self.client.json("/api/v1/models"), "models") if text(item, "key")]
        self._instances = {
            text(item, "key"): tuple(_instance(row) for row in rows(item, "loaded_instances") if text(row, "id"))
            for item in listed
        }
        self._looked_at = began
        there = {instance.id for kept in self._instances.values() for instance in kept}
        self._ratios = {name: ratio for name, ratio in self._ratios.items() if name in there}
        return listed

    def _models(self, item: Mapping[str, Any]) -> list[ModelInfo]:
        """A model under its key, which stays when it is loaded under another name, and its instances under theirs."""
        key = text(item, "key")
        kept = self._instances[key]
        first = kept[0] if kept else Instance(key)
        if first.parallel:
            self._parallel[key] = first.parallel
        own = ModelInfo(
            key,
            first.context,
            state="loaded" if kept else "available",
            kind=_KINDS.get(text(item, "type"), "chat"),
            slots=first.parallel or self._parallel.get(key, DEFAULT_SLOTS),
            vision=table(item, "capabilities").get("vision") is True,
            max_context=number(item, "max_context_length"),
            size=number(item, "size_bytes"),
        )
        others = (instance for instance in kept if instance.id != key)
        return [own, *(_named(own, instance) for instance in others)]

    def body(self, inference: Inference, model: ModelInfo) -> dict[str, Any]:
        body = super().body(inference, model)
        body["model"] = self._wire_name(model)
        if inference.api == "chat":
            _in_its_words(body)
        return body

    def _wire_name(self, model: ModelInfo) -> str:
        """A model that is in memory under another name goes by that: LM Studio would load it once more."""
        kept = self._instances.get(model.alias_of or model.id)
        return kept[0].id if kept and all(instance.id != model.id for instance in kept) else model.id

    @asynccontextmanager
    async def stream(
        self, inference: Inference, model: ModelInfo, headers: Mapping[str, str]
    ) -> AsyncIterator[RuntimeStream]:
        await self._have(model)
        async with super().stream(inference, model, headers) as stream:
            yield NamedStream(stream, self._others(model)) if inference.api in ("chat", "completions") else stream

    def _others(self, model: ModelInfo) -> frozenset[str]:
        """Names of all other models: LM Studio may let any of them answer for one that it does not find."""
        key = model.alias_of or model.id
        own = {key, *(instance.id for instance in self._instances.get(key, ()))}
        known = {instance.id for kept in self._instances.values() for instance in kept} | self._instances.keys()
        return frozenset(known - own)

    async def ask(self, inference: Inference, model: ModelInfo, headers: Mapping[str, str]) -> dict[str, Any]:
        await self._have(model)
        return await super().ask(inference, model, headers)

    async def _have(self, model: ModelInfo) -> None:
        """Get ``model`` into memory when it is not, once for all who want it. Each request looks: a model may have left
        since (its time is over, or somebody ejected it), and LM Studio loads it for each that comes then."""
        key = model.alias_of or model.id
        if await self._is_there(key):
            return
        async with self._lock:
            if not await self._there(key):
                await self._load(key, {})

    async def _is_there(self, key: str) -> bool:
        """One look is for all who came before it began; one that fails changes nothing."""
        came = asyncio.get_running_loop().time()
        async with self._looking:
            if self._looked_at < came:
                began = asyncio.get_running_loop().time()
                with suppress(OSError):
                    await self._list()
                self._looked_at = began
        return bool(self._instances.get(key))

    async def load(self, model: ModelInfo, config: LoadConfig, tell: Callable[[float | None], None]) -> Loaded:
        key = model.alias_of or model.id
        tell(None)  # it answers when the model is there, and tells nothing before
        async with self._lock:
            kept = await self._there(key)
            if fitting := next((instance for instance in kept if self._fits(instance, config)), None):
                return self._result(config, fitting)
            for instance in kept:
                await self._unload(instance.id)
            try:
                return await self._load_as(key, config)
            except ApiError as error:
                if kept and error.code != "node_unavailable":  # who does not answer may be loading still
                    await self._back(key, kept[0])
                raise

    def _fits(self, instance: Instance, config: LoadConfig) -> bool:
        ratio = config.gpu_ratio if self._lms is not None else None
        return config.context_length in (None, instance.context) and ratio in (None, self._ratios.get(instance.id))

    async def _load_as(self, key: str, config: LoadConfig) -> Loaded:
        if config.gpu_ratio is not None and self._lms is not None:
            await self._lms.load(key, config.context_length, config.gpu_ratio, LOAD_SECONDS)
            kept = await self._there(key)
            if not kept:
                raise ApiError("runtime_error", "LM Studio says that the model is loaded, but does not list it.")
            self._ratios[kept[0].id] = config.gpu_ratio
            return self._result(config, kept[0])
        body = {} if config.context_length is None else {"context_length": config.context_length}
        return self._result(config, await self._load(key, body))

    def _result(self, config: LoadConfig, instance: Instance) -> Loaded:
        """What of ``config`` holds for ``instance``, which is in memory."""
        given = config.given()
        applied = []
        if config.context_length is not None and config.context_length == instance.context:
            applied.append("context_length")
        if config.gpu_ratio is not None and self._ratios.get(instance.id) == config.gpu_ratio:
            applied.append("gpu_ratio")
        ignored = tuple(name for name in given if name not in applied)
        return Loaded(tuple(name for name in given if name in applied), ignored, self._workflow(ignored))

    def _workflow(self, ignored: tuple[str, ...]) -> tuple[str, ...]:
        if not ignored:
            return ()
        command = () if self._lms else ("For gpu.ratio alone: install LM Studio's command `lms` beside the node.",)
        return (
            "In LM Studio open My Models, and the settings (the gear) of the model.",
            "Set GPU Offload, CPU Thread Pool Size and RoPE Frequency Base and Scale there: they hold for every load.",
            "Unload the model and load it again, here or there.",
            *command,
        )

    async def _load(self, key: str, body: Mapping[str, Any]) -> Instance:
        """Under the lock, with no instance of ``key`` in memory."""
        payload = await self._post(
            "/api/v1/models/load", {"model": key, "echo_load_config": True, **body}, LOAD_SECONDS
        )
        if text(payload, "status") != "loaded":
            raise load_errors.from_load(404, payload)  # 200 is its answer to unknown paths, too
        name = text(payload, "instance_id") or key
        told = next((found for found in await self._there(key) if found.id == name), Instance(name))
        return Instance(name, number(table(payload, "load_config"), "context_length") or told.context, told.parallel)

    async def _back(self, key: str, instance: Instance) -> None:
        """Load what had to leave for a load that failed."""
        try:
            if not await self._there(key):
                await self._load(key, {"context_length": instance.context} if instance.context else {})
        except ApiError as error:
            logger.warning("what LM Studio had in memory before a load that failed is not back: {}", error.message)

    async def unload(self, model: ModelInfo) -> None:
        """All instances of a model, or the one that goes by the name."""
        async with self._lock:
            kept = await self._there(model.alias_of or model.id)
            for instance in kept:
                if not model.alias_of or instance.id == model.id:
                    await self._unload(instance.id)
            await self._there(model.id)

    async def _unload(self, instance: str) -> None:
        try:
            await self._post("/api/v1/models/unload", {"instance_id": instance}, UNLOAD_SECONDS)
        except ApiError as error:
            if error.code != "model_not_found":  # it left by itself
                raise

    async def _there(self, key: str) -> tuple[Instance, ...]:
        """The instances of ``key`` in memory now."""
        try:
            await self._list()
        except OSError:
            raise load_errors.gone() from None
        return self._instances.get(key, ())

    async def _post(self, path: str, body: Mapping[str, Any], seconds: float) -> Mapping[str, Any]:
        try:
            reply = await self.client.ask(self.client.root + path, body, seconds)
        except OSError:
            raise load_errors.gone() from None
        if reply.status != 200 or not isinstance(reply.payload, dict) or reply.payload.get("error"):
            raise load_errors.from_load(reply.status if reply.status != 200 else 404, reply.payload)
        return reply.payload

    def how_to_get(self, wanted: str) -> str:
        return f"Download it there or with `lms get {wanted}`, or correct the name"

    def how_to_load(self, survey: Survey) -> str:
        if not survey.on_disk:
            return ". Download and load one in the app, or with `lms get` and `lms load`."
        return (
            f" loaded. Load one with `hearthlink model load {survey.on_disk[0]}`, in its Developer tab or with "
            f"`lms load {survey.on_disk[0]}` (downloaded: {names_of(survey.on_disk)}), or name one in "
            "node.runtime.default_model."
        )


def _instance(row: Mapping[str, Any]) -> Instance:
    config = table(row, "config")
    return Instance(text(row, "id"), number(config, "context_length"), number(config, "parallel"))


def _named(model: ModelInfo, instance: Instance) -> ModelInfo:
    return ModelInfo(
        instance.id,
        instance.context,
        kind=model.kind,
        slots=instance.parallel,
        vision=model.vision,
        max_context=model.max_context,
        size=model.size,
        alias_of=model.id,
    )


def _in_its_words(body: dict[str, Any]) -> None:
    """LM Studio knows a format of JSON only with a schema."""
    if text(table(body, "response_format"), "type") == "json_object":
        schema = {"name": "object", "schema": {"type": "object"}}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
