"""The edge's one line per request: who, when, route, chat type, tokens, outcome, node. Never what was said."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from edge.metrics import Metrics
from shared.asgi.types import Scope
from shared.contract.errors import ApiError

# Refusals of one code that are written per second; the rest are only counted, so that a flood is not a disk problem.
_REFUSALS_A_SECOND = 10


class Audit:
    """Hears of every request from ``Front``. A route that has something to say puts it in ``note(scope)``; requests
    that say nothing (health probes, preflights) leave no line. ``write`` is the log's audit sink."""

    def __init__(self, write: Callable[[Mapping[str, Any]], None], metrics: Metrics) -> None:
        self._write = write
        self._metrics = metrics
        self._refused: dict[str, int] = {}

    def tick(self, now: float) -> None:
        """Once a second: begin counting anew."""
        self._refused.clear()

    def finished(self, scope: Scope, status: int, seconds: float) -> None:
        notes = scope["state"].get("audit")
        error: ApiError | None = scope["state"].get("error")
        route = notes["route"] if notes else "other"
        self._metrics.requests.count(route, status)
        if error is not None:
            self._metrics.refusals.count(error.code)
            count = self._refused[error.code] = self._refused.get(error.code, 0) + 1
            if count > _REFUSALS_A_SECOND:
                return
        elif notes is None:
            return
        line: dict[str, Any] = {
            "method": scope["method"],
            "route": route,
            "status": status,
            "duration_ms": round(seconds * 1000, 1),
            "request_id": scope["state"]["request_id"],
        }
        if error is not None:
            line["outcome"] = error.code
        self._write({**line, **(notes or {})})


def note(scope: Scope, **fields: Any) -> None:
    """Add to the request's audit line; the first call names the ``route``."""
    scope["state"].setdefault("audit", {"route": ""}).update(fields)
