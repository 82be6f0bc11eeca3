"""What the owner sees of single callers in the SQLite file, and does to them. ``now`` is Unix seconds."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping

from edge.principals import day_of
from edge.store.admin import Standing
from edge.store.keys import key_of
from edge.store.sqlite import records
from edge.store.sqlite.database import transaction


def standing(connection: sqlite3.Connection, principal_id: str, now: float) -> Standing:
    used = "SELECT COALESCE(SUM(tokens), 0) FROM usage WHERE principal = ? AND day = ?"
    running = "SELECT COALESCE(SUM(tokens) FILTER (WHERE day = ?2), 0), COUNT(*) FROM reservations WHERE principal = ?1"
    revoked_at = "SELECT MAX(at) FROM revoked_principals WHERE principal = ?"
    (tokens,) = connection.execute(used, (principal_id, day_of(now))).fetchone()
    reserved, answers = connection.execute(running, (principal_id, day_of(now))).fetchone()
    (at,) = connection.execute(revoked_at, (principal_id,)).fetchone()
    return Standing(principal_id, tokens, reserved, answers, records.limits(connection).get(principal_id), at)


def standings(connection: sqlite3.Connection, now: float) -> list[Standing]:
    """Of all who used a token today or have limits of their own, those who used most first."""
    query = (
        "SELECT principal FROM usage WHERE day = ?1 AND tokens > 0 UNION "
        "SELECT principal FROM reservations WHERE day = ?1 UNION SELECT principal FROM limits"
    )
    found = _standings(connection, [row[0] for row in connection.execute(query, (day_of(now),))], now)
    return sorted(found, key=lambda one: (-one.used, one.principal))


def set_limits(
    connection: sqlite3.Connection, principal_id: str, changes: Mapping[str, int | None]
) -> Mapping[str, int | None]:
    with transaction(connection):
        limits = {**records.limits(connection).get(principal_id, {}), **changes}
        connection.execute("INSERT OR REPLACE INTO limits VALUES (?, ?)", (principal_id, json.dumps(limits)))
    return limits


def clear_limits(connection: sqlite3.Connection, principal_id: str) -> bool:
    """Whether there were any."""
    return connection.execute("DELETE FROM limits WHERE principal = ?", (principal_id,)).rowcount > 0


def reset_usage(connection: sqlite3.Connection, principal_id: str, now: float) -> None:
    """Drop what is written; a running edge, which counts in memory, reads of it in the table resets."""
    with transaction(connection):
        connection.execute("DELETE FROM usage WHERE principal = ? AND day = ?", (principal_id, day_of(now)))
        connection.execute("INSERT OR IGNORE INTO resets VALUES (?)", (principal_id,))


def revoke(connection: sqlite3.Connection, principal_id: str, now: float) -> None:
    """All tokens of the caller that are out; an API key's principal with the key."""
    at = int(now)
    with transaction(connection):
        connection.execute(
            "INSERT INTO revoked_principals VALUES (?, ?)"
            " ON CONFLICT (principal) DO UPDATE SET at = MAX(at, excluded.at)",
            (principal_id, at),
        )
        if (key_id := key_of(principal_id)) is not None:
            connection.execute("UPDATE keys SET revoked_at = ? WHERE id = ? AND revoked_at IS NULL", (at, key_id))


def _standings(connection: sqlite3.Connection, principal_ids: list[str], now: float) -> list[Standing]:
    used = dict(connection.execute("SELECT principal, tokens FROM usage WHERE day = ?", (day_of(now),)))
    revoked_at = dict(connection.execute("SELECT principal, at FROM revoked_principals"))
    query = (
        "SELECT principal, SUM(CASE day WHEN ? THEN tokens ELSE 0 END), COUNT(*) FROM reservations GROUP BY principal"
    )
    running = {row[0]: (row[1], row[2]) for row in connection.execute(query, (day_of(now),))}
    limits = records.limits(connection)
    return [
        Standing(one, used.get(one, 0), *running.get(one, (0, 0)), limits.get(one), revoked_at.get(one))
        for one in principal_ids
    ]
