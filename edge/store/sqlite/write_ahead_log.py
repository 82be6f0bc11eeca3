"""Keeps SQLite's write-ahead log short without making the event loop wait for the disk."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
from pathlib import Path

from loguru import logger

# A commit during the checkpoint keeps the log from starting over. On a disk slow enough for that to happen every time,
# one short wait on the loop past this size is better than a log without end.
_LONGEST_BYTES = 64 << 20


class WriteAheadLog:
    """The log of database ``path``, whose only regular writer is ``connection`` (not closed here)."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self._path = path
        self._connection = connection
        self._running: asyncio.Task[None] | None = None
        connection.execute("PRAGMA wal_autocheckpoint = 0")

    def shorten(self) -> None:
        """Begin to move the log into the database file, unless that is still going on. Raises sqlite3.Error."""
        if self._running is not None and not self._running.done():
            return
        if self._size() > _LONGEST_BYTES:
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._running = asyncio.create_task(asyncio.to_thread(_checkpoint, self._path), name="store: checkpoint")

    async def close(self) -> None:
        """Wait for a checkpoint that is going on."""
        if self._running is not None:
            await asyncio.wait([self._running])

    def _size(self) -> int:
        try:
            return os.stat(f"{self._path}-wal").st_size
        except FileNotFoundError:
            return 0


def _checkpoint(path: Path) -> None:
    try:
        # A connection of its own: one is not shared between threads.
        with contextlib.closing(
            sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, isolation_level=None, timeout=0.0)
        ) as connection:
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
    except sqlite3.Error as error:
        logger.warning("The write-ahead log of {} could not be moved into it ({}): trying again", path, error)
