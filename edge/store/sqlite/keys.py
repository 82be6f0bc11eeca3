"""API keys in the SQLite file, on a connection that the caller has."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from edge.store import keys
from edge.store.keys import KeyInfo


def create(
    connection: sqlite3.Connection,
    name: str,
    plan: str,
    scopes: Sequence[str],
    expires: int | None = None,
    *,
    now: Callable[[], float] = time.time,
) -> tuple[KeyInfo, str]:
    """Make a key and return its text, which is not kept anywhere. As ``keys.draw``; raises AdminError."""
    new = keys.draw(name, plan, scopes, expires, int(now()))
    row = (new.info.id, name, new.digest, plan, " ".join(scopes), new.info.created_at, expires)
    try:
        connection.execute("INSERT INTO keys VALUES (?, ?, ?, ?, ?, ?, ?, NULL)", row)
    except sqlite3.IntegrityError:
        raise keys.name_taken(name) from None
    return new.info, new.text


def list_keys(connection: sqlite3.Connection) -> list[KeyInfo]:
    """All keys, revoked ones too, oldest first."""
    return [info for info, _ in rows(connection)]


def revoke(connection: sqlite3.Connection, which: str, *, now: Callable[[], float] = time.time) -> KeyInfo:
    """Revoke a living key, found as ``keys.find`` does. Running edges refuse it, and the tokens made with it, within a
    second. Raises NoSuchError when there is none."""
    info = replace(keys.find(list_keys(connection), which), revoked_at=int(now()))
    connection.execute("UPDATE keys SET revoked_at = ? WHERE id = ?", (info.revoked_at, info.id))
    return info


def rows(connection: sqlite3.Connection) -> list[tuple[KeyInfo, bytes]]:
    """All keys with their digests, oldest first."""
    query = (
        "SELECT id, name, plan, scopes, created_at, expires_at, revoked_at, digest FROM keys ORDER BY created_at, name"
    )
    return [
        (KeyInfo(row[0], row[1], row[2], tuple(row[3].split()), row[4], row[5], row[6]), row[7])
        for row in connection.execute(query)
    ]
