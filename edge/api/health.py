"""Health for everybody in two words, and for the owner (ops listener) with every node's state and reason."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from edge.services import Services
from edge.upstreams.upstream import Upstream
from shared import __version__
from shared.asgi.front import no_such_route

if TYPE_CHECKING:  # only an edge in a tailnet imports it
    from edge.upstreams.machine import Machine


_SERVING = ("ok", "degraded")


class HealthRoutes:
    def __init__(self, edge: Services) -> None:
        self._edge = edge

    async def livez(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def readyz(self, request: Request) -> Response:
        """Does this edge take requests? 503 while it drains; whether a node answers is ``/healthz``."""
        if self._edge.draining:
            return JSONResponse({"status": "draining"}, 503)
        return JSONResponse({"status": "ok"})

    async def healthz(self, request: Request) -> Response:
        """200 when a chat could be answered now: ``ok``, or ``degraded`` when not everybody's."""
        payload: dict[str, Any] = {"status": self._status(), "version": __version__}
        if request.scope["state"]["listener"] == "ops":
            payload["nodes"] = [_node(upstream) for upstream in self._edge.upstreams.all]
            payload["tailnet"] = _tailnet(self._edge)
            payload["chats"] = len(self._edge.chats)
            payload["store"] = self._edge.store.problem or "ok"
            payload["audit"] = self._edge.audit.problem or "ok"
        return JSONResponse(payload, 200 if payload["status"] in _SERVING else 503, {"cache-control": "no-store"})

    async def health(self, request: Request) -> Response:
        """The same fact in the words of ``/health``."""
        healthy = self._status() in _SERVING
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        payload = {"status": "healthy" if healthy else "unhealthy", "timestamp": now}
        return JSONResponse(payload, 200 if healthy else 503, {"cache-control": "no-store"})

    async def metrics(self, request: Request) -> Response:
        if request.scope["state"]["listener"] != "ops":
            raise no_such_route(request.scope)
        return Response(self._edge.metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")

    def _status(self) -> str:
        if self._edge.draining:
            return "draining"
        if self._edge.store.records.maintenance is not None:
            return "maintenance"
        if not self._edge.upstreams.ready or self._edge.audit.refuses:
            return "unavailable"
        return "ok" if self._edge.store.answering else "degraded"  # without counts, callers with a quota are refused


def _tailnet(edge: Services) -> dict[str, Any] | None:
    """This machine's own place in it; None where nothing here uses one."""
    if edge.tailnet is None:
        return None
    view = edge.tailnet.view
    return {
        "state": view.state if view.failure is None else None,
        "reason": str(view.problem or ""),
        "machine": view.node.name if view.node is not None else "",
        "addresses": list(view.addresses),
        "serve": edge.serve,
    }


def _node(upstream: Upstream) -> dict[str, Any]:
    connected = upstream.connected
    row: dict[str, Any] = {
        "name": upstream.name,
        "url": upstream.url,
        "connected": connected,
        "ready": upstream.ready,
        "reason": "" if connected else upstream.reason,
        "cause": None if connected else upstream.cause,
        "tailnet": _machine(upstream.machine, connected) if upstream.machine is not None else None,
    }
    if (snapshot := upstream.snapshot) is not None:
        row |= {
            "node_id": snapshot.node_id,
            "version": snapshot.version,
            "runtime": snapshot.runtime,
            "runtime_state": snapshot.runtime_state,
            "runtime_reason": snapshot.reason,
            "models": [model.id for model in snapshot.models],
            "slots": snapshot.slots,
            "running": snapshot.running,
            "queued": snapshot.queued,
        }
    return row


def _machine(machine: Machine, connected: bool) -> dict[str, Any]:
    node, path = machine.node, machine.path if connected else "unknown"
    return {
        "machine": node.name if node is not None else machine.wanted,
        "address": machine.address,
        "online": machine.online,
        "path": path,
        "relay": machine.relay if path == "relayed" else "",
        "rtt_ms": round(machine.round_trip * 1000, 3) if machine.round_trip is not None else None,
        "key_expiry": node.key_expiry.isoformat() if node is not None and node.key_expiry is not None else None,
    }
