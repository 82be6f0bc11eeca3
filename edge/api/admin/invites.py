"""``/admin/invites``: invites."""

from __future__ import annotations

import time
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from edge.api.admin.entry import administering, answer, enter, listed, named, plan_in, read, resource
from edge.api.audit import note
from edge.principals import SECONDS_PER_DAY
from edge.services import Services
from edge.store.invites import LONGEST_SECONDS, MOST_USES
from edge.store.rows import invite_row

_DEFAULT_SECONDS = 7 * SECONDS_PER_DAY  # as the command line has it


class NewInvite(BaseModel):
    """``expires_in`` are seconds."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str | None = None
    plan: str = "member"
    uses: Annotated[int, Field(ge=1, le=MOST_USES)] = 1
    expires_in: Annotated[int, Field(ge=1, le=LONGEST_SECONDS)] = _DEFAULT_SECONDS


class InviteRoutes:
    def __init__(self, edge: Services) -> None:
        self._edge = edge
        self.routes = [
            resource("/admin/invites", GET=self.list_, POST=self.create),
            resource("/admin/invites/{invite}", DELETE=self.revoke),
        ]

    async def list_(self, request: Request) -> Response:
        await enter(request, self._edge, "/admin/invites")
        async with administering(self._edge) as admin:
            found = await admin.list_invites()
        return listed([invite_row(info, time.time()) for info in found])

    async def create(self, request: Request) -> Response:
        """201 with the invite's text, which is shown only here."""
        await enter(request, self._edge, "/admin/invites")
        body = await read(request, NewInvite)
        plan_in(body.plan, ("chat",), self._edge)
        now = time.time()
        async with administering(self._edge) as admin:
            info, text = await admin.create_invite(body.plan, body.uses, int(now) + body.expires_in, body.name)
            note(request.scope, act="invite.create", target=f"invite_{info.id}")
        return answer({"invite": text, **invite_row(info, now)}, 201)

    async def revoke(self, request: Request) -> Response:
        """By name or id. The invite, and every token it gave."""
        await enter(request, self._edge, "/admin/invites/{invite}")
        async with administering(self._edge) as admin:
            info = await admin.revoke_invite(named(request))
            note(request.scope, act="invite.revoke", target=f"invite_{info.id}")
        return answer(invite_row(info, time.time()))
