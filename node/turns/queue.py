"""Who is next: the principal that was served least, by start-time fair queueing (Goyal, Vin, Cheng 1996).

Each principal has an account of the tokens that it was served. Whoever comes after a pause starts level with the one
who is being served: time away earns nothing, and what was used while nobody else wanted it is no debt. So a principal
that floods the queue is always behind the next one who comes. Among those whose accounts are level, the one who has
waited longest at the front goes first.

Newcomers start low, so a stream of them could keep one out for ever who was served more. Therefore waiting earns
credit: a quarter of what those get who came later and go first. Who waits gets at least a fifth of the lane then.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Generic, Protocol, TypeVar

# Of what those are served who come later and go first.
_CREDIT = 0.25
# Seconds in which half of what somebody was served beyond the others is forgotten while away.
_FORGET_HALF = 60.0
# Principals that are away and were served more than those who wait; past it the one longest away is forgotten.
_AWAY = 1024


class Waits(Protocol):
    """What waits: for whom, and what it is expected to cost in tokens."""

    @property
    def principal(self) -> str: ...
    @property
    def charge(self) -> float: ...


Waiter = TypeVar("Waiter", bound=Waits)


@dataclass(slots=True, eq=False)
class _Account(Generic[Waiter]):
    """``served`` in tokens, running requests at what they are expected to cost. ``front`` numbers the moment since
    which this principal waits without having been served."""

    served: float
    front: int = 0
    credit: float = 0.0
    running: int = 0
    waiting: deque[Waiter] = field(default_factory=deque)

    @property
    def key(self) -> tuple[float, int]:
        return self.served - self.credit, self.front


class FairQueue(Generic[Waiter]):
    """Of one lane. What was taken out with ``pop`` runs until ``settle``; ``clock`` gives seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._accounts: dict[str, _Account[Waiter]] = {}
        self._away: dict[str, tuple[float, float]] = {}  # served, and since when; the one longest away first
        self._level = 0.0
        self._numbers = count()
        self._length = 0

    def __len__(self) -> int:
        return self._length

    @property
    def accounts(self) -> int:
        """Principals that something is remembered of."""
        return len(self._accounts) + len(self._away)

    def has_waiting(self, principal: str) -> bool:
        account = self._accounts.get(principal)
        return account is not None and bool(account.waiting)

    def push(self, waiter: Waiter) -> None:
        account = self._accounts.get(waiter.principal)
        if account is None:
            account = self._accounts[waiter.principal] = _Account(self._recalled(waiter.principal))
        if not account.waiting:
            account.served = max(account.served, self._level)
            account.front = next(self._numbers)
        account.waiting.append(waiter)
        self._length += 1

    def pop(self) -> Waiter:
        """The next one; its charge is on its principal's account. There must be one."""
        account = min(self._backlog(), key=lambda one: one.key)
        waiter = account.waiting.popleft()
        self._length -= 1
        for other in self._backlog():
            if other is not account and other.front < account.front:
                other.credit += waiter.charge * _CREDIT
        self._level = max(self._level, account.key[0])
        account.served += waiter.charge
        account.credit = 0.0
        account.front = next(self._numbers)
        account.running += 1
        return waiter

    def start(self, waiter: Waits) -> None:
        """``push`` and ``pop`` of one that comes while nobody waits."""
        account = self._accounts.get(waiter.principal)
        if account is None:
            account = self._accounts[waiter.principal] = _Account(self._recalled(waiter.principal))
        self._level = max(account.served, self._level)
        account.served = self._level + waiter.charge
        account.front = next(self._numbers)
        account.running += 1

    def remove(self, waiter: Waiter) -> bool:
        """It leaves; those of the same principal behind it keep what it had waited for. False when it is not here."""
        account = self._accounts.get(waiter.principal)
        if account is None or waiter not in account.waiting:
            return False
        account.waiting.remove(waiter)
        self._length -= 1
        self._close(waiter.principal, account)
        return True

    def settle(self, waiter: Waits, spent: float) -> None:
        """One that was taken out is over, and cost ``spent`` tokens."""
        account = self._accounts[waiter.principal]
        account.served += spent - waiter.charge
        account.running -= 1
        if account.waiting:
            account.served = max(account.served, self._level)
        self._close(waiter.principal, account)

    def order(self) -> list[Waiter]:
        """All who wait, the next one first, if nobody else came."""
        keyed = [(key, waiter) for account in self._backlog() for key, waiter in _projected(account)]
        keyed.sort(key=lambda pair: pair[0])
        return [waiter for _, waiter in keyed]

    def place(self, waiter: Waiter) -> int:
        """Where ``waiter`` stands in ``order()``, from 1; faster than the order."""
        own = next(key for key, one in _projected(self._accounts[waiter.principal]) if one is waiter)
        place = 1
        for account in self._backlog():
            for key, _ in _projected(account):
                if key >= own:
                    break
                place += 1
        return place

    def _backlog(self) -> Iterator[_Account[Waiter]]:
        return (account for account in self._accounts.values() if account.waiting)

    def _close(self, principal: str, account: _Account[Waiter]) -> None:
        if account.running or account.waiting:
            return
        del self._accounts[principal]
        if not self._accounts:  # nobody wants anything: all begin again alike
            self._away.clear()
            self._level = 0.0
        elif account.served > self._level:
            self._away[principal] = account.served, self._clock()
            if len(self._away) > _AWAY:
                del self._away[next(iter(self._away))]

    def _recalled(self, principal: str) -> float:
        served, since = self._away.pop(principal, (0.0, 0.0))
        ahead = max(0.0, served - self._level)
        return self._level + ahead * 0.5 ** ((self._clock() - since) / _FORGET_HALF)


def _projected(account: _Account[Waiter]) -> Iterator[tuple[tuple[float, int, int], Waiter]]:
    """Each of an account's waiting ones with the key that it will have when it is at the front."""
    served, front = account.key
    for number, waiter in enumerate(account.waiting):
        yield (served, front, number), waiter
        served += waiter.charge + (account.credit if number == 0 else 0.0)
