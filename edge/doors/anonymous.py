"""The door without a name: a page on a listed origin.

It keeps honest browsers of other sites out, not programs, which can write any Origin; what an anonymous caller may
spend is bounded by the plan, for each address and for all together.
"""

from __future__ import annotations

from collections.abc import Collection

from edge.doors.pages import Page
from edge.plans import Plan
from edge.principals import Principal, anonymous_id
from shared.contract.errors import ApiError


def enter(
    page: Page, *, ip: str, allowed_origins: Collection[str], plan: Plan, secret: bytes, day: int, counted: bool = True
) -> Principal:
    """The principal of ``page``, locked to its origin. ``secret`` and ``day`` as for ``anonymous_id``.

    ``counted`` is whether the store can count what anonymous callers spend; while it cannot, they would be without a
    limit. Raises ApiError ``origin_not_allowed``, or ``overloaded`` then.
    """
    origin = page.listed(allowed_origins)
    if not counted:
        text = "This edge cannot count what callers without an account use, and lets none in. Try again in a moment."
        raise ApiError("overloaded", text)
    return Principal(anonymous_id(secret, ip, origin, day), "anonymous", plan.name, plan.scopes, origin=origin)
