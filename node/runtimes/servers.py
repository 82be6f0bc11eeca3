"""Which OpenAI-compatible server answers at a URL, what it has loaded, and how much it takes at once.

One look at a server is a ``Survey``. Servers are told apart by what they say, never by version.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from node.runtimes.base import DEFAULT_SLOTS
from node.runtimes.transport import Reply, Transport
from shared.contract.snapshot import ModelInfo

GENERIC = "OpenAI-compatible server"
_OLLAMA_SLOTS = 1  # OLLAMA_NUM_PARALLEL's default; nothing tells its value
_BY_OWNER = {"llamacpp": "llama.cpp", "vllm": "vLLM", "sglang": "SGLang"}


@dataclass(frozen=True, slots=True)
class Survey:
    """What one look found.

    ``models``: ids that a request may name, loaded ones first. ``loaded``: those in memory. ``on_demand``: naming
    another one loads it. ``downloaded``: ids on disk, for the sentence that says what could be loaded. ``problem``:
    why no request would work ("" when one may), "loading" while the server says so itself.
    """

    server: str
    models: tuple[ModelInfo, ...] = ()
    loaded: frozenset[str] = frozenset()
    on_demand: bool = False
    downloaded: tuple[str, ...] = ()
    slots: int = DEFAULT_SLOTS
    special_tokens: frozenset[str] = frozenset()
    problem: str = ""


class Surveyor:
    """Looks at the server behind ``base`` (the URL that ends in its version). ``seconds`` bounds each request."""

    def __init__(self, transport: Transport, base: str, headers: Mapping[str, str], seconds: float) -> None:
        self._transport = transport
        self._base = base
        self._root = base.rsplit("/", 1)[0]
        self._headers = headers
        self._seconds = seconds

    async def look(self, server: str | None = None) -> Survey:
        """One survey. ``server`` is what an earlier one found, to save the questions that tell servers apart. Raises
        OSError or TimeoutError when the server cannot be reached."""
        reply = await self._get(f"{self._base}/models")
        if problem := _problem(reply, self._base):
            return Survey(_name(reply, self._base) or server or GENERIC, problem=problem)
        items = [item for item in reply.payload.get("data") or () if isinstance(item, dict) and _text(item, "id")]
        server = _name(reply, self._base) or server or await self._ask_who()
        if server == "llama.cpp":
            return await self._llama_cpp(items)
        if server == "LM Studio":
            return await self._lm_studio(items)
        if server == "Ollama":
            return await self._ollama(items)
        models = tuple(_model(item, _int(item, "max_model_len")) for item in items)
        return Survey(server, models, _ids(models))

    async def _get(self, url: str) -> Reply:
        return await self._transport.ask(url, self._headers, self._seconds)

    async def _ask(self, path: str) -> Mapping[str, Any]:
        """A server's own route: its JSON object, or {} when it has none there."""
        reply = await self._get(self._root + path)
        return reply.payload if reply.status == 200 and isinstance(reply.payload, dict) else {}

    async def _ask_who(self) -> str:
        if isinstance((await self._ask("/api/version")).get("version"), str):
            return "Ollama"
        if _is_lm_studio(await self._ask("/api/v1/models")):
            return "LM Studio"
        return GENERIC

    async def _llama_cpp(self, items: list[dict[str, Any]]) -> Survey:
        props = await self._ask("/props")  # not /slots: that one wakes a sleeping model
        slots = _int(props, "total_slots") or DEFAULT_SLOTS
        default_context = _int(_dict(props, "default_generation_settings"), "n_ctx")
        models = tuple(_model(item, _int(_dict(item, "meta"), "n_ctx") or default_context) for item in items)
        tokens = frozenset(token for name in ("bos_token", "eos_token") if (token := _text(props, name)))
        states = {item["id"]: _text(_dict(item, "status"), "value") for item in items if "status" in item}
        if not states:
            return Survey("llama.cpp", models, _ids(models), slots=slots, special_tokens=tokens)
        loaded = frozenset(name for name, value in states.items() if value in ("loaded", "sleeping"))
        return Survey(
            "llama.cpp", _first(models, loaded), loaded, True, tuple(states), slots=slots, special_tokens=tokens
        )

    async def _lm_studio(self, items: list[dict[str, Any]]) -> Survey:
        own = [item for item in (await self._ask("/api/v1/models")).get("models") or () if isinstance(item, dict)]
        chat = [item for item in own if _text(item, "type") in ("llm", "vlm", "")]
        contexts: dict[str, int] = {}
        slots = 0
        for item in chat:
            for instance in item.get("loaded_instances") or ():
                config = _dict(instance, "config")
                contexts[_text(instance, "id") or _text(item, "key")] = _int(config, "context_length")
                slots = slots or _int(config, "parallel")
        loaded = frozenset(contexts)
        downloaded = tuple(_text(item, "key") for item in chat)
        others = {item["id"]: item for item in items if item["id"] in downloaded and item["id"] not in loaded}
        models = (*(ModelInfo(name, context) for name, context in contexts.items()), *map(_model, others.values()))
        return Survey("LM Studio", models, loaded, True, downloaded, slots or DEFAULT_SLOTS)

    async def _ollama(self, items: list[dict[str, Any]]) -> Survey:
        on_disk = [item for item in (await self._ask("/api/tags")).get("models") or () if isinstance(item, dict)]
        cloud = {_text(item, "name") for item in on_disk if _text(item, "remote_host") or _text(item, "remote_model")}
        blind = {
            _text(item, "name")
            for item in on_disk
            if isinstance(abilities := item.get("capabilities"), list) and "completion" not in abilities
        }
        running = [item for item in (await self._ask("/api/ps")).get("models") or () if isinstance(item, dict)]
        contexts = {_text(item, "name"): _int(item, "context_length") for item in running}
        models = tuple(
            _model(item, contexts.get(item["id"], 0))
            for item in items
            if item["id"] not in cloud | blind and not item["id"].endswith(("-cloud", ":cloud"))
        )
        loaded = _ids(models) & contexts.keys()
        return Survey(
            "Ollama", _first(models, loaded), loaded, True, tuple(model.id for model in models), slots=_OLLAMA_SLOTS
        )


