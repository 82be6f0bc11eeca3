"""The doors of ``POST /v1/token``, tried in one order. What a caller shows goes before who it is."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING

from edge.api.audit import note
from edge.api.caller import by_serve, caller_ip, check_origin, given_credential, user_of
from edge.api.maintenance import closed_by_owner
from edge.doors import api_key
from edge.doors.pages import Page
from edge.principals import Principal, day_of
from edge.services import Services
from edge.store.refusals import token_revoked
from shared.asgi.types import Scope, header
from shared.contract.errors import ApiError
from shared.contract.secrets import API_KEY, INVITE, NODE_TOKEN, TOKEN

if TYPE_CHECKING:  # a door that is shut costs nothing
    from edge.doors.invite import InviteDoor
    from edge.doors.tailnet import Served, TailnetDoor

_OUR_SECRETS = (API_KEY, TOKEN, INVITE, NODE_TOKEN)


class Entrance:
    """A door that is off is not looked at: what belongs to it is as unknown as anything else."""

    def __init__(self, edge: Services) -> None:
        self._edge = edge
        self._guests = _invite_door(edge) if edge.policy.invites else None

    @property
    def takes_invites(self) -> bool:
        return self._guests is not None

    def check(self, scope: Scope) -> None:
        """What the headers alone decide, for before the body is read. Raises as ``enter``."""
        edge = self._edge
        if by_serve(scope):
            return  # tailscaled is asked
        if (credential := given_credential(scope)) is not None:
            if credential.startswith(API_KEY):
                api_key.enter(credential, edge.store.lookup)
            return
        if user_of(scope, edge) is not None or self._by_cloudflare(scope) is not None:
            return
        page = Page.read(scope["headers"])
        if page.origin is None:
            return  # the body may show who it is
        if self._guests is None and not edge.policy.anonymous:
            raise self._nothing_shown()
        page.listed(edge.policy.allowed_origins)

    async def enter(self, scope: Scope, invite: str | None) -> Principal:
        """By the first door that fits. Raises what the doors raise, and ApiError ``invalid_request`` for somebody who
        shows two things."""
        credential = given_credential(scope)
        if by_serve(scope) and (closed := closed_by_owner(self._edge)) is not None:
            return await self._admin_while_closed(scope, closed, alone=credential is None and invite is None)
        if credential is not None and invite is not None:
            text = "Both an invite and a token or key were sent. Send one of them."
            raise ApiError("invalid_request", text, param="invite")
        if credential is not None:
            return await self._by_credential(scope, credential)
        if invite is not None:
            return await self._by_invite(scope, invite)
        if (user := user_of(scope, self._edge)) is not None:
            return user
        if by_serve(scope):
            return await self._by_login(scope)
        return await self._by_access(scope) or self._by_page(scope)

    async def _by_credential(self, scope: Scope, credential: str) -> Principal:
        """A key; a guest's token, for another one; or the token of an issuer."""
        edge = self._edge
        if edge.issuers.oidc is not None and not credential.startswith(_OUR_SECRETS):
            page, origins = Page.read(scope["headers"]), edge.policy.allowed_origins
            return await edge.issuers.oidc.enter(credential, page, allowed_origins=origins, plans=edge.plans)
        if self._guests is None or not credential.startswith(TOKEN):
            return api_key.enter(credential, edge.store.lookup)
        guest = edge.tokens.verify(credential)
        if guest.kind != "invite":
            return api_key.enter(credential, edge.store.lookup)
        check_origin(scope, guest)
        if edge.store.revoked(guest):
            raise token_revoked()
        return await self._guests.renew(guest, Page.read(scope["headers"]), own=await self._own_page(scope))

    async def _by_invite(self, scope: Scope, invite: str) -> Principal:
        assert self._guests is not None  # else the route takes none
        ip, page = caller_ip(scope, self._edge), Page.read(scope["headers"])
        return await self._guests.enter(invite, page, ip=ip, own=await self._own_page(scope))

    async def _by_login(self, scope: Scope) -> Principal:
        """A person of the tailnet. The anonymous door is not there: who comes by Serve has a name."""
        door, served = self._tailnet_door(scope)
        principal = await door.enter(served)
        note(scope, login=served.login)
        return principal

    async def _admin_while_closed(self, scope: Scope, closed: ApiError, *, alone: bool) -> Principal:
        """A person of the tailnet who may open the edge again, which needs a token; ``alone``: who shows nothing else.
        Everybody else is told what everybody is told."""
        if alone:
            with suppress(ApiError):
                principal = await self._by_login(scope)
                if "admin" in principal.scopes:
                    return principal
        raise closed

    async def _by_access(self, scope: Scope) -> Principal | None:
        """Whom Cloudflare Access let through; None for a request that it did not see, or where that door is off."""
        edge = self._edge
        door, assertion = edge.issuers.access, self._by_cloudflare(scope)
        if door is None or assertion is None:
            return None
        # Our own page is behind Access as everything else is, and nobody has to list it.
        own = {edge.policy.own_origin} if edge.policy.own_origin else set[str]()
        page, origins = Page.read(scope["headers"]), edge.policy.allowed_origins | own
        return await door.enter(assertion.decode("latin-1"), page, allowed_origins=origins, plans=edge.plans)

    def _by_cloudflare(self, scope: Scope) -> bytes | None:
        """What Cloudflare Access says of the caller, where that door is open."""
        door = self._edge.issuers.access
        return None if door is None else header(scope, door.HEADER)

    def _by_page(self, scope: Scope) -> Principal:
        edge = self._edge
        if not edge.policy.anonymous:
            raise self._nothing_shown()
        from edge.doors import anonymous

        return anonymous.enter(
            Page.read(scope["headers"]),
            ip=caller_ip(scope, edge),
            allowed_origins=edge.policy.allowed_origins,
            plan=edge.plans["anonymous"],
            secret=edge.pseudonym_key,
            day=day_of(time.time()),
            counted=edge.store.answering,
        )

    def _nothing_shown(self) -> ApiError:
        if self._guests is not None:
            return self._guests.missing()
        if self._edge.issuers.oidc is not None:
            text = "Tokens are for API keys and for tokens of this edge's issuer. Send Authorization: Bearer …."
            return ApiError("missing_token", text)
        return ApiError("missing_token", "Tokens are for API keys here. Send Authorization: Bearer hlk_….")

    async def _own_page(self, scope: Scope) -> str | None:
        """The origin of our own page behind Serve, which is in no list, where that is what asks."""
        origin = Page.read(scope["headers"]).origin
        if not by_serve(scope) or origin is None or origin in self._edge.policy.allowed_origins:
            return None
        door, served = self._tailnet_door(scope)
        await door.check_page(served)
        return origin

    def _tailnet_door(self, scope: Scope) -> tuple[TailnetDoor, Served]:
        from edge.doors.tailnet import Served, TailnetDoor  # where no tailnet is, it is never imported

        edge, guests = self._edge, self._guests
        if edge.local is None:
            raise ApiError("missing_token", "This edge asks no tailscaled who is calling. Send an API key.")
        door = TailnetDoor(
            edge.local, edge.policy.tester_capability, edge.plans, edge.pseudonym_key, invites=guests is not None
        )
        return door, Served.read(scope["headers"])


def _invite_door(edge: Services) -> InviteDoor:
    from edge.doors.invite import InviteDoor  # a door that is shut costs nothing

    return InviteDoor(edge.policy.allowed_origins, edge.store.enter_invite, edge.store.renew_guest)
