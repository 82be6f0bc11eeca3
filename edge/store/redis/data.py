"""The data in the server: made by the first edge, known again by its id, and missed when it is gone."""

from __future__ import annotations

import secrets
from typing import Any

from loguru import logger

from edge.store.errors import StoreError
from edge.store.redis.fitness import evicts
from edge.store.redis.scripts import BEGIN
from edge.store.redis.server import Server
from shared.signing_keys import SigningKeys

_SCHEMA = "1"


class Data:
    """``begin`` it before use. ``fault`` is why the counts cannot be relied on, a sentence for the owner, or None."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.id = ""
        self.secret = b""
        """That of ``anonymous_id`` and ``link_id``."""
        self._gone: str | None = None
        self._evicting: str | None = None

    @property
    def fault(self) -> str | None:
        return self._gone or self._evicting

    async def begin(self, edge: str) -> None:
        """Make the data where there is none, for ``edge``. Raises NoAnswer, and StoreError for data that this version
        cannot use."""
        drawn = (secrets.token_hex(8), secrets.token_hex(32), SigningKeys.new().to_json())
        schema, self.id, secret, counts = await self._server.probe(BEGIN, *drawn, edge)
        if schema != _SCHEMA:
            raise StoreError(
                f"The data in the store {self._server.name} is of a newer Hearthlink (schema {schema}, known"
                f" {_SCHEMA}). Install that version again, or use another database (redis://HOST:6379/1)."
            )
        if counts == "gone":
            self.lose()
        elif counts == "anew":
            logger.error("Today's counts in the store {} are gone: they begin with nothing", self._server.name)
        self.secret = bytes.fromhex(secret)

    def seen(self, found: str) -> bool:
        """Whether ``found``, the id that the server has now, is still this data."""
        if found != self.id:
            self.lose()
            return False
        if self._gone is not None:
            logger.info("The data in the store {} is back", self._server.name)
            self._gone = None
        return True

    def lose(self) -> None:
        """What was counted is gone. Going on would give everybody a whole quota again, so the owner has to decide."""
        if self._gone is None:
            self._gone = (
                f"The data in the store {self._server.name} was lost or replaced: callers with a quota are refused."
                " Restore it; or stop all edges and start them half a minute later, to begin with nothing counted."
            )
            logger.error("{}", self._gone)

    def look_at(self, info: dict[str, Any]) -> None:
        """See whether a server that says ``info`` of itself may throw away what it counts."""
        wrong = evicts(info)
        if wrong is not None and self._evicting is None:
            logger.error("The store {} {}", self._server.name, wrong)
        self._evicting = None if wrong is None else f"The store {self._server.name} {wrong}"
