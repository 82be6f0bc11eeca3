"""``/v1/token``: one route, a door per kind of caller, all giving the same thing. And ``GET /v1/me``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from edge.api.accounting import charge, enter
from edge.api.audit import note
from edge.api.caller import given_credential, plan_of
from edge.api.entrance import Entrance
from edge.api.limiter import RateLimiter
from edge.locks import LOCKS, Locks, locks_of, narrowed
from edge.services import Services
from edge.store.refusals import token_revoked
from shared.asgi.body import check_json, read_body
from shared.asgi.types import Scope
from shared.contract.errors import ApiError
from shared.contract.secrets import API_KEY
from shared.contract.strict_json import loads_object

# Per IP; a page needs one every 8 minutes, and several tabs may start at once.
_MINT_LIMIT = "30/minute"
_MAX_BODY = 4096


class TokenRoutes:
    def __init__(self, edge: Services, limiter: RateLimiter) -> None:
        self._edge = edge
        self._entrance = Entrance(edge)

        @limiter.limit(_MINT_LIMIT)
        async def mint(request: Request) -> Response:
            limiter.show(request)
            return await self._mint(request)

        self.mint = mint

    async def _mint(self, request: Request) -> Response:
        note(request.scope, route="/v1/token")
        self._entrance.check(request.scope)
        body = await self._read_body(request)
        tokens = self._edge.tokens  # those of now: what a key verifies that leaks meanwhile gets no token of a new one
        principal = await self._entrance.enter(request.scope, body.get("invite"))
        principal = Locks.from_body(body).on(principal)
        plan = narrowed(plan_of(principal, self._edge), principal)
        note(request.scope, principal=principal.id, plan=principal.plan)
        try:
            token, expires_in = tokens.mint(principal, after=self._edge.store.records.revoked_until(principal))
        except ValueError as error:  # a credential in its last second, or locks that no token can carry
            raise ApiError("invalid_request", str(error)) from None
        payload = {
            "token": token,
            "token_type": "Bearer",
            "expires_in": expires_in,
            "principal": {"id": principal.id, "kind": principal.kind, "plan": principal.plan},
            "limits": plan.limits(),
            **locks_of(principal),
        }
        return JSONResponse(payload, headers={"cache-control": "no-store"})

    async def _read_body(self, request: Request) -> Mapping[str, Any]:
        """An invite, where that door is open, or the locks that somebody with an API key asks for. JSON only, so that a
        browser of another site must ask first."""
        check_json(request.scope)
        raw = await read_body(request.scope, request.receive, _MAX_BODY)
        body = loads_object(raw) if raw else {}
        known = (*(("invite",) if self._entrance.takes_invites else ()), *(LOCKS if _by_key(request.scope) else ()))
        if unknown := [name for name in body if name not in known]:
            takes = f"takes {', '.join(known)}" if known else "takes no field: send {}"
            text = f"Unknown field {unknown[0][:64]!r}. This request {takes}."
            if unknown[0] in LOCKS:
                text = f"The field {unknown[0]!r} locks a token, which only a caller with an API key may ask for."
            raise ApiError("invalid_request", text, param=unknown[0][:64])
        if not isinstance(body.get("invite", ""), str):
            raise ApiError("invalid_request", "An invite is a text that begins with hli_.", param="invite")
        return body

    async def revoke(self, request: Request) -> Response:
        """``DELETE /v1/token``: this token ends now. It costs no request: a token that was stolen can be ended, however
        many the thief sends."""
        caller = enter(request.scope, self._edge, "/v1/token", needs=None)
        if self._edge.store.revoked(caller.principal):
            raise token_revoked()
        if caller.principal.jti is None:
            raise ApiError("invalid_request", "An API key is revoked by its owner: hearthlink key revoke NAME.")
        await self._edge.store.revoke(caller.principal)
        return Response(status_code=204)

    async def me(self, request: Request) -> Response:
        """Who I am and what is left."""
        edge, caller = self._edge, await charge(request.scope, self._edge, "/v1/me", needs=None)
        principal = caller.principal
        payload = {
            "principal": {"id": principal.id, "kind": principal.kind, "plan": principal.plan},
            "scopes": list(principal.scopes),
            "expires_at": principal.expires_at,
            "usage": await edge.store.usage_today(principal, narrowed(caller.plan, principal)),
            **locks_of(principal),
        }
        return JSONResponse(payload, headers={"cache-control": "no-store"})


def _by_key(scope: Scope) -> bool:
    return (given_credential(scope) or "").startswith(API_KEY)
