"""What servers do differently: one subclass of ``Dialect`` per server, each in a file of its own.

The class itself is what every OpenAI-compatible server has in common, and the dialect of those that nothing more is
known of. docs/runtimes.md says how to add one.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

from node.runtime import DEFAULT_SLOTS, PARAMETERS, Api, Inference, LoadConfig, Loaded, RuntimeStream
from node.runtimes.client import Client
from node.runtimes.fields import number
from node.runtimes.transport import HttpStream, Reply
from shared.contract.errors import ApiError
from shared.contract.snapshot import ModelInfo, ModelKind

PATHS: Mapping[Api, str] = MappingProxyType(
    {
        "chat": "/chat/completions",
        "completions": "/completions",
        "embeddings": "/embeddings",
        "responses": "/responses",
        "messages": "/messages",
        "rerank": "/rerank",
    }
)
# How each API calls the longest answer. Those that are not here have none, and answer with one JSON object.
_LENGTHS: Mapping[Api, str] = MappingProxyType(
    {"chat": "max_tokens", "completions": "max_tokens", "responses": "max_output_tokens", "messages": "max_tokens"}
)
_TELL_USAGE: frozenset[Api] = frozenset({"chat", "completions"})  # the others always do
_EMBEDS = re.compile(r"embed(?!ded)", re.I)
_RANKS = re.compile(r"rerank", re.I)
_SHOWN = 5  # names in a sentence; a public API lists hundreds


@dataclass(frozen=True, slots=True)
class Survey:
    """What one look at a server found.

    ``models`` may be named in a request, each with its ``state``; ``on_disk`` are ids that could be loaded by hand, for
    the sentence that says so. ``problem``: why no request would work ("" when one may), "loading" while the server says
    so itself. ``warning`` is a sentence for the owner's log, "" mostly.
    """

    models: tuple[ModelInfo, ...] = ()
    on_disk: tuple[str, ...] = ()
    slots: int = DEFAULT_SLOTS
    special_tokens: frozenset[str] = frozenset()
    apis: frozenset[Api] = frozenset({"chat"})
    problem: str = ""
    warning: str = ""

    @property
    def loaded(self) -> frozenset[str]:
        return frozenset(model.id for model in self.models if model.state in ("loaded", "sleeping"))


class Dialect:
    """One server of this kind. Made anew for each server; holds what it has to remember of it, and nothing open."""

    # For people and metrics.
    name: ClassVar[str] = "OpenAI-compatible server"
    # What node.runtime.kind calls it.
    kind: ClassVar[str] = "openai"
    # URLs that it is found at where nobody set one.
    places: ClassVar[tuple[str, ...]] = ()
    # PARAMETERS that it knows, with its own name for each. Of a server that nothing is known of the repeat penalty is
    # left out: it is called one thing here and another there, and the wrong name does nothing.
    parameters: ClassVar[Mapping[str, str]] = MappingProxyType(
        {name: name for name in PARAMETERS if name != "repeat_penalty"}
    )
    # Of a Runtime; where it depends on how the server was started, ``survey`` sets it.
    can_load: bool = False
    evicts: bool = True
    # Whether a model that is named by nobody may be loaded because one is needed.
    loads_unasked: ClassVar[bool] = False

    def __init__(self, client: Client) -> None:
        self.client = client

    @classmethod
    async def answers(cls, client: Client, models: Reply) -> bool:
        """Whether the server behind ``client``, which said ``models`` when it was asked for /models, is of this kind.
        Raises OSError or TimeoutError when it went away."""
        return True

    async def survey(self, items: list[dict[str, Any]]) -> Survey:
        """One look; ``items`` are the entries of its /models, each with an ``id``. Raises as ``Client.ask``."""
        models = tuple(described(item, kind=kind_of(item["id"])) for item in items)
        return Survey(models, apis=frozenset({"chat", "completions", "embeddings"}))

    def path(self, api: Api) -> str:
        """Below ``client.base``."""
        return PATHS[api]

    def longest(self, inference: Inference, model: ModelInfo) -> int:
        """Tokens of the answer that the server is told as the most."""
        return inference.max_tokens

    def body(self, inference: Inference, model: ModelInfo) -> dict[str, Any]:
        """What is sent for ``inference``: known fields only, always a stream where there can be one, with usage, as
        closing its socket is the only cancel that every runtime understands."""
        api = inference.api
        body: dict[str, Any] = {"model": inference.model, **inference.content}
        for name, value in inference.parameters.items():
            if (wire := self.parameters.get(name)) is not None:
                body["stop_sequences" if api == "messages" and name == "stop" else wire] = value
        if (length := _LENGTHS.get(api)) is not None:
            body["stream"] = True
            body[length] = self.longest(inference, model)
        if api in _TELL_USAGE:
            body["stream_options"] = {"include_usage": True}
        return _in_words_of_responses(body) if api == "responses" else body

    @asynccontextmanager
    async def stream(
        self, inference: Inference, model: ModelInfo, headers: Mapping[str, str]
    ) -> AsyncIterator[RuntimeStream]:
        """As ``Runtime.stream``."""
        stream = await self.opened(inference, model, headers)
        try:
            yield stream
        finally:
            stream.close()

    async def opened(
        self,
        inference: Inference,
        model: ModelInfo,
        headers: Mapping[str, str],
        more: Mapping[str, Any] = MappingProxyType({}),
    ) -> HttpStream:
        """The stream that answers, which the caller closes. ``more`` are fields of its body. Raises ApiError as
        ``Runtime.stream``."""
        url = self.client.base + self.path(inference.api)
        return await self.client.transport.stream(url, headers, {**self.body(inference, model), **more})

    async def ask(self, inference: Inference, model: ModelInfo, headers: Mapping[str, str]) -> dict[str, Any]:
        """As ``Runtime.ask``."""
        url = self.client.base + self.path(inference.api)
        return await self.client.transport.answer(url, headers, self.body(inference, model))

    async def count_prompt(self, inference: Inference) -> int | None:
        """As ``Runtime.count_prompt``."""
        return None

    async def load(self, model: ModelInfo, config: LoadConfig, tell: Callable[[float | None], None]) -> Loaded:
        """As ``Runtime.load``."""
        raise ApiError("not_supported", f"{self.name} has no way to load a model from outside. Load it there by hand.")

    async def unload(self, model: ModelInfo) -> None:
        """As ``Runtime.unload``."""
        raise ApiError(
            "not_supported", f"{self.name} has no way to unload a model from outside. Unload it there by hand."
        )

    def how_to_get(self, wanted: str) -> str:
        """What the owner does when the server does not list the model ``wanted``; a clause with a verb first."""
        return "Load it there, or correct the name"

    def how_to_load(self, survey: Survey) -> str:
        """What the owner does when nothing is in memory, after "X answers at URL, but has no model"."""
        if survey.on_disk:
            return f" loaded. Load one of {names_of(survey.on_disk)}, or name it in node.runtime.default_model."
        return ". Start it with a model, or load one there."


def _in_words_of_responses(body: dict[str, Any]) -> dict[str, Any]:
    """``body`` with what a chat says in one field each where /v1/responses has it."""
    if (effort := body.pop("reasoning_effort", None)) is not None:
        body["reasoning"] = {"effort": effort}
    if (shape := body.pop("response_format", None)) is not None:
        body["text"] = {"format": {"type": shape["type"], **shape.get("json_schema", {})}}
    return body


def described(item: Mapping[str, Any], context: int = 0, **more: Any) -> ModelInfo:
    """An entry of /models. ``more`` are other fields of ``ModelInfo``."""
    return ModelInfo(id=item["id"], context=context, created=number(item, "created"), **more)


def kind_of(name: str) -> ModelKind:
    """What a model is for, where its server does not tell: by its name, which says so of nearly all that write no
    text."""
    return "rerank" if _RANKS.search(name) else "embedding" if _EMBEDS.search(name) else "chat"


def loaded_first(models: tuple[ModelInfo, ...]) -> tuple[ModelInfo, ...]:
    return tuple(sorted(models, key=lambda model: model.state not in ("loaded", "sleeping")))


def names_of(names: tuple[str, ...]) -> str:
    """For a sentence."""
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