def _problem(reply: Reply, base: str) -> str:
    """Why this answer to GET /models means that no chat would work, or ""."""
    if reply.status in (401, 403):
        return f"The runtime at {base} asks for a key, or refused the one it got. Set node.runtime.key to its API key."
    if reply.status == 503:
        return "loading"
    listed = reply.payload.get("data", "") if reply.status == 200 and isinstance(reply.payload, dict) else ""
    if isinstance(listed, list | None):  # null: Ollama without models
        return ""
    return (
        f"What answers at {base} (HTTP {reply.status}) is no OpenAI-compatible server: it has no list of models. "
        "Set node.runtime.url to the runtime's address and port, for example http://127.0.0.1:1234."
    )


def _name(reply: Reply, base: str) -> str:
    if reply.server.startswith("llama.cpp"):
        return "llama.cpp"
    if urlsplit(base).hostname == "api.openai.com":
        return "OpenAI"
    data = reply.payload.get("data") if isinstance(reply.payload, dict) else None
    first = data[0] if isinstance(data, list) and data and isinstance(data[0], dict) else {}
    return _BY_OWNER.get(_text(first, "owned_by"), "") or ("mlx_lm" if reply.server.startswith("BaseHTTP") else "")


def _is_lm_studio(payload: Mapping[str, Any]) -> bool:
    models = payload.get("models")
    return isinstance(models, list) and all(isinstance(item, dict) and "loaded_instances" in item for item in models)


def _model(item: Mapping[str, Any], context: int = 0) -> ModelInfo:
    return ModelInfo(id=item["id"], context=context, created=_int(item, "created"))


def _ids(models: tuple[ModelInfo, ...]) -> frozenset[str]:
    return frozenset(model.id for model in models)


def _first(models: tuple[ModelInfo, ...], loaded: frozenset[str]) -> tuple[ModelInfo, ...]:
    return tuple(sorted(models, key=lambda model: model.id not in loaded))


def _text(item: Any, name: str) -> str:
    value = item.get(name) if isinstance(item, dict) else None
    return value if isinstance(value, str) else ""


def _int(item: Any, name: str) -> int:
    value = item.get(name) if isinstance(item, dict) else None
    return value if type(value) is int and value > 0 else 0


def _dict(item: Any, name: str) -> dict[str, Any]:
    value = item.get(name) if isinstance(item, dict) else None
    return value if isinstance(value, dict) else {}
