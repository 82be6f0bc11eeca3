"""``/admin/limits``: what single callers used today, and limits of their own."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from edge.api.admin.entry import administering, answer, checked, enter, read, resource
from edge.api.audit import note
from edge.services import Services
from edge.store.admin import known_caller
from edge.store.rows import standing_row
from shared.contract.errors import ApiError

_MOST = 1000  # callers in one answer, those who used most: a page of anonymous ones may have any number
_CALLER = "/admin/limits/{principal}"
_Limit = Annotated[int, Field(ge=0, le=10**15)] | None


class OwnLimits(BaseModel):
    """The names of ``plans.LIMITS``. Null is no limit; what is not named stays as it is."""

    model_config = ConfigDict(extra="forbid", strict=True)

    requests_per_minute: _Limit = None
    streams: _Limit = None
    tokens_per_day: _Limit = None
    tokens_per_request: _Limit = None


class LimitRoutes:
    def __init__(self, edge: Services) -> None:
        self._edge = edge
        self.routes = [
            resource("/admin/limits", GET=self.list_),
            resource(_CALLER, GET=self.show, PATCH=self.change, DELETE=self.clear),
            resource(f"{_CALLER}/reset", POST=self.reset),
        ]

    async def list_(self, request: Request) -> Response:
        await enter(request, self._edge, "/admin/limits")
        async with administering(self._edge) as admin:
            found = await admin.standings()
        rows = [standing_row(standing) for standing in found[:_MOST]]
        return answer({"object": "list", "data": rows, "has_more": len(found) > _MOST})

    async def show(self, request: Request) -> Response:
        principal = await self._enter(request)
        async with administering(self._edge) as admin:
            return answer(standing_row(await admin.standing(await known_caller(admin, principal))))

    async def change(self, request: Request) -> Response:
        principal = await self._enter(request)
        body = await read(request, OwnLimits)
        changes = body.model_dump(include=body.model_fields_set)
        if not changes:
            raise ApiError("invalid_request", f"Name one limit at least: {', '.join(OwnLimits.model_fields)}.")
        async with administering(self._edge) as admin:
            limits = await admin.set_limits(await known_caller(admin, principal), changes)
            note(request.scope, act="limit.set", target=principal)
        return answer({"principal": principal, "limits": dict(limits)})

    async def clear(self, request: Request) -> Response:
        """Back to the plan's."""
        principal = await self._enter(request)
        async with administering(self._edge) as admin:
            await admin.clear_limits(await known_caller(admin, principal))
            note(request.scope, act="limit.clear", target=principal)
        return Response(status_code=204)

    async def reset(self, request: Request) -> Response:
        """As if the caller had used nothing today."""
        principal = await self._enter(request, f"{_CALLER}/reset")
        async with administering(self._edge) as admin:
            await admin.reset_usage(await known_caller(admin, principal))
            note(request.scope, act="limit.reset", target=principal)
        return Response(status_code=204)

    async def _enter(self, request: Request, route: str = _CALLER) -> str:
        await enter(request, self._edge, route)
        return checked(request.path_params["principal"])
