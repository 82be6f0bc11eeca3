"""The rates of routes that cost no model: per caller, in memory. What must be exact or shared is the ledger's."""

from __future__ import annotations

import logging

from slowapi import Limiter
from starlette.requests import Request

from edge.api.caller import caller_ip
from edge.principals import address_block
from edge.services import Services


def rate_limiter(edge: Services) -> Limiter:
    """One for the whole app. Counts per route and IPv4 address or IPv6 /64."""
    logging.getLogger("slowapi").setLevel(logging.ERROR)  # it warns of each request it refuses

    def key(request: Request) -> str:
        return address_block(caller_ip(request.scope, edge))

    # By default it counts each path for itself, which never refuses a caller who asks for another one each time.
    return Limiter(key_func=key, key_style="endpoint", headers_enabled=False)
