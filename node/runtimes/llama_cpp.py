"""llama.cpp's own server, with one model or, started without one, as a router of several."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from node.runtime import DEFAULT_SLOTS, PARAMETERS, Api, Inference, LoadConfig, Loaded
from node.runtimes.client import Client
from node.runtimes.dialect import PATHS, Dialect, Survey, described, kind_of, loaded_first
from node.runtimes.fields import number, table, text
from node.runtimes.llama_router import LlamaRouter
from node.runtimes.transport import Reply
from shared.contract.errors import ApiError
from shared.contract.snapshot import ModelInfo, ModelKind, ModelState

# A megabyte takes a quarter of a second; nobody waits longer for a refusal that the runtime will give as well.
COUNT_SECONDS = 1.5
# Where it counts a prompt of each API; all say input_tokens.
_COUNTS: Mapping[Api, str] = MappingProxyType(
    {
        "chat": "/chat/completions/input_tokens",
        "responses": "/responses/input_tokens",
        "messages": "/messages/count_tokens",
    }
)
_ALWAYS: frozenset[Api] = frozenset({"chat", "completions"})
_NEWER: frozenset[Api] = frozenset({"responses", "messages"})
_PERHAPS: tuple[Api, ...] = (*_NEWER, "embeddings", "rerank")  # the last two need a flag at the start
_FLAGS: Mapping[str, Api] = MappingProxyType(
    {"--embeddings": "embeddings", "--embedding": "embeddings", "--reranking": "rerank", "--rerank": "rerank"}
)
# Where without progress events llama.cpp looks at the socket only after the whole prompt was read.
_PROGRESS: frozenset[Api] = frozenset({"chat", "completions", "responses"})
# Anthropic's messages are rewritten in a way that loses both.
_CHOOSE_SLOT: frozenset[Api] = frozenset({"chat", "completions", "responses"})
_STATES: Mapping[str, ModelState] = MappingProxyType({"loaded": "loaded", "sleeping": "sleeping", "loading": "loading"})
_MISTAKES = (200, 400, 422, 500)  # some of its mistakes in reading are 500
_NO_VERDICT = (401, 403, 429, 502, 503, 504)  # of a route: it may be there, and has to be asked for again
# llama.cpp's numbers for the vocabularies of encoders (WordPiece, Unigram): such models write no text.
_ENCODERS = (3, 4)


class LlamaCpp(Dialect):
    """One model is always in memory, and there is nothing to load. ``can_load`` where it is a router."""

    name = "llama.cpp"
    kind = "llama.cpp"
    places = ("http://127.0.0.1:9931/v1", "http://127.0.0.1:8080/v1")
    parameters = MappingProxyType({name: name for name in PARAMETERS if name not in ("echo", "suffix")})
    evicts = False  # a router makes room, but ends the answers of what it unloads

    def __init__(self, client: Client) -> None:
        super().__init__(client)
        self._router = LlamaRouter(client)
        self._offered: dict[Api, bool] = {}  # each asked for once: flags do not change while it runs
        self._toolless: set[str] = set()  # models whose template is known to leave tools out

    @classmethod
    async def answers(cls, client: Client, models: Reply) -> bool:
        return models.server.startswith("llama.cpp") or models.owner == "llamacpp"

    async def survey(self, items: list[dict[str, Any]]) -> Survey:
        self.can_load = any("status" in item for item in items)
        return await (self._several(items) if self.can_load else self._single(items))

    async def _single(self, items: list[dict[str, Any]]) -> Survey:
        reply = await self.client.ask(f"{self.client.root}/props")  # not /slots: that one wakes a sleeping model
        # While it loads it lists its model all the same, and refuses the rest. Builds without /props say nothing there.
        if reply.status == 503 or (reply.status != 200 and any(item.get("meta", item) is None for item in items)):
            self._offered.clear()
            return Survey(problem="loading")
        props = reply.payload if reply.status == 200 and isinstance(reply.payload, dict) else {}
        asleep = props.get("is_sleeping") is True
        if not asleep:
            await self._ask_what_it_offers()
        for item in items:
            self.learn(item["id"], props)
        offered: list[Api] = [api for api, there in self._offered.items() if there]
        apis = _ALWAYS.union(offered)
        models = tuple(_model(item, props, "sleeping" if asleep else "loaded", _kind(item, apis)) for item in items)
        return Survey(
            models, slots=number(props, "total_slots") or DEFAULT_SLOTS, special_tokens=_tokens(props), apis=apis
        )

    async def _several(self, items: list[dict[str, Any]]) -> Survey:
        models: list[ModelInfo] = []
        tokens: frozenset[str] = frozenset()
        apis = _ALWAYS | _NEWER
        for item in items:
            status = table(item, "status")
            if (value := text(status, "value")) == "downloading":
                continue
            state = _STATES.get(value, "available")
            own: set[Api] = {api for flag in status.get("args") or () if (api := _FLAGS.get(flag)) is not None}
            props = await self._router.props(item["id"]) if state in ("loaded", "sleeping") else {}
            self.learn(item["id"], props)
            slots = number(props, "total_slots") or DEFAULT_SLOTS  # of one that is not in memory nobody knows
            models.append(_model(item, props, state, _kind(item, own), slots))
            tokens |= _tokens(props)
            apis = apis.union(own)
        return Survey(
            loaded_first(tuple(models)), tuple(model.id for model in models), special_tokens=tokens, apis=apis
        )

    async def _ask_what_it_offers(self) -> None:
        """A request without content starts nothing: it is the caller's mistake to a server that has the route."""
        for api in _PERHAPS:
            if api not in self._offered:
                status = (await self.client.ask(self.client.base + PATHS[api], {})).status
                if status not in _NO_VERDICT:
                    self._offered[api] = status in _MISTAKES

    def learn(self, model: str, props: Mapping[str, Any]) -> None:
        """What its /props says of ``model``, as far as it says anything: a template that knows no tools leaves them out
        of the prompt without a word."""
        if (knows := table(props, "chat_template_caps").get("supports_tools")) is False:
            self._toolless.add(model)
        elif knows is True:
            self._toolless.discard(model)

    def body(self, inference: Inference, model: ModelInfo) -> dict[str, Any]:
        """Raises ApiError ``invalid_request`` for tools that the model would not be told of."""
        given = inference.parameters
        if given.get("tools") and given.get("tool_choice") != "none" and model.id in self._toolless:
            text = "This model has no way to call tools: its chat template leaves them out. Leave them out, too."
            raise ApiError("invalid_request", text, param="tools")
        body = super().body(inference, model)
        if inference.api in _PROGRESS:
            body["return_progress"] = True
        if inference.api == "responses" and (shape := inference.parameters.get("response_format")) is not None:
            body["response_format"] = shape  # b11549 does not read text.format
        if inference.slot is not None and inference.api in _CHOOSE_SLOT:
            body["id_slot"] = inference.slot
        return body

    async def count_prompt(self, inference: Inference) -> int | None:
        """None when it is too old for the question, busy, or gone."""
        if (path := _COUNTS.get(inference.api)) is None:
            return None
        body = {"model": inference.model, **inference.content}
        if (tools := inference.parameters.get("tools")) is not None:
            body["tools"] = tools  # templates write them into the prompt
        try:
            reply = await self.client.ask(self.client.base + path, body, COUNT_SECONDS)
        except OSError:
            return None
        count = reply.payload.get("input_tokens") if reply.status == 200 and isinstance(reply.payload, dict) else None
        return count if type(count) is int else None

    async def load(self, model: ModelInfo, config: LoadConfig, tell: Callable[[float | None], None]) -> Loaded:
        if not self.can_load:
            return await super().load(model, config, tell)
        return await self._router.load(model, config, tell)

    async def unload(self, model: ModelInfo) -> None:
        await (self._router.unload(model) if self.can_load else super().unload(model))


def _model(
    item: dict[str, Any], props: Mapping[str, Any], state: ModelState, kind: ModelKind, slots: int = 0
) -> ModelInfo:
    meta = table(item, "meta")
    seen = table(item, "architecture").get("input_modalities")
    return described(
        item,
        number(meta, "n_ctx") or number(table(props, "default_generation_settings"), "n_ctx"),
        state=state,
        kind=kind,
        slots=slots,
        vision=table(props, "modalities").get("vision") is True or (isinstance(seen, list) and "image" in seen),
        max_context=number(meta, "n_ctx_train"),
        size=number(meta, "size"),
    )


def _kind(item: dict[str, Any], apis: frozenset[Api] | set[Api]) -> ModelKind:
    """A model that writes text may make embeddings, too, and is one for chats then."""
    if "rerank" in apis:
        return "rerank"
    encodes = number(table(item, "meta"), "vocab_type") in _ENCODERS or kind_of(item["id"]) == "embedding"
    return "embedding" if "embeddings" in apis and encodes else "chat"


def _tokens(props: Mapping[str, Any]) -> frozenset[str]:
    return frozenset(token for name in ("bos_token", "eos_token") if (token := text(props, name)))
