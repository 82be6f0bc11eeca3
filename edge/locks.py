"""Locks of a token: one web origin, some chat types, a longest answer, so many answers.

Whoever mints a token for somebody else, from a key of its own or on the edge's machine, asks for them; every route
keeps them. A lock only ever narrows what is there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from edge.plans import Plan
from edge.principals import Principal
from shared import addresses
from shared.contract.errors import ApiError

# Far above any answer and any use of one token; both are whole numbers in a token's claims.
_MAX_COUNT = 1_000_000
_CHAT_TYPE = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")  # as nodes name them
# With the widest origin and the longest names of plan and key, what these leave fits into a token (``Tokens.mint``).
_MAX_CHAT_TYPES_CHARS = 256
_MAX_ORIGIN_CHARS = 255


@dataclass(frozen=True, slots=True)
class Locks:
    """As in ``Principal``; None locks nothing. Raises ApiError ``invalid_request`` for values that lock nothing in."""

    origin: str | None = None
    chat_types: tuple[str, ...] | None = None
    max_tokens: int | None = None
    uses: int | None = None

    def __post_init__(self) -> None:
        if self.origin is not None:
            _check_origin(self.origin)
        if self.chat_types is not None:
            _check_chat_types(self.chat_types)
        for name in ("max_tokens", "uses"):
            _check_count(name, getattr(self, name))

    @classmethod
    def from_body(cls, body: Mapping[str, Any]) -> Locks:
        """The fields ``LOCKS`` of a request's body; others in it are not looked at. Raises ApiError
        ``invalid_request``."""
        chat_types = body.get("chat_types")
        if chat_types is not None and not isinstance(chat_types, list):
            raise _refused("chat_types", "is a list of names of chat types")
        return cls(
            origin=body.get("origin"),
            chat_types=None if chat_types is None else tuple(chat_types),
            max_tokens=body.get("max_tokens"),
            uses=body.get("uses"),
        )

    def on(self, principal: Principal) -> Principal:
        """``principal`` with these locks besides its own. Raises ApiError ``invalid_request`` where its own leave
        nothing of what is asked for."""
        if self.origin is not None and principal.origin not in (None, self.origin):
            raise _refused("origin", "is not the one that this credential is locked to")
        beyond = [name for name in self.chat_types or () if name not in (principal.chat_types or (name,))]
        if beyond:
            raise _refused("chat_types", f"has {beyond[0]!r}, which this credential is not for")
        return replace(
            principal,
            origin=self.origin or principal.origin,
            chat_types=self.chat_types or principal.chat_types,
            max_tokens=_least(self.max_tokens, principal.max_tokens),
            uses=_least(self.uses, principal.uses),
        )


def narrowed(plan: Plan, principal: Principal) -> Plan:
    """``plan`` with the longest answer that ``principal`` may have."""
    if principal.max_tokens is None:
        return plan
    return plan.limited({"tokens_per_request": _least(plan.tokens_per_request, principal.max_tokens)})


def locks_of(principal: Principal) -> dict[str, Any]:
    """The member ``locks`` of an answer that says who the caller is; nothing where it has none."""
    locks = {name: value for name in LOCKS if (value := getattr(principal, name)) is not None}
    return {"locks": locks} if locks else {}


LOCKS = ("origin", "chat_types", "max_tokens", "uses")


def _check_origin(origin: Any) -> None:
    if not isinstance(origin, str) or not origin.isascii() or len(origin) > _MAX_ORIGIN_CHARS:
        raise _refused("origin", "is scheme and host of a page, such as https://app.example.org")
    try:
        addresses.origin(origin)
    except ValueError as error:
        raise _refused("origin", str(error)) from None


def _check_chat_types(names: tuple[Any, ...]) -> None:
    if not names or not all(isinstance(name, str) and _CHAT_TYPE.fullmatch(name) for name in names):
        raise _refused("chat_types", "is a list of names of chat types, at least one")
    if sum(len(name) + 3 for name in names) > _MAX_CHAT_TYPES_CHARS:
        raise _refused("chat_types", "has more names than fit into a token: leave some out, or lock it to none")


def _check_count(name: str, count: Any) -> None:
    if count is not None and (type(count) is not int or not 1 <= count <= _MAX_COUNT):
        raise _refused(name, f"is a whole number from 1 to {_MAX_COUNT}")


def _least(one: int | None, other: int | None) -> int | None:
    return min((count for count in (one, other) if count is not None), default=None)


def _refused(name: str, what: str) -> ApiError:
    return ApiError("invalid_request", f"The lock {name!r} {what}.", param=name)
