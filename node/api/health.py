"""Health, models and metrics of the node."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from node.admission import Admission
from node.api.snapshots import snapshot
from node.services import Services
from shared import __version__
from shared.contract.errors import ApiError
from shared.contract.listing import chat_type_list, model_list, model_object


class Health:
    """The small GET routes, one method each. The lists want the node's token; health and metrics only a machine that
    may call the node."""

    def __init__(self, node: Services, admission: Admission) -> None:
        self._node = node
        self._admission = admission

    async def livez(self, request: Request) -> Response:
        await self._admission.admit_machine(request.scope)
        return JSONResponse({"status": "ok"})

    async def healthz(self, request: Request) -> Response:
        """503 when the runtime cannot answer or nobody can call; the reason is for the owner, who is the only one that
        gets here. ``tailnet`` is null for a node that is not on one."""
        await self._admission.admit_machine(request.scope)
        now, placement = snapshot(self._node), self._node.placement
        away = placement.reason if placement is not None else ""
        state = "yielded" if self._node.models.yielded else now.runtime_state
        payload = {
            "status": "unreachable" if away else "ok" if now.ready else state,
            "version": __version__,
            "runtime": now.runtime,
            "reason": away or now.reason,
            "runtime_state": now.runtime_state,
            "runtime_reason": now.reason,
            "model": now.default_model,
            "slots": now.slots,
            "running": now.running,
            "queued": now.queued,
            "broken_chat_types": self._node.chat_types.broken,
            "tailnet": placement.tailnet if placement is not None else None,
        }
        return JSONResponse(payload, 200 if now.ready and not away else 503)

    async def metrics(self, request: Request) -> Response:
        await self._admission.admit_machine(request.scope)
        await self._node.gpus.refresh()
        return Response(self._node.metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def models(self, request: Request) -> Response:
        await self._admission.admit(request.scope)
        return JSONResponse(model_list(self._node.models.status().models))

    async def model(self, request: Request) -> Response:
        await self._admission.admit(request.scope)
        name = request.path_params["id"]
        found = self._node.models.status().model(name)
        if found is None:
            raise ApiError("model_not_found", f"There is no model {name[:100]!r} here. GET /v1/models lists them.")
        return JSONResponse(model_object(found))

    async def chat_types(self, request: Request) -> Response:
        await self._admission.admit(request.scope)
        return JSONResponse(chat_type_list(self._node.chat_types.infos()))
