"""A store in a file of its own, and what SQLite has in it."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

from edge.store.sqlite.store import SQLiteStore
from shared.state import StateDir


async def opened(database: Path, **changes: object) -> SQLiteStore:
    """The caller closes it."""
    store = SQLiteStore(StateDir(database.parent), requests_per_minute_per_ip=None, **changes)  # type: ignore[arg-type]
    await store.open()
    return store


def rows(database: Path, query: str) -> list[tuple]:
    with contextlib.closing(sqlite3.connect(database)) as connection:
        return connection.execute(query).fetchall()
