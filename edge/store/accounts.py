"""Counters of callers in memory: tokens used and reserved today, answers running. No I/O but the loader it is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

# A caller who was quiet this long is read from the database when it comes back.
IDLE_SECONDS = 120.0
# About 30 MB. Callers without a running answer are forgotten past it, the least recent first.
MAX_ACCOUNTS = 100_000
# Bounds the work of one sweep, which runs between requests.
_SWEEP_STEPS = 256


class Account:
    """One caller on one day. ``streams`` are all its running answers, ``reserved`` the tokens of those of ``day``."""

    __slots__ = ("_reserved", "day", "seen", "streams", "used")

    def __init__(self, day: int, used: int, seen: float) -> None:
        self.day = day
        self.used = used
        self.streams = 0
        self.seen = seen  # monotonic seconds of the last reservation, or of the first look
        # By day: where the clock is set back over midnight, yesterday's answers may still run.
        self._reserved: dict[int, int] = {}

    @property
    def reserved(self) -> int:
        return self._reserved.get(self.day, 0)

    def reserve(self, day: int, tokens: int) -> None:
        """Give back what was reserved with less than 0."""
        held = self._reserved.get(day, 0) + tokens
        if held > 0:
            self._reserved[day] = held
        else:
            self._reserved.pop(day, None)


@dataclass(frozen=True, slots=True)
class Reservation:
    """What one running answer holds, and when (monotonic seconds) it counts as abandoned. ``together`` is the account
    of all callers of ``plan``, where they share a quota; else both are None."""

    account: Account
    principal_id: str
    day: int
    tokens: int
    deadline: float
    together: Account | None = None
    plan: str | None = None


class Accounts:
    """Accounts by principal id. ``load(principal_id, day)`` gives the tokens used so far, committed or not;
    ``monotonic`` gives seconds."""

    def __init__(
        self, load: Callable[[str, int], int], monotonic: Callable[[], float], max_accounts: int = MAX_ACCOUNTS
    ) -> None:
        self._load = load
        self._monotonic = monotonic
        self._max_accounts = max_accounts
        self._accounts: dict[str, Account] = {}  # in order of ``seen``, but for busy ones that were swept over

    def __len__(self) -> int:
        return len(self._accounts)

    def of(self, principal_id: str, day: int) -> Account:
        account = self._accounts.get(principal_id)
        if account is None:
            account = self._accounts[principal_id] = Account(day, self._load(principal_id, day), self._monotonic())
        elif account.day != day:
            account.day, account.used = day, self._load(principal_id, day)
        return account

    def reserve(self, principal_id: str, day: int, tokens: int, lifetime: float) -> Reservation:
        """Take one stream and ``tokens`` for ``lifetime`` seconds at most."""
        account = self.of(principal_id, day)
        account.streams += 1
        account.reserve(day, tokens)
        account.seen = self._monotonic()
        self._accounts[principal_id] = self._accounts.pop(principal_id)
        return Reservation(account, principal_id, day, tokens, account.seen + lifetime)

    def settle(self, reservation: Reservation, tokens: int) -> None:
        """Give the stream back and count ``tokens`` in place of what was reserved."""
        account = reservation.account
        account.streams -= 1
        account.reserve(reservation.day, -reservation.tokens)
        if account.day == reservation.day:
            account.used += tokens

    def forget_used(self, principal_id: str) -> None:
        """As if the caller had used nothing today; what its running answers reserved stays."""
        if (account := self._accounts.get(principal_id)) is not None:
            account.used = 0

    def sweep(self) -> None:
        """Forget some callers who have been idle, and so many more that the limit holds."""
        now = self._monotonic()
        for _ in range(min(max(_SWEEP_STEPS, len(self) - self._max_accounts), len(self))):
            principal_id = next(iter(self._accounts))
            account = self._accounts[principal_id]
            if now - account.seen < IDLE_SECONDS and len(self) <= self._max_accounts:
                return
            del self._accounts[principal_id]
            if account.streams:
                self._accounts[principal_id] = account  # its turn comes again
