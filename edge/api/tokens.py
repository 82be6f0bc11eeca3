"""``/v1/token``: one route, a door per kind of caller, all giving the same thing. And ``GET /v1/me``."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from slowapi import Limiter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from edge.api.audit import note
from edge.api.caller import caller_ip, check_origin, given_credential, identify, plan_of
from edge.doors import anonymous, api_key
from edge.principals import Principal, day_of
from edge.services import Services
from edge.store.refusals import token_revoked
from shared.asgi.body import check_json, read_body
from shared.asgi.types import header
from shared.contract.errors import ApiError
from shared.contract.secrets import TOKEN
from shared.contract.strict_json import loads_object

if TYPE_CHECKING:
    from edge.doors.invite import InviteDoor

# Per IP; a page needs one every 8 minutes, and several tabs may start at once.
_MINT_LIMIT = "30/minute"
_MAX_BODY = 4096


class TokenRoutes:
    def __init__(self, edge: Services, limiter: Limiter) -> None:
        self._edge = edge
        self._guests = _invite_door(edge) if edge.policy.invites else None

        @limiter.limit(_MINT_LIMIT)
        async def mint(request: Request) -> Response:
            return await self._mint(request)

        self.mint = mint

    async def _mint(self, request: Request) -> Response:
        note(request.scope, route="/v1/token")
        principal = await self._enter(request, await self._read_body(request))
        plan = plan_of(principal, self._edge)
        token, expires_in = self._edge.tokens.mint(principal)
        note(request.scope, principal=principal.id, plan=principal.plan)
        payload = {
            "token": token,
            "token_type": "Bearer",
            "expires_in": expires_in,
            "principal": {"id": principal.id, "kind": principal.kind, "plan": principal.plan},
            "limits": plan.limits(),
        }
        return JSONResponse(payload, headers={"cache-control": "no-store"})

    async def _read_body(self, request: Request) -> str | None:
        """The invite, the one field that a body may have, and only where that door is open. JSON only, so that a
        browser of another site must ask first."""
        check_json(request.scope)
        raw = await read_body(request.scope, request.receive, _MAX_BODY)
        body = loads_object(raw) if raw else {}
        if unknown := [name for name in body if name != "invite" or self._guests is None]:
            text = f"Unknown field {unknown[0][:64]!r}. This edge takes an API key, or a page on an allowed origin."
            raise ApiError("invalid_request", text, param=unknown[0][:64])
        if not body:
            return None
        if not isinstance(body["invite"], str):
            raise ApiError("invalid_request", "An invite is a text that begins with hli_.", param="invite")
        return body["invite"]

    async def _enter(self, request: Request, invite: str | None) -> Principal:
        edge, guests, credential = self._edge, self._guests, given_credential(request.scope)
        if credential is not None:
            if invite is not None:
                text = "Both an invite and a token or key were sent. Send one of them."
                raise ApiError("invalid_request", text, param="invite")
            if guests is not None and credential.startswith(TOKEN):
                guest = edge.tokens.verify(credential)
                if guest.kind == "invite":
                    return self._renew(request, guest, guests)
            return api_key.enter(credential, edge.store.lookup)
        if guests is not None and invite is not None:
            return await guests.enter(invite, *_page(request), ip=caller_ip(request.scope, edge))
        if not edge.policy.anonymous:
            if guests is not None:
                raise guests.missing()
            raise ApiError("missing_token", "Tokens are for API keys here. Send Authorization: Bearer hlk_….")
        return anonymous.enter(
            *_page(request),
            ip=caller_ip(request.scope, edge),
            allowed_origins=edge.policy.allowed_origins,
            plan=edge.plans["anonymous"],
            secret=edge.pseudonym_key,
            day=day_of(time.time()),
        )

    def _renew(self, request: Request, guest: Principal, guests: InviteDoor) -> Principal:
        check_origin(request.scope, guest)
        renewed = guests.renew(guest, *_page(request))
        if self._edge.store.revoked(guest):
            raise token_revoked()
        return renewed

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


def _invite_door(edge: Services) -> InviteDoor:
    from edge.doors.invite import InviteDoor  # a door that is shut costs nothing

    return InviteDoor(edge.policy.allowed_origins, edge.store.invites.enter, edge.store.invites.renew)


def _page(request: Request) -> tuple[str | None, str | None]:
    """What a browser says of the page that asks: the headers Origin and Sec-Fetch-Site."""
    origin, fetch_site = header(request.scope, b"origin"), header(request.scope, b"sec-fetch-site")
    return (
        None if origin is None else origin.decode("latin-1"),
        None if fetch_site is None else fetch_site.decode("latin-1"),
    )
