"""Invites in the SQLite file. The functions work on a connection that the caller has; ``Invites`` is what a running
edge does with them."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Container
from dataclasses import replace
from typing import NamedTuple

from loguru import logger

from edge.principals import SECONDS_PER_DAY, Principal, address_block, invite_of, invited_id
from edge.store import invites, refusals
from edge.store.codes import matches
from edge.store.gcra import Gcra
from edge.store.invites import TRIES_PER_MINUTE, InviteInfo

# Another process's commit takes milliseconds. The loop goes on between the tries to write after it.
_WRITE_PAUSE_SECONDS = 0.05
_WRITE_SECONDS = 2.0
# What SQLite adds to an error's number in the bits above tells its cases apart.
_PRIMARY_CODE = 0xFF
_FIELDS = "id, name, plan, uses, used, created_at, expires_at, revoked_at"


def create(
    connection: sqlite3.Connection,
    plan: str,
    uses: int,
    expires: int,
    name: str | None = None,
    *,
    now: Callable[[], float] = time.time,
) -> tuple[InviteInfo, str]:
    """Make an invite and return its text, which is not kept anywhere. As ``invites.draw``; raises AdminError."""
    new = invites.draw(plan, uses, expires, name, int(now()))
    row = (new.info.id, name, new.digest, plan, uses, new.info.created_at, expires)
    try:
        connection.execute(
            "INSERT INTO invites (id, name, digest, plan, uses, created_at, expires_at) VALUES (?, ?, ?, ?, ?, ?, ?)",
            row,
        )
    except sqlite3.IntegrityError:
        raise invites.name_taken(name) from None
    return new.info, new.text


def list_invites(connection: sqlite3.Connection) -> list[InviteInfo]:
    """All invites that are kept, oldest first: those that ended, too, until ``forget``."""
    return [InviteInfo(*row) for row in connection.execute(f"SELECT {_FIELDS} FROM invites ORDER BY created_at, id")]


def revoke(connection: sqlite3.Connection, which: str, *, now: Callable[[], float] = time.time) -> InviteInfo:
    """Revoke an invite, found as ``invites.find`` does. Running edges refuse it, and everybody it let in, within a
    second. Raises NoSuchError when there is none."""
    info = replace(invites.find(list_invites(connection), which), revoked_at=int(now()))
    connection.execute("UPDATE invites SET revoked_at = ? WHERE id = ?", (info.revoked_at, info.id))
    return info


def revoked(connection: sqlite3.Connection) -> frozenset[str]:
    """The ids of all revoked invites."""
    return frozenset(row[0] for row in connection.execute("SELECT id FROM invites WHERE revoked_at IS NOT NULL"))


class Guest(NamedTuple):
    """Whom an invite lets in; ``known`` when it did so before, which spends nothing more."""

    info: InviteInfo
    principal_id: str
    known: bool


def spend(
    connection: sqlite3.Connection,
    text: str,
    caller_of: Callable[[str], str],
    now: float,
    barred: Container[str] = frozenset(),
) -> Guest | None:
    """Let one caller in; None when ``text`` is no invite that still lets anybody in, or the caller is one of the
    ``barred`` principals. ``caller_of`` gives the caller's principal id for an invite's id.

    However many spend at once, in whatever processes, no more than ``uses`` get in. Raises sqlite3.Error, SQLITE_BUSY
    while another process writes; then nothing is spent.
    """
    guest = _find(connection, text, caller_of, now, barred)
    return guest if guest and (guest.known or _take(connection, guest.info, guest.principal_id)) else None


def _find(
    connection: sqlite3.Connection, text: str, caller_of: Callable[[str], str], now: float, barred: Container[str]
) -> Guest | None:
    """Whom ``spend`` would let in. Every refusal of what looks like an invite costs the same: one row, one hash."""
    if (code := invites.split(text)) is None:
        return None
    invite_id, digest = code
    principal_id = caller_of(invite_id)
    query = (
        "SELECT digest, EXISTS (SELECT 1 FROM invite_uses WHERE invite = invites.id AND principal = ?), "
        f"{_FIELDS} FROM invites WHERE id = ?"
    )
    row = connection.execute(query, (principal_id, invite_id)).fetchone()
    if not matches(digest, row and row[0]) or principal_id in barred:
        return None
    guest = Guest(InviteInfo(*row[2:]), principal_id, bool(row[1]))
    return guest if guest.info.living(now) and (guest.known or guest.info.used < guest.info.uses) else None


def _take(connection: sqlite3.Connection, info: InviteInfo, principal_id: str) -> bool:
    """Count one use for ``principal_id``, unless it has one or there is none left. Others may do the same right now."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        new = connection.execute("INSERT OR IGNORE INTO invite_uses VALUES (?, ?)", (info.id, principal_id)).rowcount
        count = "UPDATE invites SET used = used + 1 WHERE id = ? AND used < uses AND revoked_at IS NULL"
        taken = not new or connection.execute(count, (info.id,)).rowcount == 1
        connection.execute("COMMIT" if taken else "ROLLBACK")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return taken


