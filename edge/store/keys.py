"""API keys, ``hlk_<id>_<secret>``: shown once when made, kept as a hash, found by id.

The functions work on a connection, so that the command line manages keys on the local database whether or not an edge
is running; a running edge reads them again when the file changes (``KeyRing.load``).
"""

from __future__ import annotations

import re
import secrets
import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from hmac import compare_digest
from pathlib import Path

from edge.principals import Principal
from edge.store.database import connect
from shared.contract.errors import ApiError
from shared.contract.secrets import API_KEY

# Another process's commit takes milliseconds; whoever holds the file this long is stuck.
_ADMIN_BUSY_SECONDS = 5.0
_ID_BYTES = 6  # 12 hex digits: names the key in lists and logs, is no secret
_SECRET_BYTES = 32  # 256 bits of randomness need no slow hash: nobody guesses them
_KEY = re.compile(rf"{API_KEY}([0-9a-f]{{12}})_([A-Za-z0-9_-]{{43}})")
_LIKE_AN_ID = re.compile(r"(key_)?[0-9a-f]{12}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_WORD = re.compile(r"[A-Za-z0-9._:-]{1,64}")
# Compared with when the id is unknown, so that the answer takes as long either way.
_NO_DIGEST = bytes(32)
_PRINCIPAL = "key_"


class KeyAdminError(ValueError):
    """A key could not be made or revoked; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class KeyInfo:
    """One key without its secret. Times are Unix seconds; ``revoked_at`` None means it still opens."""

    id: str
    name: str
    plan: str
    scopes: tuple[str, ...]
    created_at: int
    expires_at: int | None = None
    revoked_at: int | None = None

    @property
    def principal_id(self) -> str:
        """How the audit line and the limits name this key; tokens made with it carry it too."""
        return _PRINCIPAL + self.id


def open_for_admin(path: Path) -> sqlite3.Connection:
    """The edge's database for the functions below, made when it is not there. The caller closes it. Raises
    ``database.StoreError``."""
    return connect(path, busy_seconds=_ADMIN_BUSY_SECONDS)


def create(
    connection: sqlite3.Connection,
    name: str,
    plan: str,
    scopes: Sequence[str],
    expires: int | None = None,
    *,
    now: Callable[[], float] = time.time,
) -> str:
    """Make a key called ``name`` and return its text, which is not kept anywhere. ``expires`` is Unix seconds.

    Whether ``plan`` exists is for the caller to check. Raises KeyAdminError.
    """
    created = int(now())
    if _NAME.fullmatch(name) is None or _LIKE_AN_ID.fullmatch(name):
        raise KeyAdminError(
            f"{name[:80]!r} is not a name for a key: use 1 to 64 letters, digits, '.', '_' or '-' (not 12 hex digits)."
        )
    if not all(_WORD.fullmatch(word) for word in (plan, *scopes)):
        raise KeyAdminError("A plan or scope is one word of letters, digits, '.', '_', ':' or '-'.")
    if expires is not None and expires <= created:
        raise KeyAdminError("The key would be expired at once: choose an end in the future.")
    key_id, secret = secrets.token_hex(_ID_BYTES), secrets.token_urlsafe(_SECRET_BYTES)
    row = (key_id, name, _digest(secret), plan, " ".join(scopes), created, expires)
    try:
        connection.execute("INSERT INTO keys VALUES (?, ?, ?, ?, ?, ?, ?, NULL)", row)
    except sqlite3.IntegrityError:
        raise KeyAdminError(
            f"There is a key called {name!r} already: revoke it first, or choose another name."
        ) from None
    return f"{API_KEY}{key_id}_{secret}"


def list_keys(connection: sqlite3.Connection) -> list[KeyInfo]:
    """All keys, revoked ones too, oldest first."""
    return [info for info, _ in _rows(connection)]


def revoke(connection: sqlite3.Connection, which: str, *, now: Callable[[], float] = time.time) -> KeyInfo:
    """Revoke a living key by name, id, principal id, or its whole text. Running edges refuse it, and the tokens made
    with it, within a second. Raises KeyAdminError when there is none."""
    match = _KEY.fullmatch(which)
    key_id = match[1] if match else which.removeprefix(_PRINCIPAL)
    for info, _ in _rows(connection):
        if info.revoked_at is None and (info.name == which or info.id == key_id):
            connection.execute("UPDATE keys SET revoked_at = ? WHERE id = ?", (int(now()), info.id))
            return info
    shown = "that" if match else repr(which[:80])
    raise KeyAdminError(f"No living key is {shown}: list the keys to see their names and ids.")


class KeyRing:
    """The keys of a database in memory: a lookup is two dictionary reads and a hash."""

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._living: dict[str, tuple[bytes, Principal]] = {}
        self._revoked: frozenset[str] = frozenset()

    def load(self, connection: sqlite3.Connection) -> None:
        """Read all keys again. Raises sqlite3.Error, keeping what it had."""
        rows = _rows(connection)
        self._living = {info.id: (digest, _principal(info)) for info, digest in rows if info.revoked_at is None}
        self._revoked = frozenset(info.principal_id for info, _ in rows if info.revoked_at is not None)

    def lookup(self, text: str) -> Principal:
        """The principal of key ``text``. Raises ApiError ``invalid_token`` when it is malformed, unknown, revoked or
        expired; the text is not repeated."""
        match = _KEY.fullmatch(text)
        if match is None:
            raise _invalid("Check that it was copied whole.")
        digest, principal = self._living.get(match[1], (_NO_DIGEST, None))
        if not compare_digest(_digest(match[2]), digest) or principal is None:
            raise _invalid("It may have been revoked. Ask the owner of this edge for another one.")
        if principal.expires_at is not None and principal.expires_at <= self._now():
            raise _invalid("It has expired. Ask the owner of this edge for another one.")
        return principal

    def revoked(self, principal_id: str) -> bool:
        """Whether ``principal_id`` is that of a revoked key."""
        return principal_id in self._revoked


def _rows(connection: sqlite3.Connection) -> list[tuple[KeyInfo, bytes]]:
    query = (
        "SELECT id, name, plan, scopes, created_at, expires_at, revoked_at, digest FROM keys ORDER BY created_at, name"
    )
    return [
        (KeyInfo(row[0], row[1], row[2], tuple(row[3].split()), row[4], row[5], row[6]), row[7])
        for row in connection.execute(query)
    ]


def _principal(info: KeyInfo) -> Principal:
    return Principal(info.principal_id, "key", info.plan, info.scopes, expires_at=info.expires_at)


def _digest(secret: str) -> bytes:
    return sha256(secret.encode()).digest()


def _invalid(why: str) -> ApiError:
    return ApiError("invalid_token", f"The API key is not valid here. {why}")
