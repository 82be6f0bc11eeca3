"""``/v1/token``: one route, a door per kind of caller, all giving the same thing. And ``GET /v1/me``."""

from __future__ import annotations

import logging
import time

from slowapi import Limiter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from edge.api.audit import note
from edge.api.caller import caller_ip, given_credential, identify
from edge.doors import anonymous, api_key
from edge.principals import Principal, day_of
from edge.services import Services
from shared.asgi.body import check_json, read_body
from shared.asgi.types import header
from shared.contract.errors import ApiError
from shared.contract.strict_json import loads_object

# Per IP; a page needs one every 8 minutes, and several tabs may start at once.
_MINT_LIMIT = "30/minute"
_MAX_BODY = 4096


class TokenRoutes:
    """``limiter`` is slowapi's, in memory and per IP; what must be exact is the ledger's."""

    def __init__(self, edge: Services) -> None:
        self._edge = edge
        logging.getLogger("slowapi").setLevel(logging.ERROR)  # it warns of each request it refuses
        self.limiter = Limiter(key_func=lambda request: caller_ip(request.scope, edge), headers_enabled=False)
        limited = self.limiter.limit(_MINT_LIMIT)

        @limited
        async def mint(request: Request) -> Response:
            return await self._mint(request)

        self.mint = mint

    async def _mint(self, request: Request) -> Response:
        note(request.scope, route="/v1/token")
        await self._check_body(request)
        principal = self._enter(request)
        token, expires_in = self._edge.tokens.mint(principal)
        note(request.scope, principal=principal.id, plan=principal.plan)
        plan = self._edge.plans[principal.plan]
        payload = {
            "token": token,
            "token_type": "Bearer",
            "expires_in": expires_in,
            "principal": {"id": principal.id, "kind": principal.kind, "plan": principal.plan},
            "limits": plan.limits(),
        }
        return JSONResponse(payload, headers={"cache-control": "no-store"})

    async def _check_body(self, request: Request) -> None:
        """An empty body or an object without fields; JSON only, so that a browser of another site must ask first."""
        check_json(request.scope)
        raw = await read_body(request.scope, request.receive, _MAX_BODY)
        if raw and (unknown := list(loads_object(raw))):
            text = f"Unknown field {unknown[0][:64]!r}. This edge takes an API key, or a page on an allowed origin."
            raise ApiError("invalid_request", text, param=unknown[0][:64])

    def _enter(self, request: Request) -> Principal:
        edge = self._edge
        if (credential := given_credential(request.scope)) is not None:
            return api_key.enter(credential, edge.store.lookup)
        if not edge.policy.anonymous:
            raise ApiError("missing_token", "Tokens are for API keys here. Send Authorization: Bearer hlk_….")
        origin = header(request.scope, b"origin")
        fetch_site = header(request.scope, b"sec-fetch-site")
        return anonymous.enter(
            None if origin is None else origin.decode("latin-1"),
            None if fetch_site is None else fetch_site.decode("latin-1"),
            ip=caller_ip(request.scope, edge),
            allowed_origins=edge.policy.allowed_origins,
            plan=edge.plans["anonymous"],
            secret=edge.pseudonym_key,
            day=day_of(time.time()),
        )

    async def revoke(self, request: Request) -> Response:
        """``DELETE /v1/token``: this token ends now."""
        note(request.scope, route="/v1/token")
        caller = identify(request.scope, self._edge)
        if caller.principal.jti is None:
            raise ApiError("invalid_request", "An API key is revoked by its owner: hearthlink key revoke NAME.")
        await self._edge.store.revoke(caller.principal)
        note(request.scope, principal=caller.principal.id)
        return Response(status_code=204)

    async def me(self, request: Request) -> Response:
        """Who I am and what is left."""
        note(request.scope, route="/v1/me")
        edge, caller = self._edge, identify(request.scope, self._edge)
        grant = await edge.store.charge_request(caller.ip, caller.principal, caller.plan)
        principal = caller.principal
        payload = {
            "principal": {"id": principal.id, "kind": principal.kind, "plan": principal.plan},
            "scopes": list(principal.scopes),
            "expires_at": principal.expires_at,
            "usage": edge.store.usage_today(principal, caller.plan),
        }
        headers = {name.decode(): value.decode() for name, value in grant.headers()}
        return JSONResponse(payload, headers={"cache-control": "no-store", **headers})