class Invites:
    """The invites of an edge's database, on the edge's own ``connection`` (not closed here) and event loop.

    ``secret`` is that of ``invited_id``. ``barred`` is asked at each entry for the principals that no invite lets in
    again. ``now`` gives Unix seconds, ``monotonic`` seconds.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        secret: bytes,
        now: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        barred: Callable[[], Container[str]] = frozenset,
    ) -> None:
        self._connection = connection
        self._secret = secret
        self._now = now
        self._monotonic = monotonic
        self._barred = barred
        self._failed = Gcra()  # tries that failed, by address
        self._writing = asyncio.Lock()  # one try at a time: each stops the loop for the connection's busy timeout

    async def enter(self, text: str, ip: str, origin: str | None) -> Principal:
        """As ``Store.enter_invite``."""
        block = address_block(ip)
        if wait := self._failed.wait(block, TRIES_PER_MINUTE, self._monotonic()):
            raise refusals.invite_tries(TRIES_PER_MINUTE, wait)
        guest = await self._spend(text, lambda invite: invited_id(self._secret, invite, ip, origin))
        if guest is None:
            self._failed.take(block, TRIES_PER_MINUTE, self._monotonic())
            raise refusals.invite_not_valid()
        return invites.guest(guest.principal_id, guest.info.plan, guest.info.expires_at, origin)

    def renew(self, guest: Principal) -> Principal:
        """As ``Store.renew_guest``."""
        query = f"SELECT {_FIELDS} FROM invites WHERE id = ?"
        row = self._connection.execute(query, (invite_of(guest),)).fetchone()
        if row is None or not (info := InviteInfo(*row)).living(self._now()) or guest.id in self._barred():
            raise refusals.invite_not_valid()
        return invites.guest(guest.id, info.plan, info.expires_at, guest.origin)

    def sweep(self) -> None:
        """Forget addresses that are as if they had never tried."""
        self._failed.sweep(self._monotonic())

    def forget(self, after_days: int) -> None:
        """Drop who came with invites that have ended, and ``after_days`` later the invites. Raises sqlite3.Error."""
        now = int(self._now())
        ended = "SELECT id FROM invites WHERE expires_at <= ?"
        self._connection.execute(f"DELETE FROM invite_uses WHERE invite IN ({ended})", (now,))
        self._connection.execute("DELETE FROM invites WHERE expires_at <= ?", (now - after_days * SECONDS_PER_DAY,))

    async def _spend(self, text: str, caller_of: Callable[[str], str]) -> Guest | None:
        """``spend``, waiting for another process's write without stopping the loop. Who is refused, or needs no write,
        is answered before any wait, so that tries at once are counted one by one. Raises ApiError ``overloaded``."""
        try:
            guest = _find(self._connection, text, caller_of, self._now(), self._barred())
            if guest is None or guest.known:
                return guest
            async with asyncio.timeout(_WRITE_SECONDS), self._writing:
                while True:
                    try:
                        return spend(self._connection, text, caller_of, self._now(), self._barred())
                    except sqlite3.OperationalError as error:
                        if error.sqlite_errorcode & _PRIMARY_CODE != sqlite3.SQLITE_BUSY:
                            raise
                    await asyncio.sleep(_WRITE_PAUSE_SECONDS)
        except TimeoutError:
            raise refusals.invites_busy() from None
        except sqlite3.OperationalError as error:
            logger.error("The use of an invite cannot be written: {}", error.sqlite_errorname)
            raise refusals.invites_busy() from None
