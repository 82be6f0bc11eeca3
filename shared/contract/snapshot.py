"""What a node tells its edges about itself: one type, pushed over the link and again whenever it changes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from shared.contract import CONTRACT_VERSION

RuntimeState = Literal["starting", "loading", "ready", "unavailable"]
# "available": on disk, loaded when it is named. "sleeping": its place is kept, its memory is not.
ModelState = Literal["loaded", "loading", "available", "sleeping"]
ModelKind = Literal["chat", "embedding", "rerank"]
# What every node can answer, and what an older one that does not say can.
CHAT_SURFACES = ("chat", "openai.chat")
Record = TypeVar("Record", "ModelInfo", "ChatTypeInfo", "NodeSnapshot")
_SCALARS = {"int": int, "str": str, "bool": bool, "RuntimeState": str, "ModelState": str, "ModelKind": str}


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """One model the node can answer with.

    ``context`` is tokens per slot, ``max_context`` what it was trained for, ``size`` bytes; 0 when the runtime does not
    say. ``slots`` answers of it run at once; 0 when it shares the node's. ``vision``: it sees images. ``alias_of`` is
    the model that this is another name of, ``part_of`` the one in whose memory it is: of an adapter its base.
    """

    id: str
    context: int = 0
    owned_by: str = "hearthlink"
    created: int = 0
    state: ModelState = "loaded"
    kind: ModelKind = "chat"
    slots: int = 0
    vision: bool = False
    max_context: int = 0
    size: int = 0
    alias_of: str = ""
    part_of: str = ""

    @property
    def in_memory(self) -> bool:
        """One that sleeps wakes by itself when it is asked."""
        return self.state in ("loaded", "sleeping")

    @property
    def home(self) -> str:
        """The model with which it comes into memory, leaves it, and shares slots: mostly itself."""
        return self.part_of or self.alias_of or self.id

    @property
    def names(self) -> tuple[str, ...]:
        """Under which a plan may allow it: its own, and that of the model it stands for."""
        return (self.id, self.alias_of) if self.alias_of else (self.id,)


def default_model(models: Iterable[ModelInfo], default: str, kind: ModelKind) -> str:
    """The model for a request that names none and needs one of ``kind``: the ``default`` where it is one, else the
    first of them, one in memory before others."""
    fitting = [model for model in models if model.kind == kind and not model.alias_of]
    if not fitting or any(model.id == default for model in fitting):
        return default
    return min(fitting, key=lambda model: model.state != "loaded").id


@dataclass(frozen=True, slots=True)
class ChatTypeInfo:
    """A chat type as callers may see it: never its prompt, only what the prompt costs (tokens, an estimate)."""

    name: str
    description: str = ""
    max_tokens: int = 512
    prompt_tokens: int = 0
    model: str | None = None


@dataclass(frozen=True, slots=True)
class NodeSnapshot:
    """State of one node at one moment. Ordered by ``seq`` within one ``boot_id``.

    ``slots`` answers run at once, ``queue_limit`` more may wait. ``reason`` is a sentence for people when
    ``runtime_state`` is not "ready". ``surfaces`` are names of ``SURFACES`` that the node's runtime has a way for.
    ``streamed`` are models whose owner wants a stream for those who do not say whether they want one.
    """

    node_id: str
    boot_id: str
    seq: int = 0
    contract: int = CONTRACT_VERSION
    version: str = ""
    runtime: str = ""
    runtime_state: RuntimeState = "starting"
    reason: str = ""
    default_model: str = ""
    models: tuple[ModelInfo, ...] = ()
    chat_types: tuple[ChatTypeInfo, ...] = ()
    slots: int = 1
    running: int = 0
    queued: int = 0
    queue_limit: int = 64
    max_tokens: int = field(default=4096)
    surfaces: tuple[str, ...] = CHAT_SURFACES
    streamed: tuple[str, ...] = ()

    def streams(self, model: str | None, chat_type: str | None) -> bool:
        """Whether those who do not say get a stream: from ``model``, as a caller names it, or the chat type's."""
        if model is None or model == "default" or model.startswith("chat:"):
            kind = self.chat_type(chat_type) if chat_type is not None else None
            model = (kind.model if kind is not None else None) or self.default_model
        return model in self.streamed

    @property
    def ready(self) -> bool:
        return self.runtime_state == "ready"

    def chat_type(self, name: str) -> ChatTypeInfo | None:
        return next((kind for kind in self.chat_types if kind.name == name), None)

    def to_wire(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any]) -> NodeSnapshot:
        """Read a peer's snapshot; fields this version does not know are ignored. Raises ValueError when unusable."""
        try:
            known = {name: wire[name] for name in _names(cls) if name in wire}
            known["models"] = tuple(_checked(ModelInfo(**_only(ModelInfo, item))) for item in wire.get("models", ()))
            known["chat_types"] = tuple(
                _checked(ChatTypeInfo(**_only(ChatTypeInfo, item))) for item in wire.get("chat_types", ())
            )
            known["surfaces"] = tuple(str(name) for name in wire.get("surfaces", CHAT_SURFACES))
            known["streamed"] = tuple(str(name) for name in wire.get("streamed", ()))
            return _checked(cls(**known))
        except (TypeError, AttributeError) as error:
            raise ValueError(f"not a node snapshot: {error}") from None


def _names(kind: type[Any]) -> list[str]:
    return [item.name for item in dataclasses.fields(kind)]


def _checked(record: Record) -> Record:
    """Raises TypeError for a number or text field that holds something else: a peer's JSON can hold anything."""
    for item in dataclasses.fields(record):
        value, kind = getattr(record, item.name), _SCALARS.get(str(item.type))
        if kind is not None and type(value) is not kind:
            raise TypeError(f"{item.name} is not of type {item.type}")
    return record


def _only(kind: type[Any], item: Mapping[str, Any]) -> dict[str, Any]:
    return {name: item[name] for name in _names(kind) if name in item}
