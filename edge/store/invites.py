"""Invites, ``hli_<id>_<secret>``: shown once when made, kept as a hash, good for so many callers until they end.

The functions work on a connection, as those of ``keys`` do: the command line has the local database, whether or not an
edge is running. ``Invites`` is what a running edge does with them.
"""

from __future__ import annotations

import asyncio
import re
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from loguru import logger

from edge.principals import SECONDS_PER_DAY, Principal, address_block, invite_of, invited_id
from edge.store import refusals
from edge.store.codes import Code, check_name, matches
from edge.store.database import AdminError, NoSuchError
from edge.store.gcra import Gcra
from shared.contract.secrets import INVITE

# Invites that are not valid, tried from one address; whoever mistypes more often than this is guessing.
TRIES_PER_MINUTE = 5
# An invite goes to people who were not chosen one by one: it never gives the right to administer.
_SCOPES = ("chat",)
_CODE = Code(INVITE, secret_bytes=16)  # shorter than a key: people pass it on by hand
_PLAN = re.compile(r"[A-Za-z0-9._:-]{1,64}")
# A token is minted a moment after its invite was found valid, and needs a second to live.
_LAST_SECONDS = 1
# Another process's commit takes milliseconds. The loop goes on between the tries to write after it.
_WRITE_PAUSE_SECONDS = 0.05
_WRITE_SECONDS = 2.0
# What SQLite adds to an error's number in the bits above tells its cases apart.
_PRIMARY_CODE = 0xFF
_FIELDS = "id, name, plan, uses, used, created_at, expires_at, revoked_at"


@dataclass(frozen=True, slots=True)
class InviteInfo:
    """One invite without its secret: it let ``used`` callers in, of ``uses`` that it may. Times are Unix seconds."""

    id: str
    name: str | None
    plan: str
    uses: int
    used: int
    created_at: int
    expires_at: int
    revoked_at: int | None = None

    def living(self, now: float) -> bool:
        """Neither revoked nor at its end; it may be used up."""
        return self.revoked_at is None and now < self.expires_at - _LAST_SECONDS


def create(
    connection: sqlite3.Connection,
    plan: str,
    uses: int,
    expires: int,
    name: str | None = None,
    *,
    now: Callable[[], float] = time.time,
) -> str:
    """Make an invite for ``uses`` callers and return its text, which is not kept anywhere. ``expires`` is Unix seconds.

    Whether ``plan`` exists is for the caller to check. Raises AdminError.
    """
    created = int(now())
    if name is not None:
        check_name(name, "an invite")
    if _PLAN.fullmatch(plan) is None:
        raise AdminError("A plan is one word of letters, digits, '.', '_', ':' or '-'.")
    if uses < 1 or expires <= created:
        raise AdminError("The invite would be of no use: give it one use at least, and an end in the future.")
    invite_id, text, digest = _CODE.make()
    row = (invite_id, name, digest, plan, uses, created, expires)
    try:
        connection.execute(
            "INSERT INTO invites (id, name, digest, plan, uses, created_at, expires_at) VALUES (?, ?, ?, ?, ?, ?, ?)",
            row,
        )
    except sqlite3.IntegrityError:
        raise AdminError(
            f"There is an invite called {name!r} already: revoke it first, or choose another name."
        ) from None
    return text


def list_invites(connection: sqlite3.Connection) -> list[InviteInfo]:
    """All invites that are kept, oldest first: those that ended, too, until ``forget``."""
    return [InviteInfo(*row) for row in connection.execute(f"SELECT {_FIELDS} FROM invites ORDER BY created_at, id")]


def revoke(connection: sqlite3.Connection, which: str, *, now: Callable[[], float] = time.time) -> InviteInfo:
    """Revoke an invite by name, id, or its whole text. Running edges refuse it, and everybody it let in, within a
    second. Raises NoSuchError when there is none."""
    code = _CODE.split(which)
    invite_id = code[0] if code else which
    for info in list_invites(connection):
        if info.revoked_at is None and (info.name == which or info.id == invite_id):
            connection.execute("UPDATE invites SET revoked_at = ? WHERE id = ?", (int(now()), info.id))
            return info
    shown = "that" if code else repr(which[:80])
    raise NoSuchError(f"No living invite is {shown}: list the invites to see their names and ids.")


class Guest(NamedTuple):
    """Whom an invite lets in; ``known`` when it did so before, which spends nothing more."""

    info: InviteInfo
    principal_id: str
    known: bool


