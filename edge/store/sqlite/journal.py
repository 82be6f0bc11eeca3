"""What must outlive the process, written together: used tokens, open reservations, revoked tokens, seats, uses.

Changes gather in memory and leave in one transaction. A settlement (tokens used, reservation gone) is never split over
two, so that after a crash a chat is counted by its settlement or by its reservation, not by both.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence

from edge.store.accounts import Reservation
from edge.store.sqlite.database import transaction
from shared.signing_keys import LONGEST_TOKEN


class Journal:
    """Writer of one database; the only one of all but its revocations. Does not close the connection."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._used: dict[tuple[str, int], int] = {}  # (principal, day) -> tokens to add
        self._used_together: dict[tuple[str, int], int] = {}  # (plan, day) -> tokens to add
        self._opened: dict[str, Reservation] = {}  # by chat id, not written yet
        self._closed: set[str] = set()  # chat ids whose written reservation has to go
        self._revoked: dict[str, int] = {}  # jti -> Unix seconds
        self._seats: dict[tuple[str, str], int] = {}  # (plan, principal) -> Unix seconds
        self._uses: dict[str, tuple[int, int]] = {}  # jti -> (used, Unix seconds)
        self._pending = (
            self._opened, self._closed, self._used, self._used_together, self._revoked, self._seats, self._uses
        )  # fmt: skip

    @property
    def dirty(self) -> bool:
        return any(self._pending)

    def reserve(self, chat_id: str, reservation: Reservation) -> None:
        self._opened[chat_id] = reservation

    def settle(self, chat_id: str, reservation: Reservation, tokens: int) -> None:
        """Count ``tokens`` and drop the reservation; one that was never written costs no row."""
        if self._opened.pop(chat_id, None) is None:
            self._closed.add(chat_id)
        if tokens:
            key = (reservation.principal_id, reservation.day)
            self._used[key] = self._used.get(key, 0) + tokens
            if reservation.plan is not None:
                key = (reservation.plan, reservation.day)
                self._used_together[key] = self._used_together.get(key, 0) + tokens

    def revoke(self, jti: str, expires_at: int) -> None:
        self._revoked[jti] = expires_at

    def keep_seat(self, plan: str, principal_id: str, until: int) -> None:
        self._seats[plan, principal_id] = until

    def keep_use(self, jti: str, used: int, expires_at: int) -> None:
        self._uses[jti] = (used, expires_at)

    def used(self, principal_id: str, day: int) -> int:
        """Tokens of ``principal_id`` on ``day``, written and not yet written."""
        query = "SELECT tokens FROM usage WHERE principal = ? AND day = ?"
        return self._number(query, (principal_id, day)) + self._used.get((principal_id, day), 0)

    def used_together(self, plan: str, day: int) -> int:
        """Tokens of all callers of ``plan`` on ``day``, written and not yet written."""
        query = "SELECT tokens FROM plan_usage WHERE plan = ? AND day = ?"
        return self._number(query, (plan, day)) + self._used_together.get((plan, day), 0)

    def revocations(self, now: float) -> dict[str, int]:
        """All revoked tokens that have not expired by ``now`` (Unix seconds): jti -> end."""
        rows = self._connection.execute("SELECT jti, expires_at FROM revocations WHERE expires_at > ?", (int(now),))
        return dict(rows.fetchall()) | self._revoked

    def seats(self, now: float) -> list[tuple[str, str, int]]:
        """Plan, principal and end of all seats that are taken at ``now`` (Unix seconds)."""
        return self._connection.execute(
            "SELECT plan, principal, until FROM seats WHERE until > ?", (int(now),)
        ).fetchall()

    def uses(self, now: float) -> dict[str, int]:
        """jti -> answers started, of the tokens that have not expired by ``now`` (Unix seconds)."""
        rows = self._connection.execute("SELECT jti, used FROM token_uses WHERE expires_at > ?", (int(now),))
        return dict(rows.fetchall()) | {jti: used for jti, (used, _) in self._uses.items()}

    def commit(self) -> None:
        """Write all changes in one transaction. Raises sqlite3.Error and then keeps them for the next time."""
        with transaction(self._connection):
            for statement, rows in self._changes():
                if rows:
                    self._connection.executemany(statement, rows)
        for changes in self._pending:
            changes.clear()

    def recover(self) -> int:
        """Settle the reservations that a dead process left at their estimate, once; returns how many there were."""
        with transaction(self._connection):
            self._count_reserved("plan_reservations", "plan_usage", "plan")
            return self._count_reserved("reservations", "usage", "principal")

    def take_resets(self, day: int) -> list[str]:
        """The callers whose usage of ``day`` the owner reset; if all was committed before, nothing is left of it.
        Raises sqlite3.Error."""
        if not self._connection.execute("SELECT EXISTS (SELECT 1 FROM resets)").fetchone()[0]:
            return []
        with transaction(self._connection):
            reset = [row[0] for row in self._connection.execute("SELECT principal FROM resets")]
            delete = "DELETE FROM usage WHERE principal = ? AND day = ?"
            self._connection.executemany(delete, [(principal_id, day) for principal_id in reset])
            self._connection.execute("DELETE FROM resets")
        return reset

    def forget(self, before_day: int, now: float) -> None:
        """Drop usage of days before ``before_day`` and what ended by ``now`` (Unix seconds)."""
        with transaction(self._connection):
            for table in ("usage", "plan_usage"):
                self._connection.execute(f"DELETE FROM {table} WHERE day < ?", (before_day,))
            for table in ("revocations", "token_uses"):
                self._connection.execute(f"DELETE FROM {table} WHERE expires_at <= ?", (int(now),))
            self._connection.execute("DELETE FROM seats WHERE until <= ?", (int(now),))
            self._connection.execute("DELETE FROM revoked_principals WHERE at <= ?", (int(now) - LONGEST_TOKEN,))

    def _changes(self) -> Iterator[tuple[str, Sequence[tuple[object, ...]]]]:
        """Statements, and the rows to run each with."""
        yield (
            "INSERT INTO reservations VALUES (?, ?, ?, ?)",
            [(chat_id, one.principal_id, one.day, one.tokens) for chat_id, one in self._opened.items()],
        )
        yield (
            "INSERT INTO plan_reservations VALUES (?, ?, ?, ?)",
            [(chat_id, one.plan, one.day, one.tokens) for chat_id, one in self._opened.items() if one.plan is not None],
        )
        for table in ("reservations", "plan_reservations"):
            yield f"DELETE FROM {table} WHERE chat_id = ?", [(chat_id,) for chat_id in self._closed]
        for table, key, used in (("usage", "principal", self._used), ("plan_usage", "plan", self._used_together)):
            yield (
                f"INSERT INTO {table} VALUES (?, ?, ?) "
                f"ON CONFLICT ({key}, day) DO UPDATE SET tokens = tokens + excluded.tokens",
                [(*whose, tokens) for whose, tokens in used.items()],
            )
        yield "INSERT OR IGNORE INTO revocations VALUES (?, ?)", list(self._revoked.items())
        yield "INSERT OR REPLACE INTO seats VALUES (?, ?, ?)", [(*whose, until) for whose, until in self._seats.items()]
        yield "INSERT OR REPLACE INTO token_uses VALUES (?, ?, ?)", [(jti, *row) for jti, row in self._uses.items()]

    def _count_reserved(self, reservations: str, usage: str, whose: str) -> int:
        """Within a transaction; how many there were."""
        self._connection.execute(
            f"INSERT INTO {usage} SELECT {whose}, day, SUM(tokens) FROM {reservations} WHERE true "
            f"GROUP BY {whose}, day ON CONFLICT ({whose}, day) DO UPDATE SET tokens = tokens + excluded.tokens"
        )
        return self._connection.execute(f"DELETE FROM {reservations}").rowcount

    def _number(self, query: str, parameters: tuple[object, ...]) -> int:
        row = self._connection.execute(query, parameters).fetchone()
        return row[0] if row else 0
