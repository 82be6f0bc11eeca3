"""The edge's one line per request: who, when, route, chat type, tokens, outcome, node. Never what was said."""

from __future__ import annotations

from typing import Any

from edge.metrics import Metrics
from shared.asgi.types import App, Receive, Scope, Send
from shared.audit_sink import AuditSink
from shared.contract.errors import ApiError

# Refusals of one code that are written per second; the rest are only counted, so that a flood is not a disk problem.
_REFUSALS_A_SECOND = 10
# Routes that leave a line of who did what. Health, metrics and the page are served whatever happens to the lines.
_RECORDED = ("/v1/", "/api/", "/admin/")
# Seconds after which a caller who was refused for want of an audit log may try again.
_UNRECORDED_RETRY = 10.0


class Audit:
    """Hears of every request from ``Front``. A route that has something to say puts it in ``note(scope)``; requests
    that say nothing (health probes, preflights) leave no line. ``sink`` stays the caller's."""

    def __init__(self, sink: AuditSink, metrics: Metrics) -> None:
        self._sink = sink
        self._metrics = metrics
        self._refused: dict[str, int] = {}
        metrics.gauge("audit_failing", "1 while audit lines cannot be written", lambda: sink.problem is not None)
        metrics.gauge("audit_lines_waiting", "Audit lines in memory, not written yet", lambda: sink.waiting)
        metrics.gauge("audit_lines_dropped", "Audit lines lost since the start", lambda: sink.dropped)

    def tick(self, now: float) -> None:
        """Once a second: begin counting anew, and see whether lines are written."""
        self._refused.clear()
        self._sink.look()

    def finished(self, scope: Scope, status: int, seconds: float) -> None:
        notes = scope["state"].get("audit")
        error: ApiError | None = scope["state"].get("error")
        route = notes["route"] if notes else "other"
        if error is not None:
            status = status or error.status  # answered by the server itself, while the app waited for the body
        self._metrics.requests.count(route, status)
        if error is not None:
            written = self._refusal_is_written(error)
            if not written and "prompt_tokens" not in (notes or {}):  # an answer that had begun is always written
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
        self._sink.write({**line, **(notes or {})})

    def refused(self, error: ApiError, request_id: str) -> None:
        """A request that came to no route: it was no HTTP, too large, too slow, or on one connection too many."""
        self._metrics.requests.count("other", error.status)
        if self._refusal_is_written(error):
            self._sink.write(
                {"route": "other", "status": error.status, "request_id": request_id, "outcome": error.code}
            )

    def _refusal_is_written(self, error: ApiError) -> bool:
        self._metrics.refusals.count(error.code)
        count = self._refused[error.code] = self._refused.get(error.code, 0) + 1
        # While lines wait in memory, refusals would push out those of answers.
        return count <= _REFUSALS_A_SECOND and self._sink.problem is None

    def strictly(self, app: App) -> App:
        """``app``, which while the sink ``refuses`` gets no request that would leave a line. Raises ApiError."""

        async def recorded(scope: Scope, receive: Receive, send: Send) -> None:
            if self._sink.refuses and scope["path"].startswith(_RECORDED):
                raise ApiError(
                    "overloaded",
                    "This server cannot write its audit log, and answers nobody meanwhile. Its owner has been told.",
                    retry_after=_UNRECORDED_RETRY,
                )
            await app(scope, receive, send)

        return recorded


def note(scope: Scope, **fields: Any) -> None:
    """Add to the request's audit line; the first call names the ``route``."""
    scope["state"].setdefault("audit", {"route": ""}).update(fields)
