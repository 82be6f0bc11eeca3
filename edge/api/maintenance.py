"""Closed by the owner (``hearthlink maintenance on``, ``PUT /admin/maintenance``): what is answered then."""

from __future__ import annotations

import functools

from loguru import logger

from edge.api.caller import by_serve
from edge.services import Services
from edge.store.records import Maintenance
from shared.asgi.types import Scope
from shared.contract.errors import ApiError

# Seconds; the owner knows when it ends, nobody here does. A caller that asks once a minute costs nothing.
_RETRY_SECONDS = 60.0
# The owner opens again by the first; monitors and a supervisor need the rest; a page can say why nothing works. An
# admin of the tailnet needs a token for it: ``Entrance`` gives one to nobody else.
_OPEN_BELOW = ("/admin/", "/static/")
_OPEN = frozenset({"/", "/hearthlink.js", "/livez", "/readyz", "/healthz", "/health", "/metrics"})


def closed(scope: Scope, edge: Services) -> ApiError | None:
    """What a request is refused with while the edge is closed, before its credential is looked at; else None."""
    path = scope["path"]
    if path in _OPEN or path.startswith(_OPEN_BELOW) or (path == "/v1/token" and by_serve(scope)):
        return None
    return closed_by_owner(edge)


def closed_by_owner(edge: Services) -> ApiError | None:
    """The owner's message while the edge is closed; else None."""
    maintenance = edge.store.records.maintenance
    return None if maintenance is None else _error(maintenance)


class Closing:
    """``tick`` belongs in the process's ticker."""

    def __init__(self, edge: Services) -> None:
        self._edge = edge
        self._seen: Maintenance | None = None

    def tick(self, now: float) -> None:
        """Once a second: tell the log, and end what runs where the owner wants that."""
        maintenance = self._edge.store.records.maintenance
        if maintenance != self._seen:
            self._seen = maintenance
            if maintenance is None:
                logger.info("the edge is open again")
            else:
                logger.warning("the edge is closed to all but admins, who tell callers: {}", maintenance.message)
        if maintenance is not None and maintenance.ends_answers:
            self._edge.chats.end(functools.partial(_error, maintenance), answers_only=True)


def _error(maintenance: Maintenance) -> ApiError:
    # A program that waits and asks again would keep its person from reading the message.
    return ApiError("maintenance", maintenance.message, retry_after=_RETRY_SECONDS, should_retry=False)
