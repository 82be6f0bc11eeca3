"""Models and chat types that a caller may use, from what the nodes last said."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from edge.api.accounting import charge
from edge.api.caller import Caller
from edge.services import Services
from shared.contract.errors import ApiError
from shared.contract.listing import chat_type_list, model_list, model_object
from shared.contract.snapshot import ChatTypeInfo, ModelInfo, NodeSnapshot


class ListRoutes:
    def __init__(self, edge: Services) -> None:
        self._edge = edge

    async def models(self, request: Request) -> Response:
        caller, snapshot = await self._enter(request, "/v1/models")
        return JSONResponse(model_list(self._models(caller, snapshot)))

    async def model(self, request: Request) -> Response:
        caller, snapshot = await self._enter(request, "/v1/models/{id}")
        name = request.path_params["id"]
        for model in self._models(caller, snapshot):
            if model.id == name:
                return JSONResponse(model_object(model))
        raise ApiError("model_not_found", "There is no such model for you. GET /v1/models lists them.")

    async def chat_types(self, request: Request) -> Response:
        caller, snapshot = await self._enter(request, "/v1/chat/types")
        return JSONResponse(chat_type_list(self._chat_types(caller, snapshot)))

    async def _enter(self, request: Request, route: str) -> tuple[Caller, NodeSnapshot]:
        caller = await charge(request.scope, self._edge, route)
        snapshot = self._edge.upstreams.choose().snapshot
        if snapshot is None:
            raise ApiError("node_unavailable", "The node has not said yet what it has. Try again in a moment.")
        return caller, snapshot

    def _chat_types(self, caller: Caller, snapshot: NodeSnapshot) -> list[ChatTypeInfo]:
        lock = caller.principal.chat_types
        return [
            kind
            for kind in snapshot.chat_types
            if caller.plan.allows_chat_type(kind.name) and (lock is None or kind.name in lock)
        ]

    def _models(self, caller: Caller, snapshot: NodeSnapshot) -> list[ModelInfo]:
        """Chat types first, as the models ``chat:<type>`` that they are on the OpenAI surface, then raw models."""
        contexts = {model.id: model.context for model in snapshot.models}
        types = [
            ModelInfo(f"chat:{kind.name}", contexts.get(kind.model or snapshot.default_model, 0))
            for kind in self._chat_types(caller, snapshot)
        ]
        if caller.principal.chat_types is not None:
            return types  # a token that is locked to chat types asks nothing else
        open_to_all = caller.principal.kind == "anonymous" and self._edge.policy.anonymous_raw_models
        raw = [model for model in snapshot.models if open_to_all or any(map(caller.plan.allows_model, model.names))]
        return types + raw
