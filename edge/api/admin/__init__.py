"""``/admin``: what the owner does to keys, invites, limits and tokens from afar, with a credential of scope ``admin``.

Each act leaves one audit line with ``act`` and ``target``. Every edge on the store knows of it within a second.
"""

from __future__ import annotations

from starlette.routing import Route

from edge.api.admin.closing import ClosingRoutes
from edge.api.admin.invites import InviteRoutes
from edge.api.admin.keys import KeyRoutes
from edge.api.admin.limits import LimitRoutes
from edge.api.admin.revocations import RevocationRoutes
from edge.api.admin.signing import SigningRoutes
from edge.services import Services


def admin_routes(edge: Services) -> list[Route]:
    parts = (KeyRoutes, InviteRoutes, LimitRoutes, RevocationRoutes, SigningRoutes, ClosingRoutes)
    return [route for part in parts for route in part(edge).routes]
