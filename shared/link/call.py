"""One request as it crosses from edge to node, and how it ends. The node answers a Call the same way wherever it came
from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from shared.contract.errors import ApiError
from shared.contract.operation import OPERATIONS, Operation
from shared.contract.surface import SURFACES, Surface
from shared.contract.usage import Usage
from shared.link.frames import FrameError


@dataclass(slots=True)
class Tally:
    """Tokens counted while an answer runs; exact once the runtime has reported usage, else one per event seen."""

    prompt_tokens: int = 0
    completion_tokens: int = 0

    def told(self, usage: Usage) -> None:
        """Take what a runtime says. Of what was said and read, 0 means that it does not count: LM Studio tells no other
        usage of embeddings (lmstudio-bug-tracker #1546)."""
        self.prompt_tokens = usage.prompt_tokens or self.prompt_tokens
        self.completion_tokens = usage.completion_tokens or self.completion_tokens

    def usage(self) -> Usage:
        return Usage(self.prompt_tokens, self.completion_tokens)


@dataclass(slots=True)
class Call:
    """``surface`` is what is asked for: an answer, or an operation. ``principal`` is opaque. ``deadline`` is in the
    receiver's monotonic seconds; on the wire it is what remains. ``max_tokens`` is the caller's plan's cap on one
    answer. ``path`` holds the parameters of the route's path and query. ``admin``: whoever brought the call over the
    link or HTTP may administer the node; the receiver knows, and it is never on the wire."""

    surface: Surface | Operation
    body: bytes
    chat_id: str
    request_id: str
    principal: str
    stream: bool
    deadline: float
    max_tokens: int | None = None
    path: Mapping[str, str] = field(default_factory=dict)
    admin: bool = False
    tally: Tally = field(default_factory=Tally)

    def to_wire(self, now: float) -> dict[str, Any]:
        return {
            "surface": self.surface.name,
            "chat_id": self.chat_id,
            "request_id": self.request_id,
            "principal": self.principal,
            "stream": self.stream,
            "deadline_ms": max(0, int((self.deadline - now) * 1000)),
            "max_tokens": self.max_tokens,
            "path": dict(self.path),
        }

    @classmethod
    def from_wire(cls, head: Mapping[str, Any], body: bytes, now: float) -> Call:
        """Raises FrameError for a head that no edge of this contract writes, ApiError for a surface of a newer one."""
        name = str(head.get("surface", ""))
        surface = SURFACES.get(name) or OPERATIONS.get(name)
        if surface is None:
            raise ApiError("not_supported", "The node is older than the edge and has no such route. Upgrade the node.")
        try:
            max_tokens = head.get("max_tokens")
            return cls(
                surface=surface,
                body=body,
                chat_id=str(head["chat_id"]),
                request_id=str(head["request_id"]),
                principal=str(head["principal"]),
                stream=bool(head["stream"]),
                deadline=now + int(head["deadline_ms"]) / 1000,
                max_tokens=None if max_tokens is None else int(max_tokens),
                path={str(name): str(value) for name, value in dict(head.get("path") or {}).items()},
            )
        except (KeyError, TypeError, ValueError, OverflowError):
            raise FrameError("an OPEN head lacks a field or holds a wrong one") from None


@dataclass(frozen=True, slots=True)
class End:
    """How an answer ended: ``outcome`` is a finish reason ("stop", "length", …), "stopped" or "cancelled"."""

    outcome: str
    usage: Usage
    model: str = ""

    def to_wire(self) -> dict[str, Any]:
        return {"outcome": self.outcome, "usage": self.usage.to_wire(), "model": self.model}

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any]) -> End:
        return cls(str(wire.get("outcome", "")), read_usage(wire.get("usage")) or Usage(), str(wire.get("model", "")))


# No context window is near this; a larger count is a broken runtime's.
_MAX_TOKENS = 100_000_000


def read_usage(wire: Any) -> Usage | None:
    """Usage from JSON, or None when it is missing or absurd (negative, not a number, past any context)."""
    if not isinstance(wire, Mapping):
        return None
    prompt, completion = wire.get("prompt_tokens"), wire.get("completion_tokens", 0)
    for count in (prompt, completion):
        if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count <= _MAX_TOKENS:
            return None
    assert isinstance(prompt, int)
    return Usage(prompt, completion)


class Outlet(Protocol):
    """Where an answer goes: an edge over the link, or a caller of the node's own HTTP surface.

    ``head`` once, before anything else. ``note`` is for bytes before the first token, ``data`` for the answer and its
    terminal marker; on a stream each holds whole events. ``data`` waits while the reader is slow. Errors are raised by
    the answer, never written here.
    """

    def head(self, headers: Mapping[str, str]) -> None: ...
    def note(self, payload: bytes) -> None: ...
    async def data(self, payload: bytes) -> None: ...
