"""``/admin/revoke``: tokens that are out end now, in running streams too."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict
from starlette.requests import Request
from starlette.responses import Response

from edge.api.admin.entry import administering, checked, enter, read, resource
from edge.api.audit import note
from edge.principals import Principal
from edge.services import Services
from edge.store.admin import known_caller
from shared.contract.errors import ApiError


class Revocation(BaseModel):
    """One of them: a token's text, a caller's id, or all callers."""

    model_config = ConfigDict(extra="forbid", strict=True)

    token: str | None = None
    principal: str | None = None
    everyone: bool | None = None


class RevocationRoutes:
    def __init__(self, edge: Services) -> None:
        self._edge = edge
        self.routes = [resource("/admin/revoke", POST=self.revoke)]

    async def revoke(self, request: Request) -> Response:
        await enter(request, self._edge, "/admin/revoke")
        body = await read(request, Revocation)
        named = [value for value in (body.token, body.principal, body.everyone) if value is not None]
        if len(named) != 1 or named[0] is False:
            text = "Say what is revoked: one of token, principal, or everyone (true)."
            raise ApiError("invalid_request", text)
        if body.token is not None:
            await self._token(request, body.token)
        elif body.principal is not None:
            principal = checked(body.principal)
            async with administering(self._edge) as admin:
                await admin.revoke_principal(await known_caller(admin, principal))
                note(request.scope, act="principal.revoke", target=principal)
        else:
            async with administering(self._edge) as admin:
                await admin.revoke_everyone()
                note(request.scope, act="everyone.revoke", target="everyone")
        return Response(status_code=204)

    async def _token(self, request: Request, text: str) -> None:
        token = self._verified(text)
        assert token.jti is not None and token.expires_at is not None  # every token has them
        async with administering(self._edge) as admin:
            await admin.revoke_token(token.jti, token.expires_at)
            note(request.scope, act="token.revoke", target=token.id)

    def _verified(self, text: str) -> Principal:
        try:
            return self._edge.tokens.verify(text)
        except ApiError:  # its 401 would be about the admin's own credential
            message = "This is no token of this edge, or it has ended by itself. An API key is revoked by its name."
            raise ApiError("invalid_request", message, param="token") from None
