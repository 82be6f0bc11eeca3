"""``/v1/token``: one route, a door per kind of caller, all giving the same thing. And ``GET /v1/me``."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from slowapi import Limiter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from edge.api.audit import note
from edge.api.caller import by_serve, caller_ip, check_origin, given_credential, identify, plan_of
from edge.doors import anonymous, api_key
from edge.principals import Principal, day_of
from edge.services import Services
from edge.store.refusals import token_revoked
from shared.asgi.body import check_json, read_body
from shared.asgi.types import header
from shared.contract.errors import ApiError
from shared.contract.secrets import TOKEN
from shared.contract.strict_json import loads_object

if TYPE_CHECKING:  # a door that is shut costs nothing
    from edge.doors.invite import InviteDoor
    from edge.doors.tailnet import Served, TailnetDoor

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
        """By the first door that fits. What a caller shows goes before who it is."""
        credential = given_credential(request.scope)
        if credential is not None and invite is not None:
            text = "Both an invite and a token or key were sent. Send one of them."
            raise ApiError("invalid_request", text, param="invite")
        if credential is not None:
            return await self._by_credential(request, credential)
        if invite is not None:
            return await self._by_invite(request, invite)
        if by_serve(request.scope):
            return await self._by_login(request)
        return self._by_page(request)

    async def _by_credential(self, request: Request, credential: str) -> Principal:
        """A key; or a guest's token, for another one."""
        edge = self._edge
        if self._guests is None or not credential.startswith(TOKEN):
            return api_key.enter(credential, edge.store.lookup)
        guest = edge.tokens.verify(credential)
        if guest.kind != "invite":
            return api_key.enter(credential, edge.store.lookup)
        check_origin(request.scope, guest)
        renewed = self._guests.renew(guest, *_page(request), own=await self._own_page(request))
        if edge.store.revoked(guest):
            raise token_revoked()
        return renewed

    async def _by_invite(self, request: Request, invite: str) -> Principal:
        assert self._guests is not None  # else _read_body takes none
        ip = caller_ip(request.scope, self._edge)
        return await self._guests.enter(invite, *_page(request), ip=ip, own=await self._own_page(request))

    async def _by_login(self, request: Request) -> Principal:
        """A person of the tailnet. The anonymous door is not there: who comes by Serve has a name."""
        door, served = self._tailnet_door(request)
        principal = await door.enter(served)
        note(request.scope, login=served.login)
        return principal

    def _by_page(self, request: Request) -> Principal:
        edge = self._edge
        if not edge.policy.anonymous:
            if self._guests is not None:
                raise self._guests.missing()
            raise ApiError("missing_token", "Tokens are for API keys here. Send Authorization: Bearer hlk_….")
        return anonymous.enter(
            *_page(request),
            ip=caller_ip(request.scope, edge),
            allowed_origins=edge.policy.allowed_origins,
            plan=edge.plans["anonymous"],
            secret=edge.pseudonym_key,
            day=day_of(time.time()),
        )

    async def _own_page(self, request: Request) -> str | None:
        """The origin of our own page behind Serve, which is in no list, where that is what asks."""
        origin = _page(request)[0]
        if not by_serve(request.scope) or origin is None or origin in self._edge.policy.allowed_origins:
            return None
        door, served = self._tailnet_door(request)
        await door.check_page(served)
        return origin

    def _tailnet_door(self, request: Request) -> tuple[TailnetDoor, Served]:
        from edge.doors.tailnet import Served, TailnetDoor  # where no tailnet is, it is never imported

        edge, guests = self._edge, self._guests
        if edge.local is None:
            raise ApiError("missing_token", "This edge asks no tailscaled who is calling. Send an API key.")
        door = TailnetDoor(
            edge.local, edge.policy.tester_capability, edge.plans, edge.pseudonym_key, invites=guests is not None
        )
        return door, Served.read(request.scope["headers"])

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