def spend(connection: sqlite3.Connection, text: str, caller_of: Callable[[str], str], now: float) -> Guest | None:
    """Let one caller in; None when ``text`` is no invite that still lets anybody in. ``caller_of`` gives the caller's
    principal id for an invite's id.

    However many spend at once, in whatever processes, no more than ``uses`` get in. Raises sqlite3.Error, SQLITE_BUSY
    while another process writes; then nothing is spent.
    """
    guest = _find(connection, text, caller_of, now)
    return guest if guest and (guest.known or _take(connection, guest.info, guest.principal_id)) else None


def _find(connection: sqlite3.Connection, text: str, caller_of: Callable[[str], str], now: float) -> Guest | None:
    """Whom ``spend`` would let in. Every refusal of what looks like an invite costs the same: one row, one hash."""
    if (code := _CODE.split(text)) is None:
        return None
    invite_id, digest = code
    principal_id = caller_of(invite_id)
    query = (
        "SELECT digest, EXISTS (SELECT 1 FROM invite_uses WHERE invite = invites.id AND principal = ?), "
        f"{_FIELDS} FROM invites WHERE id = ?"
    )
    row = connection.execute(query, (principal_id, invite_id)).fetchone()
    if not matches(digest, row and row[0]):
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

    ``secret`` is that of ``invited_id``. ``now`` gives Unix seconds, ``monotonic`` seconds.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        secret: bytes,
        now: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connection = connection
        self._secret = secret
        self._now = now
        self._monotonic = monotonic
        self._failed = Gcra()  # tries that failed, by address
        self._writing = asyncio.Lock()  # one try at a time: each stops the loop for the connection's busy timeout
        self._revoked: frozenset[str] = frozenset()

    def load(self) -> None:
        """Read again which are revoked. Raises sqlite3.Error, keeping what it had."""
        rows = self._connection.execute("SELECT id FROM invites WHERE revoked_at IS NOT NULL")
        self._revoked = frozenset(row[0] for row in rows)

    def revoked(self, principal: Principal) -> bool:
        """Whether the invite that let ``principal`` in is revoked."""
        return invite_of(principal) in self._revoked

    async def enter(self, text: str, ip: str, origin: str | None) -> Principal:
        """Whom the invite ``text`` lets in: the caller at ``ip`` on ``origin``, to which it is locked.

        Raises ApiError ``invalid_token`` with one sentence for all that is no valid invite, ``rate_limited`` after too
        many of those from this address, ``overloaded`` when the use cannot be written down.
        """
        block = address_block(ip)
        if wait := self._failed.wait(block, TRIES_PER_MINUTE, self._monotonic()):
            raise refusals.invite_tries(TRIES_PER_MINUTE, wait)
        guest = await self._spend(text, lambda invite: invited_id(self._secret, invite, ip, origin))
        if guest is None:
            self._failed.take(block, TRIES_PER_MINUTE, self._monotonic())
            raise refusals.invite_not_valid()
        return _principal(guest.info, guest.principal_id, origin)

    def renew(self, principal: Principal) -> Principal:
        """``principal`` for another token. Raises ApiError ``invalid_token`` when its invite ended or is revoked."""
        row = self._connection.execute(
            f"SELECT {_FIELDS} FROM invites WHERE id = ?", (invite_of(principal),)
        ).fetchone()
        if row is None or not (info := InviteInfo(*row)).living(self._now()):
            raise refusals.invite_not_valid()
        return _principal(info, principal.id, principal.origin)

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
            guest = _find(self._connection, text, caller_of, self._now())
            if guest is None or guest.known:
                return guest
            async with asyncio.timeout(_WRITE_SECONDS), self._writing:
                while True:
                    try:
                        return spend(self._connection, text, caller_of, self._now())
                    except sqlite3.OperationalError as error:
                        if error.sqlite_errorcode & _PRIMARY_CODE != sqlite3.SQLITE_BUSY:
                            raise
                    await asyncio.sleep(_WRITE_PAUSE_SECONDS)
        except TimeoutError:
            raise refusals.invites_busy() from None
        except sqlite3.OperationalError as error:
            logger.error("The use of an invite cannot be written: {}", error.sqlite_errorname)
            raise refusals.invites_busy() from None


def _principal(info: InviteInfo, principal_id: str, origin: str | None) -> Principal:
    return Principal(principal_id, "invite", info.plan, _SCOPES, origin=origin, expires_at=info.expires_at)
