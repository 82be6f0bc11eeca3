"""``/admin/maintenance``: closed to all but admins, and open again."""

from __future__ import annotations

import time

from pydantic import BaseModel, ConfigDict
from starlette.requests import Request
from starlette.responses import Response

from edge.api.admin.entry import administering, answer, enter, read, resource
from edge.api.audit import note
from edge.services import Services
from edge.store.records import Maintenance
from edge.store.rows import maintenance_row

_ROUTE = "/admin/maintenance"


class Closing(BaseModel):
    """``message`` is what callers read. Running answers go on unless ``ends_answers``."""

    model_config = ConfigDict(extra="forbid", strict=True)

    message: str | None = None
    ends_answers: bool = False


class ClosingRoutes:
    def __init__(self, edge: Services) -> None:
        self._edge = edge
        self.routes = [resource(_ROUTE, GET=self.show, PUT=self.close, DELETE=self.reopen)]

    async def show(self, request: Request) -> Response:
        await enter(request, self._edge, _ROUTE)
        async with administering(self._edge) as admin:
            return answer(maintenance_row(await admin.maintenance()))

    async def close(self, request: Request) -> Response:
        """Also while it is closed already: the message is the new one."""
        await enter(request, self._edge, _ROUTE)
        body = await read(request, Closing)
        async with administering(self._edge) as admin:
            maintenance = Maintenance.begun(body.message, time.time(), ends_answers=body.ends_answers)
            await admin.set_maintenance(maintenance)
            note(request.scope, act="maintenance.on", target="edge")
        return answer(maintenance_row(maintenance))

    async def reopen(self, request: Request) -> Response:
        await enter(request, self._edge, _ROUTE)
        async with administering(self._edge) as admin:
            await admin.set_maintenance(None)
            note(request.scope, act="maintenance.off", target="edge")
        return answer(maintenance_row(None))
