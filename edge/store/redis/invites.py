"""Guests of an edge whose invites the server keeps."""

from __future__ import annotations

import json
from collections.abc import Callable

from edge.principals import Principal, address_block, invite_of, invited_id
from edge.store import invites, refusals
from edge.store.invites import LAST_SECONDS, TRIES_PER_MINUTE
from edge.store.redis.alone import cannot_count
from edge.store.redis.scripts import ENTER, INVITE
from edge.store.redis.server import NoAnswer, Server


class Invites:
    """``secret`` is that of ``invited_id``; ``now`` gives Unix seconds."""

    def __init__(self, server: Server, secret: bytes, now: Callable[[], float]) -> None:
        self._server = server
        self._secret = secret
        self._now = now

    async def enter(self, text: str, ip: str, origin: str | None) -> Principal:
        """As ``Store.enter_invite``. However many enter at once, by whatever edges, no more than its uses get in."""
        # What is no invite at all is a try like any other.
        invite_id, digest = invites.split(text) or ("", b"")
        principal_id = invited_id(self._secret, invite_id, ip, origin)
        try:
            verdict, wait, *found = await self._server.call(
                ENTER, address_block(ip), TRIES_PER_MINUTE, invite_id, digest.hex(), principal_id
            )
        except NoAnswer:
            raise cannot_count() from None
        if verdict == "tries":
            raise refusals.invite_tries(TRIES_PER_MINUTE, wait / 1_000_000)
        if verdict != "ok":
            raise refusals.invite_not_valid()
        plan, expires_at = found
        return invites.guest(principal_id, plan, expires_at, origin)

    async def renew(self, guest: Principal) -> Principal:
        """As ``Store.renew_guest``, but for what is revoked, which is known without the server."""
        try:
            (text,) = await self._server.call(INVITE, invite_of(guest) or "")
        except NoAnswer:
            raise cannot_count() from None
        invite = json.loads(text) if text else None
        if invite is None or invite["revoked_at"] is not None or self._now() >= invite["expires_at"] - LAST_SECONDS:
            raise refusals.invite_not_valid()
        return invites.guest(guest.id, invite["plan"], invite["expires_at"], guest.origin)
