"""``/admin/signing-keys``: the keys that tokens are signed with. No answer holds one."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict
from starlette.requests import Request
from starlette.responses import Response

from edge.api.admin.entry import administering, answer, enter, read, resource
from edge.api.audit import note
from edge.services import Services
from edge.store.admin import renew_signing_keys
from shared.contract.errors import ApiError
from shared.signing_keys import SigningKeys

_ROUTE = "/admin/signing-keys"


class Rotation(BaseModel):
    """``leaked``: somebody else may have the keys, so every token that is out ends."""

    model_config = ConfigDict(extra="forbid", strict=True)

    leaked: bool = False


class SigningRoutes:
    def __init__(self, edge: Services) -> None:
        self._edge = edge
        self.routes = [resource(_ROUTE, GET=self.show, POST=self.rotate)]

    async def show(self, request: Request) -> Response:
        await enter(request, self._edge, _ROUTE)
        self._check_place()
        async with administering(self._edge) as admin:
            return answer(_row(await admin.signing_keys()))

    async def rotate(self, request: Request) -> Response:
        """The next key signs from now on; tokens that are out stay valid until they end, unless the keys leaked."""
        await enter(request, self._edge, _ROUTE)
        body = await read(request, Rotation)
        self._check_place()
        async with administering(self._edge) as admin:
            keys = await renew_signing_keys(admin, leaked=body.leaked)
            note(request.scope, act="signing-keys.rotate", target="all" if body.leaked else "current")
        return answer(_row(keys))

    def _check_place(self) -> None:
        if self._edge.policy.signing_keys_set:
            text = "The keys are in the edge's settings (edge.signing_keys): rotate them there, see docs/tokens.md."
            raise ApiError("invalid_request", text)


def _row(keys: SigningKeys) -> dict[str, Any]:
    """``since`` is when they were rotated last (0: never), ``old`` until when each old one verifies."""
    return {"since": keys.since, "old": [old.until for old in keys.old]}
