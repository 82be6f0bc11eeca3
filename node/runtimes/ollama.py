"""Ollama, spoken to in its own words: loads whatever is named, and makes room for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import Any

from loguru import logger

from node.runtime import Api, Inference, LoadConfig, Loaded, RuntimeStream
from node.runtimes import load_errors, ollama_request
from node.runtimes.client import Client
from node.runtimes.dialect import Dialect, Survey, described, loaded_first
from node.runtimes.fields import number, rows, text
from node.runtimes.ollama_context import PromptSize
from node.runtimes.ollama_request import Facts
from node.runtimes.ollama_stream import ChunkWriter, OllamaStream
from node.runtimes.transport import Reply
from shared.contract.errors import ApiError
from shared.contract.snapshot import ModelInfo

_SLOTS = 1  # OLLAMA_NUM_PARALLEL's default; nothing tells its value
_APIS: frozenset[Api] = frozenset({"chat", "completions", "embeddings"})
LOAD_SECONDS = 600.0  # Ollama itself gives up after 5 minutes without progress
UNLOAD_SECONDS = 30.0  # running answers end first
_POLL_SECONDS = 0.1
# What a model that was loaded here gets, each request anew: long enough for any idle_unload, and not for ever, because
# a node that is gone cannot unload it any more.
_KEEP_ALIVE = "24h"
_ASKED_AT_ONCE = 16  # models that one look asks about
_NAMES: Mapping[str, str] = MappingProxyType({"context_length": "num_ctx", "cpu_threads": "num_thread"})


class Ollama(Dialect):
    name = "Ollama"
    kind = "ollama"
    places = ("http://127.0.0.1:11434/v1",)
    parameters = ollama_request.PARAMETERS
    can_load = True
    loads_unasked = True

    def __init__(self, client: Client) -> None:
        super().__init__(client)
        self._facts: dict[str, tuple[str, Facts]] = {}  # by name, with the digest that they are of
        # Options of the runner: a request that says others has the model loaded anew. Those that were asked for here,
        # and the context that others are in memory with.
        self._configured: dict[str, dict[str, Any]] = {}
        self._contexts: dict[str, int] = {}

    @classmethod
    async def answers(cls, client: Client, models: Reply) -> bool:
        return isinstance((await client.json("/api/version")).get("version"), str)

    async def survey(self, items: list[dict[str, Any]]) -> Survey:
        listed = rows(await self.client.json("/api/tags"), "models")
        on_disk = {text(item, "name"): item for item in listed if _is_local(item)}
        await self._learn(on_disk)
        self._contexts = await self._running()
        models = tuple(self._model(item, on_disk[item["id"]]) for item in items if item["id"] in on_disk)
        tokens = frozenset(stop for _, facts in self._facts.values() for stop in facts.stops if _is_token(stop))
        return Survey(_chat_first(loaded_first(models)), tuple(model.id for model in models), _SLOTS, tokens, _APIS)

    async def _running(self) -> dict[str, int]:
        """Models in memory, each with its context in tokens. Models of the same weights share one runner, and Ollama
        lists it under the name that came first: that comes first here, too, and then the others. Raises
        OSError."""
        listed = rows(await self.client.json("/api/ps"), "models")
        running = {text(item, "name"): number(item, "context_length") for item in listed}
        shared = {self._known(name).weights: context for name, context in running.items()}
        shared.pop((), None)  # of models that were not asked about yet
        for name, (_, facts) in self._facts.items():
            if facts.weights in shared:
                running.setdefault(name, shared[facts.weights])
        return running

    async def _learn(self, on_disk: Mapping[str, Mapping[str, Any]]) -> None:
        """Ask about models that are new, a few at each look: what it tells of one changes with its digest only."""
        self._facts = {name: known for name, known in self._facts.items() if name in on_disk}
        digests = {name: text(item, "digest") for name, item in on_disk.items()}
        unknown = [name for name, digest in digests.items() if self._facts.get(name, ("", None))[0] != digest]
        asked = unknown[:_ASKED_AT_ONCE]
        shown = await asyncio.gather(
            *(self.client.json("/api/show", {"model": name}) for name in asked), return_exceptions=True
        )
        for name, show in zip(asked, shown, strict=True):
            if not isinstance(show, BaseException):  # it reads the file for this, and may be late; the next look asks
                self._facts[name] = (digests[name], Facts.read(show))

    def _model(self, item: dict[str, Any], on_disk: Mapping[str, Any]) -> ModelInfo:
        name = item["id"]
        facts = self._known(name)
        # /api/ps tells the context that was asked for; the runner has no more than the model was trained for.
        context = min(self._contexts.get(name, 0), facts.max_context or self._contexts.get(name, 0))
        return described(
            item,
            context,
            state="loaded" if name in self._contexts else "available",
            kind="embedding" if facts.lacks("completion") else "chat",
            vision="vision" in facts.capabilities,
            max_context=facts.max_context,
            size=number(on_disk, "size"),
        )

    def _known(self, model: str) -> Facts:
        return self._facts.get(model, ("", Facts()))[1]

    def _runner(self, model: str) -> dict[str, Any]:
        """What each request for ``model`` says of its runner, so that none has it loaded anew."""
        if model in self._configured:
            return {"options": self._configured[model], "keep_alive": _KEEP_ALIVE}
        context = self._contexts.get(model, 0)
        return {"options": {"num_ctx": context} if context else {}}

    def body(self, inference: Inference, model: ModelInfo) -> dict[str, Any]:
        facts = self._known(model.id)
        body = (
            ollama_request.chat_body(inference, facts)
            if inference.api == "chat"
            else ollama_request.completion_body(inference, facts)
        )
        runner = self._runner(model.id)
        return {**body, **runner, "options": {**runner["options"], **body["options"]}}

    @asynccontextmanager
    async def stream(
        self, inference: Inference, model: ModelInfo, headers: Mapping[str, str]
    ) -> AsyncIterator[RuntimeStream]:
        size = PromptSize.of(inference, model)
        chat = inference.api == "chat"
        url = f"{self.client.root}/api/{'chat' if chat else 'generate'}"
        stream = await self.client.transport.stream(
            url, headers, self.body(inference, model), content_type="application/x-ndjson"
        )
        try:
            yield OllamaStream(stream, ChunkWriter(model.id, chat), size.check)
        finally:
            stream.close()

    async def ask(self, inference: Inference, model: ModelInfo, headers: Mapping[str, str]) -> dict[str, Any]:
        """Embeddings, which the OpenAI-compatible route would cut to the context without a word."""
        content = {name: inference.content[name] for name in ("input", "dimensions") if name in inference.content}
        body = {"model": model.id, **content, "truncate": False, **self._runner(model.id)}
        answer = await self.client.transport.answer(f"{self.client.root}/api/embed", headers, body)
        vectors = answer.get("embeddings")
        if not isinstance(vectors, list):
            raise ApiError("upstream_invalid", "Ollama answered without embeddings.")
        tokens = number(answer, "prompt_eval_count")
        return {
            "object": "list",
            "data": [{"object": "embedding", "index": at, "embedding": vector} for at, vector in enumerate(vectors)],
            "model": model.id,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }

    async def load(self, model: ModelInfo, config: LoadConfig, tell: Callable[[float | None], None]) -> Loaded:
        tell(None)
        before = self._contexts = await self._there()
        asked, applied = self._options(model.id, config)
        # One that is in memory keeps what is not asked for: other options would have it loaded anew.
        options = {**(self._runner(model.id)["options"] if model.id in before else {}), **asked}
        try:
            await self._generate(model.id, {"options": options, "keep_alive": _KEEP_ALIVE}, LOAD_SECONDS)
        except ApiError:
            await self._restore(before)
            raise
        self._configured[model.id] = options
        ignored = tuple(name for name in config.given() if name not in applied)
        return Loaded(applied, ignored, _WORKFLOW if ignored else ())

    def _options(self, model: str, config: LoadConfig) -> tuple[dict[str, Any], tuple[str, ...]]:
        """The runner's options that ``config`` asks for, and the names of those in it that they stand for."""
        given = config.given()
        options: dict[str, Any] = {wire: given[name] for name, wire in _NAMES.items() if name in given}
        applied = [name for name in _NAMES if name in given]
        layers = self._known(model).layers
        if config.gpu_layers is not None:
            options["num_gpu"] = config.gpu_layers
            applied.append("gpu_layers")
        elif config.gpu_ratio is not None and layers:
            options["num_gpu"] = round(config.gpu_ratio * layers)
            applied.append("gpu_ratio")
        return options, tuple(name for name in given if name in applied)

    async def _restore(self, before: Mapping[str, int]) -> None:
        """Load again what was in memory before a load that failed, with what it had; what cannot come back stays
        out."""
        try:
            for name, context in before.items():
                if name not in await self._there():
                    own = {"options": {"num_ctx": context} if context else {}, "keep_alive": _KEEP_ALIVE}
                    await self._generate(name, {**own, **self._runner(name)}, LOAD_SECONDS)
        except ApiError as error:
            logger.warning("what Ollama had in memory before a load that failed is not back: {}", error.message)

    async def unload(self, model: ModelInfo) -> None:
        await self._generate(model.id, {"keep_alive": 0}, self.client.seconds)
        self._configured.pop(model.id, None)
        try:
            async with asyncio.timeout(UNLOAD_SECONDS):
                while model.id in await self._there():  # noqa: ASYNC110
                    await asyncio.sleep(_POLL_SECONDS)  # nothing tells when it has left
        except TimeoutError:
            raise ApiError(
                "runtime_error", "Ollama keeps the model while it answers somebody else. Try again when it is idle."
            ) from None

    async def _there(self) -> dict[str, int]:
        try:
            return await self._running()
        except OSError:
            raise load_errors.gone() from None

    async def _generate(self, model: str, body: Mapping[str, Any], seconds: float) -> None:
        """A request without a prompt: it has the model loaded, or with a ``keep_alive`` of 0 unloaded. One that only
        makes embeddings refuses to be asked for text, were it none."""
        nothing = (
            ("embed", {"input": []}) if body.get("keep_alive") and self._known(model).lacks("completion") else None
        )
        route, empty = nothing or ("generate", {})
        try:
            reply = await self.client.ask(f"{self.client.root}/api/{route}", {"model": model, **empty, **body}, seconds)
        except OSError:
            raise load_errors.gone() from None
        if reply.status != 200:
            raise load_errors.from_load(reply.status, reply.payload)

    def how_to_get(self, wanted: str) -> str:
        return f"Run `ollama pull {wanted}`, or correct the name"

    def how_to_load(self, survey: Survey) -> str:
        return ". Run `ollama pull` with the name of one, for example `ollama pull llama3.2`."


_WORKFLOW = (
    "Ollama has no setting for these: give them to the GGUF file itself, in its metadata.",
    "Run `ollama create NAME -f Modelfile`, with the new file behind FROM in the Modelfile.",
    "Load it by that name.",
)


def _is_local(item: Mapping[str, Any]) -> bool:
    """Models of its maker's cloud are listed beside those on disk."""
    remote = text(item, "remote_host") or text(item, "remote_model")
    return not remote and not text(item, "name").endswith(("-cloud", ":cloud"))


def _chat_first(models: tuple[ModelInfo, ...]) -> tuple[ModelInfo, ...]:
    return tuple(sorted(models, key=lambda model: model.kind != "chat"))


def _is_token(stop: str) -> bool:
    """A stop that is a mark of the template, and no word that people write."""
    return stop[0] + stop[-1] in ("<>", "[]") and not any(map(str.isspace, stop))
