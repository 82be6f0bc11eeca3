"""The rates of routes that cost no model: per caller, in memory. What must be exact or shared is the ledger's."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from slowapi import Limiter
from slowapi.errors import RateLimitExceeded
from starlette.requests import Request

from edge.api.caller import caller_ip
from edge.principals import address_block
from edge.services import Services
from edge.store.ledger import Allowance, Grant, duration
from shared.asgi.front import add_headers
from shared.contract.errors import ApiError


class RateLimiter(Limiter):
    """One for the whole app. Counts per route and IPv4 address or IPv6 /64."""

    def __init__(self, edge: Services) -> None:
        logging.getLogger("slowapi").setLevel(logging.ERROR)  # it warns of each request it refuses

        def key(request: Request) -> str:
            return address_block(caller_ip(request.scope, edge))

        # By default it counts each path for itself, which never refuses a caller who asks for another one each time.
        super().__init__(key_func=key, key_style="endpoint", headers_enabled=False)
        self._limiter = edge.rates = edge.rates or self._limiter  # a reload begins nobody's minute anew

    def _check_request_limit(
        self, request: Request, endpoint_func: Callable[..., Any] | None, in_middleware: bool = True
    ) -> None:
        """What slowapi calls before the route. Its own refusal does not say how long to wait."""
        try:
            super()._check_request_limit(request, endpoint_func, in_middleware)
        except RateLimitExceeded:
            wait = self.show(request).reset
            text = f"Too many requests of this kind from this address. Wait {duration(wait)}."
            raise ApiError("rate_limited", text, retry_after=wait) from None

    def show(self, request: Request) -> Allowance:
        """How the address stands at this route, also as headers of the answer; not for answers that caches keep."""
        limit, names = request.state.view_rate_limit
        reset, remaining = self.limiter.get_window_stats(limit, *names)
        allowance = Allowance(limit.amount, remaining, max(0.0, reset - time.time()))
        add_headers(request.scope, Grant(requests=allowance).headers())
        return allowance
