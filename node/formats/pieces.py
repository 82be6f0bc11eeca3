"""What an answer is made of, whichever of the newer APIs it is spoken in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from shared.contract.errors import ApiError
from shared.link.call import read_usage

# What a runtime calls a model or a call is repeated to the caller.
NAME = re.compile(r"[\x21-\x7e]{1,256}")


class Piece(NamedTuple):
    """Something that the model said (``text``), thought, or wrote as ``arguments`` of the call before; or the beginning
    of such a ``call``, of the function ``name``, which its output will name by ``id``."""

    kind: Literal["text", "thought", "call", "arguments"]
    text: str = ""
    id: str = ""
    name: str = ""


@dataclass(slots=True)
class Item:
    """Consecutive pieces of one kind: what the callers' API calls an item, or a block."""

    kind: Literal["text", "thought", "call"]
    index: int
    id: str = ""
    name: str = ""
    texts: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.texts)


def item_for(piece: Piece, current: Item | None, index: int, chat_id: str) -> Item:
    """The item that ``piece`` belongs to: ``current``, or a new one with ``index``. Raises ApiError."""
    kind = "call" if piece.kind == "arguments" else piece.kind
    if piece.kind != "call" and current is not None and kind == current.kind:
        return current
    if piece.kind == "arguments":
        raise ApiError("upstream_invalid", "The model runtime sent arguments of no call.")
    return Item(kind, index, piece.id or f"call_{chat_id}_{index}", piece.name)


def text_of(value: object) -> str:
    """``value`` where text belongs. Raises ApiError ``upstream_invalid`` for anything but text or null."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ApiError("upstream_invalid", "The model runtime sent text of another type.")
    return value


def object_of(value: object) -> Mapping[str, Any]:
    """``value`` where an object belongs. Raises ApiError ``upstream_invalid`` for anything but that or null."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ApiError("upstream_invalid", "The model runtime sent an event that is not as its API has it.")
    return value


def count_of(value: object) -> int:
    """``value`` where a number of tokens belongs; 0 for what cannot be one."""
    usage = read_usage({"prompt_tokens": value})
    return usage.prompt_tokens if usage is not None else 0


def call_piece(id: object, name: object, arguments: object = None) -> list[Piece]:
    """A call begins, with what is known of its arguments. Raises ApiError ``upstream_invalid`` without a name."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ApiError("upstream_invalid", "The model runtime sent a call without a name.")
    known = id if isinstance(id, str) and NAME.fullmatch(id) else ""
    return [Piece("call", "", known, name), Piece("arguments", text_of(arguments))]
