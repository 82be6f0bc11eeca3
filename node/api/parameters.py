"""Which parameters an inference goes with: what the caller wrote, what the owner adds, forces and takes out.

forced (chat type, then model)  >  the request's own  >  the chat type's  >  the model's defaults  >  nothing sent
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from typing import Any

from node.models.models import Defaults
from node.prompts import ChatType

LONGEST = "max_tokens"
# What says something of tools, and makes runtimes refuse a request that has none.
_OF_TOOLS = frozenset({"tool_choice", "parallel_tool_calls"})


@dataclass(frozen=True, slots=True)
class Settled:
    """``asked`` tokens are the longest answer that somebody wants, None without a wish. ``added``, ``forced`` and
    ``dropped`` are names, for whoever watches; ``dropped`` have no effect at this runtime."""

    parameters: Mapping[str, Any]
    asked: int | None
    added: tuple[str, ...] = ()
    forced: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()


def settle(
    own: Mapping[str, Any], asked: int | None, kind: ChatType | None, defaults: Defaults, known: frozenset[str]
) -> Settled:
    """``own`` and ``asked`` are the request's; ``known`` are parameters that the runtime has a way for. No answer is
    longer than ``asked``, whatever is forced or stripped: an edge has set no more tokens aside."""
    plain = not (defaults.added or defaults.forced or defaults.stripped) and own.keys() <= known
    if plain and kind is None:
        return Settled(own, asked)
    if plain and kind is not None and not kind.forced and not kind.strip and kind.sampling.keys() <= known:
        return Settled({**kind.sampling, **own}, asked, tuple(name for name in kind.sampling if name not in own))
    found = dict(own) if asked is None else {**own, LONGEST: asked}
    forced: dict[str, Any] = {**defaults.forced}
    added: dict[str, Any] = {**defaults.added}
    stripped = defaults.stripped
    if kind is not None:
        forced |= kind.forced
        added |= kind.sampling
        stripped |= frozenset(kind.strip)
    for name in stripped:
        found.pop(name, None)
    added = {name: value for name, value in added.items() if name not in found and name not in forced}
    found |= added
    found |= forced
    longest = [tokens for tokens in (asked, found.pop(LONGEST, None)) if tokens is not None]
    without = found.keys() - known
    if "tools" not in found or "tools" in without:
        without |= found.keys() & _OF_TOOLS
    dropped = tuple(name for name in own if name in without)
    kept = {name: value for name, value in found.items() if name not in without}
    return Settled(kept, min(longest, default=None), _but(added, without), _but(forced, without), dropped)


def _but(names: Iterable[str], without: Set[str]) -> tuple[str, ...]:
    return tuple(name for name in names if name not in without)
