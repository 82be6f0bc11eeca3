"""Conversations in a SQLite file of the state folder: they outlive the process."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from loguru import logger

from node.conversations.conversation import PER_MESSAGE, Bounds, Conversation, Heading, Message
from shared.contract.errors import ApiError
from shared.ownership import make_empty
from shared.state import StateError

Result = TypeVar("Result")

# A backup's copy holds the file for milliseconds; whoever holds it this long is stuck.
_BUSY_SECONDS = 5.0
_SCHEMA_VERSION = 1
_SCHEMA = f"""
CREATE TABLE conversations (
    number INTEGER PRIMARY KEY,
    principal TEXT NOT NULL,
    id TEXT NOT NULL,
    chat_type TEXT NOT NULL,
    created_at REAL NOT NULL,       -- Unix seconds, as the next
    updated_at REAL NOT NULL,
    size INTEGER NOT NULL,          -- bytes of its messages
    UNIQUE (principal, id)
);
CREATE INDEX conversations_by_use ON conversations (updated_at);
CREATE TABLE messages (
    conversation INTEGER NOT NULL REFERENCES conversations (number) ON DELETE CASCADE,
    place INTEGER NOT NULL,
    role TEXT NOT NULL,
    content TEXT NOT NULL,
    at REAL NOT NULL,               -- Unix seconds
    PRIMARY KEY (conversation, place)
) WITHOUT ROWID;
PRAGMA user_version = {_SCHEMA_VERSION};
"""


class SQLiteStorage:
    """A ``Storage``. All SQL runs in one thread of its own, so that a slow disk holds up nobody but those who wait for
    it. Use ``open``."""

    def __init__(self, connection: sqlite3.Connection, executor: ThreadPoolExecutor, bounds: Bounds) -> None:
        self._connection = connection
        self._executor = executor
        self._bounds = bounds

    @classmethod
    async def open(cls, path: Path, bounds: Bounds) -> SQLiteStorage:
        """Make the file where it is missing, mode 0600. Raises StateError."""
        executor = ThreadPoolExecutor(1, "conversations")
        try:
            connection = await asyncio.get_running_loop().run_in_executor(executor, _connect, path)
        except BaseException:
            executor.shutdown(wait=False)
            raise
        return cls(connection, executor, bounds)

    async def read(self, principal: str, id: str) -> Conversation | None:
        return await self._do(lambda: self._read(principal, id))

    async def add(self, principal: str, id: str, chat_type: str, exchange: tuple[Message, Message]) -> None:
        await self._do(lambda: self._add(principal, id, chat_type, exchange))

    async def headings(self, principal: str) -> list[Heading]:
        return await self._do(lambda: self._headings(principal))

    async def every(self, principal: str) -> AsyncIterator[Conversation]:
        for heading in await self.headings(principal):
            if (conversation := await self.read(principal, heading.id)) is not None:
                yield conversation

    async def forget(self, principal: str, id: str) -> bool:
        return await self._do(lambda: self._forget("principal = ? AND id = ?", principal, id)) > 0

    async def forget_all(self, principal: str) -> int:
        return await self._do(lambda: self._forget("principal = ?", principal))

    async def sweep(self) -> None:
        await self._do(self._sweep)

    async def close(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._executor, self._connection.close)
        self._executor.shutdown(wait=False)

    async def _do(self, work: Callable[[], Result]) -> Result:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, work)
        except sqlite3.Error as error:
            logger.error("the conversations cannot be used: {}", error)
            raise ApiError("internal_error", "The node cannot keep conversations just now. Its log says why.") from None

    @property
    def _oldest(self) -> float:
        return time.time() - self._bounds.lifetime

    def _read(self, principal: str, id: str) -> Conversation | None:
        found = self._connection.execute(
            "SELECT number, chat_type, created_at, updated_at FROM conversations"
            " WHERE principal = ? AND id = ? AND updated_at >= ?",
            (principal, id, self._oldest),
        ).fetchone()
        if found is None:
            return None
        number, chat_type, created_at, updated_at = found
        rows = self._connection.execute(
            "SELECT role, content, at FROM messages WHERE conversation = ? ORDER BY place", (number,)
        )
        messages = tuple(Message(*row) for row in rows)
        return Conversation(Heading(id, chat_type, created_at, updated_at, len(messages)), messages)

    def _headings(self, principal: str) -> list[Heading]:
        rows = self._connection.execute(
            "SELECT id, chat_type, created_at, updated_at,"
            " (SELECT count(*) FROM messages WHERE conversation = number) FROM conversations"
            " WHERE principal = ? AND updated_at >= ? ORDER BY updated_at DESC, number DESC",
            (principal, self._oldest),
        )
        return [Heading(*row) for row in rows]

    def _add(self, principal: str, id: str, chat_type: str, exchange: tuple[Message, Message]) -> None:
        now, size = time.time(), sum(message.size for message in exchange)
        with _transaction(self._connection) as connection:
            self._delete("principal = ? AND id = ? AND updated_at < ?", principal, id, self._oldest)
            (number,) = connection.execute(
                "INSERT INTO conversations (principal, id, chat_type, created_at, updated_at, size)"
                " VALUES (?1, ?2, ?3, ?4, ?4, ?5) ON CONFLICT (principal, id)"
                " DO UPDATE SET chat_type = ?3, updated_at = ?4, size = size + ?5 RETURNING number",
                (principal, id, chat_type, now, size),
            ).fetchone()
            (last,) = connection.execute(
                "SELECT coalesce(max(place), 0) FROM messages WHERE conversation = ?", (number,)
            ).fetchone()
            connection.executemany(
                "INSERT INTO messages VALUES (?, ?, ?, ?, ?)",
                [
                    (number, last + place, message.role, message.content, message.at)
                    for place, message in enumerate(exchange, 1)
                ],
            )
            self._shorten(number, keep_from=last + 1)
            self._make_room(principal)

    def _shorten(self, number: int, keep_from: int) -> None:
        """Forget the oldest turns of a conversation that has grown too long, but never what has just been said."""
        (size,) = self._connection.execute("SELECT size FROM conversations WHERE number = ?", (number,)).fetchone()
        rows = self._connection.execute(
            "SELECT place, length(CAST(content AS BLOB)) + ? FROM messages WHERE conversation = ? AND place < ?"
            " ORDER BY place",
            (PER_MESSAGE, number, keep_from),
        ).fetchall()
        gone = 0
        for place, length in rows:
            if size <= self._bounds.size and place % 2:  # a turn begins with the user's message, which is odd
                break
            size, gone = size - length, place
        if gone:
            self._connection.execute("DELETE FROM messages WHERE conversation = ? AND place <= ?", (number, gone))
            self._connection.execute("UPDATE conversations SET size = ? WHERE number = ?", (size, number))

    def _make_room(self, principal: str) -> None:
        """Forget what was longest unused: of this caller, and of all."""
        self._connection.execute(
            "DELETE FROM conversations WHERE number IN (SELECT number FROM conversations WHERE principal = ?"
            " ORDER BY updated_at DESC, number DESC LIMIT -1 OFFSET ?)",
            (principal, self._bounds.per_caller),
        )
        (total,) = self._connection.execute("SELECT coalesce(sum(size), 0) FROM conversations").fetchone()
        if total <= self._bounds.total:
            return
        rows = self._connection.execute("SELECT number, size FROM conversations ORDER BY updated_at, number").fetchall()
        for number, size in rows[:-1]:
            if total <= self._bounds.total:
                return
            self._delete("number = ?", number)
            total -= size

    def _forget(self, where: str, *values: str) -> int:
        self._sweep()  # else what is past its lifetime would count
        return self._delete(where, *values)

    def _sweep(self) -> None:
        self._delete("updated_at < ?", self._oldest)

    def _delete(self, where: str, *values: str | float) -> int:
        return self._connection.execute(f"DELETE FROM conversations WHERE {where}", values).rowcount


def _connect(path: Path) -> sqlite3.Connection:
    try:
        with contextlib.suppress(FileExistsError):
            make_empty(path)
        connection = sqlite3.connect(path, isolation_level=None, timeout=_BUSY_SECONDS)
    except (OSError, sqlite3.Error) as error:
        raise StateError(f"The conversations in {path} cannot be opened ({error}). Check the folder's owner.") from None
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        # A crash loses nothing that was committed; a power cut at most the last exchanges, never the file.
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA foreign_keys = ON")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if not version:
            connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT;")
        elif version != _SCHEMA_VERSION:
            raise StateError(f"{path} was written by a newer version of Hearthlink. Upgrade, or move the file away.")
    except sqlite3.Error as error:
        connection.close()
        raise StateError(
            f"The conversations in {path} cannot be read ({error}). Restore them from a backup, or move the file away."
        ) from None
    except StateError:
        connection.close()
        raise
    return connection


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield connection
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")
