"""What every edge knows by heart, read from the SQLite file."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import asdict

from edge.store.records import Maintenance, Records
from edge.store.sqlite import invites, keys

# Names in the table meta.
_EVERYONE = "revoked_everyone"
_MAINTENANCE = "maintenance"


def load(connection: sqlite3.Connection, records: Records) -> None:
    """Read all of ``records`` again, but the signing keys, which are a file of their own, and the revoked tokens, some
    of which may not be written yet. Raises sqlite3.Error."""
    records.keys.load(keys.rows(connection))
    records.invites = invites.revoked(connection)
    records.principals = dict(connection.execute("SELECT principal, at FROM revoked_principals"))
    records.everyone = int(_meta(connection, _EVERYONE) or 0)
    records.limits = limits(connection)
    records.maintenance = maintenance(connection)


def limits(connection: sqlite3.Connection) -> dict[str, Mapping[str, int | None]]:
    """The limits of all callers who have their own."""
    return {principal: json.loads(own) for principal, own in connection.execute("SELECT principal, own FROM limits")}


def maintenance(connection: sqlite3.Connection) -> Maintenance | None:
    text = _meta(connection, _MAINTENANCE)
    return None if text is None else Maintenance(**json.loads(text))


def set_maintenance(connection: sqlite3.Connection, wanted: Maintenance | None) -> None:
    _set_meta(connection, _MAINTENANCE, None if wanted is None else json.dumps(asdict(wanted)))


def revoke_token(connection: sqlite3.Connection, jti: str, expires_at: int) -> None:
    connection.execute("INSERT OR IGNORE INTO revocations VALUES (?, ?)", (jti, expires_at))


def revoke_everyone(connection: sqlite3.Connection, at: int) -> None:
    _set_meta(connection, _EVERYONE, str(max(at, int(_meta(connection, _EVERYONE) or 0))))


def _meta(connection: sqlite3.Connection, name: str) -> str | None:
    row = connection.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
    return None if row is None else row[0]


def _set_meta(connection: sqlite3.Connection, name: str, value: str | None) -> None:
    if value is None:
        connection.execute("DELETE FROM meta WHERE name = ?", (name,))
    else:
        connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))
