"""The edge's SQLite file: opened safely, with its schema, by the edge and by the command line."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from edge.store.errors import StoreError, StoreNotYet
from shared.ownership import belongs_to_folder, make_empty

# Another process's commit takes milliseconds; whoever holds the file this long is stuck.
_ADMIN_BUSY_SECONDS = 5.0
# For how long an edge that is being replaced may hold its file: its drain and its end.
_DRAIN_SECONDS = 30.0
# What each version added to the one before; a file of a newer version is refused.
_SCHEMA = (
    """
CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE keys (
    id TEXT PRIMARY KEY,            -- 12 hex digits, the public part of the key
    name TEXT NOT NULL,
    digest BLOB NOT NULL,           -- SHA-256 of the secret part
    plan TEXT NOT NULL,
    scopes TEXT NOT NULL,           -- separated by spaces
    created_at INTEGER NOT NULL,    -- Unix seconds, as the two below
    expires_at INTEGER,
    revoked_at INTEGER
) WITHOUT ROWID;
CREATE UNIQUE INDEX living_key_names ON keys (name) WHERE revoked_at IS NULL;
CREATE TABLE revocations (
    jti TEXT PRIMARY KEY,
    expires_at INTEGER NOT NULL     -- Unix seconds: the token is refused for its age from then on
) WITHOUT ROWID;
CREATE TABLE usage (
    principal TEXT NOT NULL,
    day INTEGER NOT NULL,           -- days since 1970-01-01 UTC
    tokens INTEGER NOT NULL,
    PRIMARY KEY (principal, day)
) WITHOUT ROWID;
CREATE TABLE reservations (
    chat_id TEXT PRIMARY KEY,
    principal TEXT NOT NULL,
    day INTEGER NOT NULL,
    tokens INTEGER NOT NULL         -- the estimate it is settled at when nobody is left to settle it
) WITHOUT ROWID;
""",
    """
CREATE TABLE invites (
    id TEXT PRIMARY KEY,            -- 12 hex digits, the public part of the invite
    name TEXT,
    digest BLOB NOT NULL,           -- SHA-256 of the secret part
    plan TEXT NOT NULL,
    uses INTEGER NOT NULL,          -- how many callers it may let in
    used INTEGER NOT NULL DEFAULT 0 CHECK (used <= uses),
    created_at INTEGER NOT NULL,    -- Unix seconds, as the two below
    expires_at INTEGER NOT NULL,
    revoked_at INTEGER
) WITHOUT ROWID;
CREATE UNIQUE INDEX living_invite_names ON invites (name) WHERE revoked_at IS NULL;
CREATE TABLE invite_uses (
    invite TEXT NOT NULL,
    principal TEXT NOT NULL,        -- whom it let in
    PRIMARY KEY (invite, principal)
) WITHOUT ROWID;
""",
    """
