"""What must outlive the process, written together: used tokens, open reservations, revoked tokens.

Changes gather in memory and leave in one transaction. A settlement (tokens used, reservation gone) is never split over
two, so that after a crash a chat is counted by its settlement or by its reservation, not by both.
"""

from __future__ import annotations

import sqlite3


class Journal:
    """Writer of one database; the only one of its usage and reservations. Does not close the connection."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._used: dict[tuple[str, int], int] = {}  # (principal, day) -> tokens to add
        self._opened: dict[str, tuple[str, int, int]] = {}  # chat id -> (principal, day, tokens), not written yet
        self._closed: set[str] = set()  # chat ids whose written reservation has to go
        self._revoked: dict[str, int] = {}  # jti -> Unix seconds

    @property
    def dirty(self) -> bool:
        return bool(self._used or self._opened or self._closed or self._revoked)

    def reserve(self, chat_id: str, principal_id: str, day: int, tokens: int) -> None:
        self._opened[chat_id] = (principal_id, day, tokens)

    def settle(self, chat_id: str, principal_id: str, day: int, tokens: int) -> None:
        """Count ``tokens`` and drop the reservation; one that was never written costs no row."""
        if self._opened.pop(chat_id, None) is None:
            self._closed.add(chat_id)
        if tokens:
            key = (principal_id, day)
            self._used[key] = self._used.get(key, 0) + tokens

    def revoke(self, jti: str, expires_at: int) -> None:
        self._revoked[jti] = expires_at

    def used(self, principal_id: str, day: int) -> int:
        """Tokens of ``principal_id`` on ``day``, written and not yet written."""
        query = "SELECT tokens FROM usage WHERE principal = ? AND day = ?"
        row = self._connection.execute(query, (principal_id, day)).fetchone()
        return (row[0] if row else 0) + self._used.get((principal_id, day), 0)

    def revocations(self, now: float) -> dict[str, int]:
        """All revoked tokens that have not expired by ``now`` (Unix seconds): jti -> end."""
        rows = self._connection.execute("SELECT jti, expires_at FROM revocations WHERE expires_at > ?", (int(now),))
        return dict(rows.fetchall()) | self._revoked

    def commit(self) -> None:
        """Write all changes in one transaction. Raises sqlite3.Error and then keeps them for the next time."""
        run = self._connection.executemany
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            if self._opened:
                run("INSERT INTO reservations VALUES (?, ?, ?, ?)", [(key, *row) for key, row in self._opened.items()])
            if self._closed:
                run("DELETE FROM reservations WHERE chat_id = ?", [(chat_id,) for chat_id in self._closed])
            if self._used:
                run(
                    "INSERT INTO usage VALUES (?, ?, ?) "
                    "ON CONFLICT (principal, day) DO UPDATE SET tokens = tokens + excluded.tokens",
                    [(*key, tokens) for key, tokens in self._used.items()],
                )
            if self._revoked:
                run("INSERT OR IGNORE INTO revocations VALUES (?, ?)", list(self._revoked.items()))
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise
        for changes in (self._opened, self._closed, self._used, self._revoked):
            changes.clear()

    def recover(self) -> int:
        """Settle the reservations that a dead process left at their estimate, once; returns how many there were."""
        return self._transaction(
            "INSERT INTO usage SELECT principal, day, SUM(tokens) FROM reservations WHERE true GROUP BY principal, day "
            "ON CONFLICT (principal, day) DO UPDATE SET tokens = tokens + excluded.tokens",
            "DELETE FROM reservations",
        )

    def forget(self, before_day: int, now: float) -> None:
        """Drop usage of days before ``before_day`` and revocations that ended by ``now`` (Unix seconds)."""
        self._transaction(
            f"DELETE FROM usage WHERE day < {int(before_day)}",
            f"DELETE FROM revocations WHERE expires_at <= {int(now)}",
        )

    def _transaction(self, *statements: str) -> int:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            changed = [self._connection.execute(statement).rowcount for statement in statements]
            self._connection.execute("COMMIT")
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        return changed[-1]
