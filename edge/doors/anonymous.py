"""The door without a name: a page on a listed origin.

It keeps honest browsers of other sites out, not programs, which can write any Origin; what an anonymous caller may
spend is bounded by the plan and by its address.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from edge.plans import Plan
from edge.principals import Principal, anonymous_id
from shared.contract.errors import ApiError

# What a browser sends with a request that a page made; "none" is a person typing the address.
_FROM_A_PAGE = frozenset({"same-origin", "same-site", "cross-site"})
# Repeated in the refusal only when it can hold nothing but an origin.
_SHOWABLE = re.compile(r"[a-z][a-z0-9+.-]{1,20}://[A-Za-z0-9.:_\[\]-]{1,255}")


def enter(
    origin: str | None,
    fetch_site: str | None,
    *,
    ip: str,
    allowed_origins: Collection[str],
    plan: Plan,
    secret: bytes,
    day: int,
) -> Principal:
    """The principal of a page on ``origin`` (the Origin header, compared exactly), locked to that origin.

    ``fetch_site`` is Sec-Fetch-Site; absent is fine, curl sends none. ``secret`` and ``day`` as for ``anonymous_id``.
    Raises ApiError ``origin_not_allowed``.
    """
    page = listed_page(origin, fetch_site, allowed_origins)
    return Principal(anonymous_id(secret, ip, page, day), "anonymous", plan.name, plan.scopes, origin=page)


def listed_page(origin: str | None, fetch_site: str | None, allowed_origins: Collection[str]) -> str:
    """The origin of the page that made a request, one of those that are allowed. Raises as ``enter`` does."""
    if origin is None:
        raise _refused("No Origin header was sent, and only pages on a listed origin get a token without an API key.")
    if origin not in allowed_origins:
        shown = f"The origin {origin}" if _SHOWABLE.fullmatch(origin) else "The Origin header that was sent"
        raise _refused(f"{shown} is not in the list of those that may get a token.")
    if fetch_site is not None and fetch_site not in _FROM_A_PAGE:
        raise _refused("The browser says (Sec-Fetch-Site) that no page made this request.")
    return origin


def _refused(why: str) -> ApiError:
    return ApiError(
        "origin_not_allowed",
        f"{why} The owner of this edge lists origins (scheme, host, port) in the setting edge.allowed_origins.",
    )
