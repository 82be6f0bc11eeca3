"""What a node tells its edges about itself: one type, pushed over the link and again whenever it changes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from shared.contract import CONTRACT_VERSION

RuntimeState = Literal["starting", "loading", "ready", "unavailable"]
Record = TypeVar("Record", "ModelInfo", "ChatTypeInfo", "NodeSnapshot")
_SCALARS = {"int": int, "str": str, "RuntimeState": str}


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """One model the node can answer with. ``context`` is tokens per slot, 0 when the runtime does not say."""

    id: str
    context: int = 0
    owned_by: str = "hearthlink"
    created: int = 0


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
    ``runtime_state`` is not "ready".
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
