"""The store of one edge process on SQLite: decisions in memory, one commit every 50 ms.

    loop thread    every call below; the commit task, which writes what changed and sees what other processes changed
    other thread   only the checkpoint of the write-ahead log, because it waits for the disk

After a crash at most the last 100 ms of usage are forgotten, and answers that were running count at their estimate.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import Callable, Iterable
from typing import Any

from loguru import logger

from edge.plans import Plan
from edge.principals import Principal, day_of
from edge.store import refusals
from edge.store.accounts import Reservation
from edge.store.ledger import Cost, Grant, bounded, revocable
from edge.store.limits import Limits
from edge.store.records import Records
from edge.store.seats import Seats
from edge.store.sqlite import records
from edge.store.sqlite.database import connect, exclusive, pseudonym_key, unusable
from edge.store.sqlite.invites import Invites
from edge.store.sqlite.journal import Journal
from edge.store.sqlite.write_ahead_log import WriteAheadLog
from edge.store.uses import TokenUses
from shared.contract.errors import ApiError
from shared.contract.usage import Usage
from shared.state import StateDir, StateError

# Half of what a crash may forget, so that one commit may fail and still be in time.
COMMIT_SECONDS = 0.05
# Another process's change is promised within 1 s.
POLL_SECONDS = 0.25
# Nothing is served while the file is opened and closed, so these may wait as long as the command line does.
_PATIENT_BUSY_SECONDS = 5.0
# The loop thread waits this long for the command line's commit, then tries again at the next tick.
_BUSY_SECONDS = 0.01
# At 20 commits a second the write-ahead log is some 5 MB by then.
_CHECKPOINT_SECONDS = 10.0
# A commit that fails for this long is a fault and not the command line writing.
_FAILING_SECONDS = 1.0
# Usage of past days and invites that ended are kept for the owner to look at, five weeks of them.
_KEEP_DAYS = 35


class SQLiteStore:
    """``store.Store`` of one edge process: the database and the signing keys of ``state``, which no other edge may have
    open. Limits as ``Limits`` says. ``now`` gives Unix seconds, ``monotonic`` seconds."""

    def __init__(
        self,
        state: StateDir,
        *,
        requests_per_minute_per_ip: int | None,
        abandoned_after: float = 3600.0,
        now: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._state = state
        self._per_ip = requests_per_minute_per_ip
        self.abandoned_after = abandoned_after
        self._now = now
        self._monotonic = monotonic
        self._reservations: dict[str, Reservation] = {}  # by chat id, oldest first
        self._problem: str | None = None
        self._failing_since: float | None = None
        self._keys_refused: tuple[int, int] | None = None  # version of the signing keys that could not be read
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Open the file, settle what a dead process left, start the commit task. Raises StoreError, and StateError for
        the signing keys."""
        self._path = self._state.database
        self._keys_version = self._state.signing_keys_version()
        self._records = Records(self._state.signing_keys(), self._now)
        with contextlib.ExitStack() as stack:
            stack.enter_context(exclusive(self._path))
            self._connection = connect(self._path, busy_seconds=_PATIENT_BUSY_SECONDS)
            stack.callback(self._connection.close)
            try:
                self._begin()
            except sqlite3.Error as error:
                raise unusable(self._path, error) from None
            self._resources = stack.pop_all()
        self._task = asyncio.create_task(self._keep(), name="store: commits")

    def _begin(self) -> None:
        now, journal = self._now(), Journal(self._connection)
        self._journal = journal
        journal.take_resets(day_of(now))
        if count := journal.recover():
            logger.warning("{} answers ran when the last edge process died: counted at their estimate", count)
        self._limits = Limits(self._per_ip, journal.used, journal.used_together, self._now, self._monotonic)
        self._seats = Seats(self._now, journal.keep_seat)
        self._seats.load(journal.seats(now))
        self._uses = TokenUses(journal.keep_use)
        self._pseudonym_key = pseudonym_key(self._connection)
        self._invites = Invites(
            self._connection, self._pseudonym_key, self._now, self._monotonic, lambda: self._records.principals
        )
        self._new_day()
        self._data_version = 0
        self._see_other_processes()
        self._wait_for_others(_BUSY_SECONDS)
        self._log = WriteAheadLog(self._path, self._connection)

    async def close(self) -> None:
        """Write what is left and release the file; chats still open are settled at the next start. Idempotent.

        Raises sqlite3.Error when the last commit fails; the file is released all the same.
        """
        task, self._task = self._task, None
        if task is None:
            return
        with self._resources:
            try:
                task.cancel()
                await asyncio.wait([task])
                await self._log.close()
            finally:
                self._wait_for_others(_PATIENT_BUSY_SECONDS)
                if self._journal.dirty:
                    self._journal.commit()

    def _wait_for_others(self, seconds: float) -> None:
        self._connection.execute(f"PRAGMA busy_timeout = {int(seconds * 1000)}")

    # Store and Ledger: what each promises stands there.

    @property
    def records(self) -> Records:
        return self._records

    @property
    def pseudonym_key(self) -> bytes:
        return self._pseudonym_key

    @property
    def problem(self) -> str | None:
        return self._problem

    @property
    def answering(self) -> bool:
        return True  # the counts are in memory

    def lookup(self, text: str) -> Principal:
        return self._records.keys.lookup(text)

    async def enter_invite(self, text: str, ip: str, origin: str | None) -> Principal:
        return await self._invites.enter(text, ip, origin)

    async def renew_guest(self, guest: Principal) -> Principal:
        return self._invites.renew(guest)

    def refusal(self, ip: str | None, principal: Principal, plan: Plan) -> ApiError | None:
        return self._refusal(ip, principal, plan, 1)

    async def admit(self, ip: str | None, principal: Principal, plan: Plan, cost: Cost, chat_id: str) -> Grant:
        if chat_id in self._reservations:
            raise ValueError("This chat id was admitted already.")
        tokens = bounded(cost.tokens)
        if (error := self._refusal(ip, principal, plan, tokens)) is not None:
            raise error
        self._limits.take_request(ip, principal.id, plan)
        self._seats.take(principal.id, plan)
        self._uses.take(principal)
        reservation = self._limits.reserve(principal.id, plan, tokens, self.abandoned_after)
        self._reservations[chat_id] = reservation
        self._journal.reserve(chat_id, reservation)
        return self._limits.grant(ip, principal.id, plan)

    async def settle(self, chat_id: str, usage: Usage | None) -> bool:
        return self._settle(chat_id, 0 if usage is None else bounded(usage.total_tokens))

    async def charge_request(self, ip: str | None, principal: Principal, plan: Plan) -> Grant:
        if (error := self._refusal(ip, principal, plan)) is not None:
            raise error
        self._limits.take_request(ip, principal.id, plan)
        self._seats.take(principal.id, plan)
        return self._limits.grant(ip, principal.id, plan)

    def revoked(self, principal: Principal) -> bool:
        return self._records.revoked(principal)

    async def revoke(self, principal: Principal) -> None:
        jti, end = revocable(principal)
        self._records.tokens[jti] = end
        self._journal.revoke(jti, end)

    async def usage_today(self, principal: Principal, plan: Plan) -> dict[str, Any]:
        return self._limits.usage_today(principal.id, plan)

    def _refusal(self, ip: str | None, principal: Principal, plan: Plan, tokens: int | None = None) -> ApiError | None:
        """Why a request is refused; with ``tokens`` one that starts an answer of that many."""
        if self.revoked(principal):
            return refusals.token_revoked()
        error = self._limits.rate_refusal(ip, principal.id, plan) or self._seats.refusal(principal.id, plan)
        if error is None and tokens is not None:
            error = self._uses.refusal(principal) or self._limits.load_refusal(principal.id, plan, tokens)
        if error is not None and error.status == 429:
            error.extra_headers += self._limits.grant(ip, principal.id, plan).headers()
        return error

    def _settle(self, chat_id: str, tokens: int) -> bool:
        reservation = self._reservations.pop(chat_id, None)
        if reservation is None:
            return False
        self._limits.settle(reservation, tokens)
        self._journal.settle(chat_id, reservation, tokens)
        return True

    # The commit task

    async def _keep(self) -> None:
        loop = asyncio.get_running_loop()
        upkeep_at, checkpoint_at = loop.time(), loop.time() + _CHECKPOINT_SECONDS
        while True:
            await asyncio.sleep(COMMIT_SECONDS)
            now = loop.time()
            failure = _first_failure((self._commit, *(self._upkeep if now >= upkeep_at else ())))
            if failure is None and now >= upkeep_at:  # else at the next commit, so that a lasting failure is told
                upkeep_at = now + POLL_SECONDS
            if failure is None and now >= checkpoint_at:
                failure = _first_failure((self._log.shorten,))
                checkpoint_at = now + (_CHECKPOINT_SECONDS if failure is None else 0.0)
            self._note(failure, now)

    def _commit(self) -> None:
        if self._journal.dirty:
            self._journal.commit()

    @property
    def _upkeep(self) -> tuple[Callable[[], None], ...]:
        """What the owner decided comes first, and none waits for another: a full disk, say, stops no revocation."""
        return (
            self._see_other_processes,
            self._see_signing_keys,
            self._limits.sweep,
            self._invites.sweep,
            self._settle_abandoned,
            self._see_the_day,
        )

    def _settle_abandoned(self) -> None:
        while self._reservations and self._limits.abandoned(next(iter(self._reservations.values()))):
            chat_id, reservation = next(iter(self._reservations.items()))
            self._settle(chat_id, reservation.tokens)

    def _see_the_day(self) -> None:
        if day_of(self._now()) != self._today:
            self._new_day()

    def _new_day(self) -> None:
        now = self._now()
        self._journal.forget(day_of(now) - _KEEP_DAYS, now)
        self._invites.forget(_KEEP_DAYS)
        self._records.tokens = self._journal.revocations(now)
        self._uses.load(self._journal.uses(now))
        self._today = day_of(now)

    def _see_other_processes(self) -> None:
        """Read what the owner decides again when another connection has written to the file."""
        version = self._connection.execute("PRAGMA data_version").fetchone()[0]
        if version == self._data_version:
            return
        records.load(self._connection, self._records)
        self._records.tokens = self._journal.revocations(self._now())
        if self._journal.dirty:
            return  # what could not be written yet is no usage that a reset can take away: again at the next look
        for principal_id in self._journal.take_resets(day_of(self._now())):
            self._limits.forget_used(principal_id)
        self._data_version = version

    def _see_signing_keys(self) -> None:
        version = self._state.signing_keys_version()
        if version == self._keys_version:
            return
        try:
            keys = self._state.signing_keys(patience=0)
        except StateError as error:
            if version != self._keys_refused:
                logger.error("Tokens go on with the signing keys as they were: {}", error)
            self._keys_refused = version
            return
        self._keys_version, self._keys_refused = version, None
        if keys != self._records.signing_keys:
            self._records.signing_keys = keys

    def _note(self, error: Exception | None, now: float) -> None:
        """Say once that commits fail, when they have for a second, and once that they work again."""
        if error is None:
            if self._problem is not None:
                logger.info("The database {} can be written again", self._path)
            self._problem, self._failing_since = None, None
        elif self._failing_since is None:
            self._failing_since = now  # the command line may just be writing
        elif self._problem is None and now - self._failing_since >= _FAILING_SECONDS:
            self._problem = f"The database {self._path} cannot be kept ({error}): check the disk's space and health."
            logger.error("{} Limits go on in memory; a crash now would forget usage", self._problem)


def _first_failure(works: Iterable[Callable[[], None]]) -> Exception | None:
    """Do all of them; the error of the first that fails. Whatever it was: usage that stops being written would go
    unnoticed."""
    failure: Exception | None = None
    for work in works:
        try:
            work()
        except Exception as error:
            failure = failure or error
    return failure
