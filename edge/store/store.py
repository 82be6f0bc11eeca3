"""The interface to everything an edge keeps: ``ledger.Ledger``, and who may come in.

Two implementations, chosen by ``edge.store``: ``sqlite.store.SQLiteStore`` for one edge, ``redis.store.RedisStore`` for
many. What the owner does to a store is ``admin.Admin``.
"""

from __future__ import annotations

from typing import Protocol

from edge.principals import Principal
from edge.store.ledger import Ledger
from edge.store.records import Records


class Store(Ledger, Protocol):
    """``open`` it before anything else and ``close`` it at the end, on one event loop.

    ``abandoned_after`` are the seconds after which a chat that nobody settled is settled at its estimate; it may be set
    at any time, for chats admitted from then on.
    """

    abandoned_after: float

    @property
    def records(self) -> Records:
        """What the owner decided, as of a second ago at most."""
        ...

    @property
    def pseudonym_key(self) -> bytes:
        """The secret of ``anonymous_id`` and ``link_id``: the same after a restart, and for all edges that share it."""
        ...

    @property
    def problem(self) -> str | None:
        """Why the store cannot count or write right now, a sentence for the owner; None when all is well."""
        ...

    @property
    def answering(self) -> bool:
        """Whether counts are to be had. While they are not, nobody without a name is let in, and what ``admit`` does
        is the store's to say."""
        ...

    async def open(self) -> None:
        """Raises StoreError."""
        ...

    async def close(self) -> None:
        """Write what is left and let go of everything. Idempotent."""
        ...

    def lookup(self, text: str) -> Principal:
        """The principal of an API key, from memory. Raises ApiError ``invalid_token``."""
        ...

    async def enter_invite(self, text: str, ip: str, origin: str | None) -> Principal:
        """Whom the invite ``text`` lets in: the caller at ``ip`` on ``origin``, to which it is locked.

        Raises ApiError ``invalid_token`` with one sentence for all that is no valid invite, ``rate_limited`` after too
        many of those from this address, ``overloaded`` when the use cannot be written down.
        """
        ...

    async def renew_guest(self, guest: Principal) -> Principal:
        """``guest``, whom an invite let in, for another token. Raises ApiError ``invalid_token`` when its invite ended
        or is revoked, or the guest is; ``overloaded`` when that cannot be found out."""
        ...
