"""``/admin/keys``: API keys."""

from __future__ import annotations

import time
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from edge.api.admin.entry import administering, answer, enter, listed, named, plan_in, read, resource
from edge.api.audit import note
from edge.services import Services
from edge.store.keys import LONGEST_SECONDS
from edge.store.rows import key_row


class NewKey(BaseModel):
    """``expires_in`` are seconds; without it the key has no end."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str
    plan: str = "member"
    scopes: Annotated[list[str], Field(min_length=1, max_length=8)] = ["chat"]
    expires_in: Annotated[int, Field(ge=1, le=LONGEST_SECONDS)] | None = None


class KeyRoutes:
    def __init__(self, edge: Services) -> None:
        self._edge = edge
        self.routes = [
            resource("/admin/keys", GET=self.list_, POST=self.create),
            resource("/admin/keys/{key}", DELETE=self.revoke),
        ]

    async def list_(self, request: Request) -> Response:
        await enter(request, self._edge, "/admin/keys")
        async with administering(self._edge) as admin:
            found = await admin.list_keys()
        return listed([key_row(info, time.time()) for info in found])

    async def create(self, request: Request) -> Response:
        """201 with the key's text, which is shown only here."""
        await enter(request, self._edge, "/admin/keys")
        body = await read(request, NewKey)
        plan_in(body.plan, body.scopes, self._edge)
        now = time.time()
        expires = None if body.expires_in is None else int(now) + body.expires_in
        async with administering(self._edge) as admin:
            info, text = await admin.create_key(body.name, body.plan, tuple(dict.fromkeys(body.scopes)), expires)
            note(request.scope, act="key.create", target=info.principal_id)
        return answer({"key": text, **key_row(info, now)}, 201)

    async def revoke(self, request: Request) -> Response:
        """By name or id. The key, and every token made with it."""
        await enter(request, self._edge, "/admin/keys/{key}")
        async with administering(self._edge) as admin:
            info = await admin.revoke_key(named(request))
            note(request.scope, act="key.revoke", target=info.principal_id)
        return answer(key_row(info, time.time()))
