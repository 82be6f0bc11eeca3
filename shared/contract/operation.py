"""Routes of the edge that a node carries out and that are no answer of a model: one row each.

Edge and node serve the same paths. At the edge the caller needs ``scope``; at the node the machine that asks, edge or
person, needs ``role``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from shared.contract import sse
from shared.contract.errors import ApiError


@dataclass(frozen=True, slots=True)
class Operation:
    """``streams``: the answer may be a stream of events, for whoever accepts one; ``live``: it is one for whoever does
    not ask for JSON. ``seconds`` bound a whole answer.
    ``owned``: it is about what belongs to the caller, who is named to the node as for a chat."""

    name: str
    method: Literal["GET", "POST", "DELETE"]
    path: str
    role: Literal["infer", "admin"]
    scope: Literal["chat", "admin"]
    streams: bool = False
    seconds: float = 15.0
    live: bool = False

    @property
    def owned(self) -> bool:
        return self.scope == "chat"

    @staticmethod
    def frame_error(error: ApiError, request_id: str) -> bytes:
        """What ends a stream that failed."""
        return sse.encode(error.envelope(request_id), event="error")


def _admin(name: str, method: Literal["GET", "POST", "DELETE"], path: str, **more: float | bool) -> Operation:
    return Operation(name, method, path, "admin", "admin", **more)  # pyright: ignore[reportArgumentType]


def _own(name: str, method: Literal["GET", "POST", "DELETE"], path: str) -> Operation:
    return Operation(name, method, path, "infer", "chat")


# A model of 100 GB from a slow disk.
_LOAD_SECONDS = 3600.0
# A watcher may stay for a working day.
_WATCH_SECONDS = 86_400.0

OPERATIONS: Mapping[str, Operation] = MappingProxyType(
    {
        operation.name: operation
        for operation in (
            _admin("models.list", "GET", "/admin/models"),
            _admin("models.activate", "POST", "/admin/models/activate"),
            _admin("models.load", "POST", "/admin/models/load", streams=True, seconds=_LOAD_SECONDS),
            _admin("models.unload", "POST", "/admin/models/unload", seconds=120.0),
            _admin("models.yield", "POST", "/admin/models/yield", seconds=120.0),
            _admin("models.resume", "POST", "/admin/models/resume", streams=True, seconds=_LOAD_SECONDS),
            _admin("events", "GET", "/admin/events", streams=True, live=True, seconds=_WATCH_SECONDS),
            _admin("capture", "POST", "/admin/events/capture"),
            _admin("metrics", "GET", "/admin/metrics"),
            _own("conversations.list", "GET", "/api/conversations"),
            _own("conversations.export", "GET", "/api/conversations/export"),
            _own("conversations.clear", "DELETE", "/api/conversations"),
            _own("conversations.read", "GET", "/api/conversations/{id}"),
            _own("conversations.delete", "DELETE", "/api/conversations/{id}"),
        )
    }
)


def by_path() -> dict[str, dict[str, Operation]]:
    """The operations of each path by method, so that one route takes all methods of a path and names them to whoever
    tries another. In the order of ``OPERATIONS``: what is spelled out goes before a parameter."""
    found: dict[str, dict[str, Operation]] = {}
    for operation in OPERATIONS.values():
        found.setdefault(operation.path, {})[operation.method] = operation
    return found
