"""The door for developing, on one's own machine: whoever ``X-User-Id`` says.

Anybody can write it, so it is for requests that begin and end on this machine: settings keep the edge on loopback,
``edge.api.gate`` keeps out other names of the server, ``edge.api.peers`` machines of the tailnet, and this door what is
seen to have been passed on, and pages that are not listed.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from edge.doors.pages import Page
from edge.plans import Plan
from edge.principals import Principal
from shared.contract.errors import ApiError

HEADER = b"x-user-id"
_USER_ID = re.compile(rb"[A-Za-z0-9._@+-]{1,64}")
_SCOPES = ("chat",)
# A tunnel or proxy in front brings in callers from everywhere, by loopback. The usual ones write a header of such a
# name, such as X-Forwarded-For, CF-Ray or True-Client-IP; one that is told to write none cannot be seen from here.
_PASSED_ON = re.compile(rb"(cf|tailscale|ngrok)-.*|.*forwarded.*|.*-ip|(.*-)?via")
# As old proxies pass requests on, and nginx did for long unless told otherwise; no browser and no SDK asks like that.
_OLD_HTTP = "1.0"


def enter(
    headers: Sequence[tuple[bytes, bytes]],
    page: Page,
    *,
    http_version: str,
    allowed_origins: Collection[str],
    plan: Plan,
) -> Principal:
    """The principal that the ``headers`` (ASGI's) name. A page has to be on a listed origin.

    Raises ApiError ``invalid_request`` for an id that is none, ``address_not_allowed`` for a request that something
    passed on, and ``origin_not_allowed``.
    """
    ids = [value for name, value in headers if name == HEADER]
    if len(ids) != 1 or _USER_ID.fullmatch(ids[0]) is None:
        text = "X-User-Id is 1 to 64 letters, digits or ._@+- and stands there once."
        raise ApiError("invalid_request", text, param="X-User-Id")
    if http_version == _OLD_HTTP or any(_PASSED_ON.fullmatch(name) for name, _ in headers):
        text = "X-User-Id is believed on this machine only, and this request was passed on from elsewhere. Use a key."
        raise ApiError("address_not_allowed", text)
    page.listed_or_program(allowed_origins)
    return Principal(f"user_{ids[0].decode()}", "user", plan.name, _SCOPES)
