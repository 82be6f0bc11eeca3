"""LM Studio as it behaves towards its peers, without its app: models that are loaded and unloaded, in as many instances
as somebody asks for.

Each behaviour cites the part of the reference on runtimes that it is written from.

    async with FakeLMStudio("qwen", "gemma", loaded=["qwen"]) as studio:
        ...                                  # point a node at studio.url
        studio.open("gemma")                 # the person at the machine loads it in the app's window
        assert studio.instances == {...}     # by id, as the app lists them
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tests.fake_runtime import Exchange, FakeRuntime
from tests.fake_scripts import DONE, event, words

_CONTEXT = 4096  # of an instance that was loaded without saying one
_PARALLEL = 4  # the default on its llama.cpp engine (runtimes §1.2)


@dataclass(slots=True)
class Loaded:
    """One instance in memory."""

    key: str
    context: int = _CONTEXT
    parallel: int = _PARALLEL


class FakeLMStudio(FakeRuntime):
    """``keys`` are what is downloaded; those of ``embedding`` besides make embeddings, those of ``seeing`` take images.

    ``gate`` is held shut while a load must not end, ``silent`` is set while an answer must not. ``refused`` is how many
    of the next loads find no memory. ``jit`` is just-in-time loading. ``loads`` are the bodies of all loads that were
    asked for.
    """

    def __init__(
        self,
        *keys: str,
        loaded: Sequence[str] = (),
        embedding: Sequence[str] = (),
        seeing: Sequence[str] = (),
        jit: bool = True,
        key: str | None = None,
    ) -> None:
        super().__init__(self._chat, server_header=None, key=key)
        self.keys = [*keys, *embedding]
        self.embedding = embedding
        self.seeing = seeing
        self.jit = jit
        self.refused = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.loads: list[dict[str, Any]] = []
        self._just_in_time = ""  # the instance that a request had loaded
        self.leaving = ""  # a model whose time is over the moment somebody asks it (runtimes §1.3: TTL)
        self.silent = False  # answers stop behind their first word, until ``speak``
        self.instances: dict[str, Loaded] = {}
        for name in loaded:
            self.open(name)

    def open(self, key: str, identifier: str = "", **config: int) -> str:
        """Load in the app: an instance, under the key when nobody gave it a name and the key is free, else ``key:2``
        (runtimes §1.3: loading is not idempotent)."""
        name = identifier or key
        number = 2
        while name in self.instances:
            name, number = f"{key}:{number}", number + 1
        # The second one gets default settings, whatever was asked for (runtimes §1.3).
        self.instances[name] = Loaded(key, **({} if name != (identifier or key) else config))
        return name

    def eject(self, instance: str) -> None:
        """Unload in the app, or by its time to live. Its answers under way break off."""
        del self.instances[instance]
        self.changed()

    def speak(self) -> None:
        self.silent = False
        self.changed()

    def of(self, key: str) -> list[str]:
        """The instances of a model."""
        return [name for name, loaded in self.instances.items() if loaded.key == key]

    async def answer(self, exchange: Exchange) -> None:
        if exchange.is_chat or exchange.path == "/v1/models":
            await super().answer(exchange)
            return
        self.exchanges.append(exchange)
        self.changed()
        if self.key and exchange.headers.get("authorization") != f"Bearer {self.key}":
            # runtimes §1.1
            fault = {
                "type": "invalid_request",
                "code": "invalid_api_key",
                "message": "An LM Studio API token is needed",
            }
            await exchange.respond(401, {"error": fault})
            return
        match exchange.method, exchange.path:
            case "GET", "/api/v1/models":
                await exchange.respond(200, {"models": [self._described(key) for key in self.keys]})
            case "POST", "/api/v1/models/load":
                await self._load(exchange)
            case "POST", "/api/v1/models/unload":
                await self._unload(exchange)
            case "POST", "/v1/embeddings":
                vectors = [{"object": "embedding", "index": 0, "embedding": [0.5, 0.25]}]
                usage = {"prompt_tokens": 0, "total_tokens": 0}  # always (lmstudio-bug-tracker #1546)
                await exchange.respond(200, {"object": "list", "data": vectors, "usage": usage})
            case _:
                # An unknown path is no mistake to it (runtimes §1.1).
                said = f"Unexpected endpoint or method. ({exchange.method} {exchange.path})"
                await exchange.respond(200, {"error": said})

    def _described(self, key: str) -> dict[str, Any]:
        """An item of its own list (runtimes §1.2)."""
        return {
            "type": "embedding" if key in self.embedding else "llm",
            "key": key,
            "size_bytes": 1000,
            "loaded_instances": [
                {"id": name, "config": {"context_length": loaded.context, "parallel": loaded.parallel}}
                for name, loaded in self.instances.items()
                if loaded.key == key
            ],
            "max_context_length": 32768,
            "format": "gguf",
            "capabilities": {"vision": key in self.seeing, "trained_for_tool_use": True},
        }

    def _route(self, path: str) -> tuple[int, Any]:
        """``/v1/models``: all that is downloaded with just-in-time loading, else what is in memory (runtimes §1.2)."""
        names = self.keys if self.jit else list(self.instances)
        return 200, {"object": "list", "data": [{"id": name, "object": "model"} for name in names]}

    async def _load(self, exchange: Exchange) -> None:
        """It answers when the model is there, and never looks whether it is there already (runtimes §1.3)."""
        body = exchange.json
        self.loads.append(body)
        self.changed()
        await self.gate.wait()
        key = body.get("model")
        if key not in self.keys:
            fault = {"type": "invalid_request", "message": f"Model {key!r} not found", "code": "model_not_found"}
            await exchange.respond(404, {"error": fault})
        elif self.refused:
            self.refused -= 1
            fault = {
                "type": "internal_error",
                "message": "Model loading was stopped due to insufficient system resources",
            }
            await exchange.respond(500, {"error": fault})
        else:
            context = body.get("context_length")
            name = self.open(key, **({"context": context} if context else {}))
            found: dict[str, Any] = {
                "type": "llm", "instance_id": name, "load_time_seconds": 0.1, "status": "loaded"
            }  # fmt: skip
            if body.get("echo_load_config"):
                found["load_config"] = {"context_length": self.instances[name].context}
            await exchange.respond(200, found)

    async def _unload(self, exchange: Exchange) -> None:
        """It wants the instance, not the model (runtimes §1.3)."""
        name = exchange.json.get("instance_id")
        if name not in self.instances:
            fault = {"type": "invalid_request", "message": f"Model {name!r} not found", "code": "model_not_found"}
            await exchange.respond(404, {"error": fault})
            return
        self.eject(name)
        await exchange.respond(200, {"instance_id": name})

    async def _chat(self, exchange: Exchange) -> None:
        asked = exchange.json["model"]
        if asked == self.leaving:
            self.eject(asked)
        if asked in self.instances:
            name = asked
        elif asked in self.keys and self.jit:
            # Whoever asks first for a model that is not there has it loaded; those who come meanwhile, too
            # (runtimes §1.3).
            await self.gate.wait()
            if self._just_in_time in self.instances:
                self.eject(self._just_in_time)  # it keeps one that came this way (runtimes §1.3: auto-evict)
            name = self._just_in_time = self.open(asked)
        elif self.instances:
            name = next(iter(self.instances))  # a name that matches nothing is served by what is there (runtimes §1.4)
        else:
            fault = {"message": "No models loaded. Please load a model.", "type": "invalid_request_error"}
            await exchange.respond(404, {"error": {**fault, "param": "model", "code": "model_not_found"}})
            return
        loaded = self.instances[name]
        await exchange.start_stream()
        first, *others = _events(name, exchange)
        await exchange.send(first)
        await self.until(lambda: not self.silent or self.instances.get(name) is not loaded)
        if self.instances.get(name) is not loaded:
            await exchange.reset()
            return
        for piece in others:
            await exchange.send(piece)
        await exchange.end_stream()


def _events(model: str, exchange: Exchange) -> list[bytes]:
    def chunk(**fields: Any) -> bytes:
        head = {"id": "chatcmpl-fake", "object": "chat.completion.chunk", "created": 1, "model": model}
        return event({**head, **fields})

    texts = words(3)
    deltas = [{"role": "assistant", "content": word} for word in texts]
    events = [chunk(choices=[{"index": 0, "delta": delta, "finish_reason": None}]) for delta in deltas]
    events.append(chunk(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}]))
    if exchange.json.get("stream_options", {}).get("include_usage"):
        count = {"prompt_tokens": 7, "completion_tokens": len(texts), "total_tokens": 7 + len(texts)}
        events.append(chunk(choices=[], usage=count))
    return [*events, DONE]
