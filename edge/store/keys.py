"""API keys, ``hlk_<id>_<secret>``: shown once when made, kept as a hash, found by id.

The functions work on a connection, so that the command line manages keys on the local database whether or not an edge
is running; a running edge reads them again when the file changes (``KeyRing.load``).
"""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edge.principals import Principal
from edge.store.codes import Code, check_name, matches
from edge.store.database import AdminError, NoSuchError
from shared.contract.errors import ApiError
from shared.contract.secrets import API_KEY

_CODE = Code(API_KEY, secret_bytes=32)
_WORD = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_PRINCIPAL = "key_"


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

    Whether ``plan`` exists is for the caller to check. Raises AdminError.
    """
    created = int(now())
    check_name(name, "a key")
    if not all(_WORD.fullmatch(word) for word in (plan, *scopes)):
        raise AdminError("A plan or scope is one word of letters, digits, '.', '_', ':' or '-'.")
    if expires is not None and expires <= created:
        raise AdminError("The key would be expired at once: choose an end in the future.")
    key_id, text, digest = _CODE.make()
    row = (key_id, name, digest, plan, " ".join(scopes), created, expires)
    try:
        connection.execute("INSERT INTO keys VALUES (?, ?, ?, ?, ?, ?, ?, NULL)", row)
    except sqlite3.IntegrityError:
        raise AdminError(f"There is a key called {name!r} already: revoke it first, or choose another name.") from None
    return text


def list_keys(connection: sqlite3.Connection) -> list[KeyInfo]:
    """All keys, revoked ones too, oldest first."""
    return [info for info, _ in _rows(connection)]


def revoke(connection: sqlite3.Connection, which: str, *, now: Callable[[], float] = time.time) -> KeyInfo:
    """Revoke a living key by name, id, principal id, or its whole text. Running edges refuse it, and the tokens made
    with it, within a second. Raises NoSuchError when there is none."""
    code = _CODE.split(which)
    key_id = code[0] if code else which.removeprefix(_PRINCIPAL)
    for info, _ in _rows(connection):
        if info.revoked_at is None and (info.name == which or info.id == key_id):
            connection.execute("UPDATE keys SET revoked_at = ? WHERE id = ?", (int(now()), info.id))
            return info
    shown = "that" if code else repr(which[:80])
    raise NoSuchError(f"No living key is {shown}: list the keys to see their names and ids.")


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
        code = _CODE.split(text)
        if code is None:
            raise _invalid("Check that it was copied whole.")
        key_id, digest = code
        kept, principal = self._living.get(key_id, (None, None))
        if not matches(digest, kept) or principal is None:
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


def _invalid(why: str) -> ApiError:
    return ApiError("invalid_token", f"The API key is not valid here. {why}")