CREATE TABLE limits (
    principal TEXT PRIMARY KEY,
    own TEXT NOT NULL               -- JSON: the caller's own limits by name, null for none
) WITHOUT ROWID;
CREATE TABLE revoked_principals (
    principal TEXT PRIMARY KEY,
    at INTEGER NOT NULL             -- Unix seconds: tokens issued until then are refused
) WITHOUT ROWID;
CREATE TABLE resets (
    principal TEXT PRIMARY KEY      -- whose usage the running edge has to forget
) WITHOUT ROWID;
CREATE TABLE token_uses (
    jti TEXT PRIMARY KEY,
    used INTEGER NOT NULL,          -- answers that a token with so many uses has started
    expires_at INTEGER NOT NULL     -- Unix seconds
) WITHOUT ROWID;
CREATE TABLE seats (
    plan TEXT NOT NULL,
    principal TEXT NOT NULL,
    until INTEGER NOT NULL,         -- Unix seconds at which the seat is free again
    PRIMARY KEY (plan, principal)
) WITHOUT ROWID;
CREATE TABLE plan_usage (
    plan TEXT NOT NULL,
    day INTEGER NOT NULL,           -- as in usage
    tokens INTEGER NOT NULL,        -- of all callers of the plan together
    PRIMARY KEY (plan, day)
) WITHOUT ROWID;
CREATE TABLE plan_reservations (
    chat_id TEXT PRIMARY KEY,       -- one of reservations, whose tokens are those of all callers of the plan besides
    plan TEXT NOT NULL,
    day INTEGER NOT NULL,
    tokens INTEGER NOT NULL
) WITHOUT ROWID;
""",
)
SCHEMA_VERSION = len(_SCHEMA)


def unusable(path: Path, error: sqlite3.Error) -> StoreError:
    return StoreError(
        f"The database {path} cannot be used ({error}). Restore it from a copy, or move it away to start a new one."
    )


def connect(path: Path, *, busy_seconds: float) -> sqlite3.Connection:
    """Open ``path`` in WAL mode, made 0600 and given its schema when new. The caller closes the connection, on the
    same thread.

    ``busy_seconds`` is how long a statement waits for another process's write. Raises StoreError.
    """
    try:
        # SQLite gives its -wal and -shm files mode and owner of this one. A file that is there is not touched: closing
        # it would drop the POSIX locks of this process's other connections to it.
        with contextlib.suppress(FileExistsError):
            make_empty(path)
        connection = sqlite3.connect(path, isolation_level=None, timeout=10.0)
    except (OSError, sqlite3.Error) as error:
        raise StoreError(
            f"The database {path} cannot be opened ({error}). Check the folder's owner and mode."
        ) from None
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        # A crash of the process loses nothing that was committed; a power cut at most the last commits, never the file.
        connection.execute("PRAGMA synchronous = NORMAL")
        _migrate(connection, path)
        connection.execute(f"PRAGMA busy_timeout = {int(busy_seconds * 1000)}")
    except sqlite3.Error as error:
        connection.close()
        raise unusable(path, error) from None
    except StoreError:
        connection.close()
        raise
    return connection


def open_for_admin(path: Path) -> sqlite3.Connection:
    """The edge's database for whoever makes and revokes keys and invites beside it, made when it is not there. The
    caller closes it. Raises StoreError."""
    return connect(path, busy_seconds=_ADMIN_BUSY_SECONDS)


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    if _version(connection) == SCHEMA_VERSION:
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        found = _version(connection)  # another process may have been first
        if found > SCHEMA_VERSION:
            raise StoreError(
                f"The database {path} was written by a newer Hearthlink (schema {found}, known {SCHEMA_VERSION}). "
                "Install that version again, or use another state folder."
            )
        for added in _SCHEMA[found:]:
            for statement in added.split(";\n"):
                connection.execute(statement)
        if found == 0:
            connection.execute("INSERT INTO meta VALUES ('pseudonym_key', ?)", (secrets.token_bytes(32),))
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise


def _version(connection: sqlite3.Connection) -> int:
    return connection.execute("PRAGMA user_version").fetchone()[0]


def pseudonym_key(connection: sqlite3.Connection) -> bytes:
    """The secret that anonymous ids and link ids are made with: kept here so that they outlive a restart."""
    return connection.execute("SELECT value FROM meta WHERE name = 'pseudonym_key'").fetchone()[0]


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Write what the block does whole, or nothing of it. Raises sqlite3.Error."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Be the only edge on database ``path``: its counters live in memory, two of them would each grant the whole quota.

    The lock ends with the process, however that ends. Raises StoreError, and StoreNotYet where there is another edge.
    """
    lock_path = path.with_name(path.name + ".lock")
    try:
        lock = os.open(lock_path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StoreError(
            f"The file {lock_path} cannot be opened ({error}). Check the folder's owner and mode."
        ) from None
    try:
        belongs_to_folder(lock, lock_path.parent)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StoreNotYet(
                f"Another edge is using the database {path}. Stop it first, or give this one a state folder of its own "
                "(HEARTHLINK_STATE).",
                _DRAIN_SECONDS,
            ) from None
        yield
    finally:
        os.close(lock)
