"""What a store remembers of callers in memory is bounded."""

from __future__ import annotations

from edge.store.accounts import IDLE_SECONDS, Accounts
from edge.store.gcra import Gcra


def test_rates_of_quiet_callers_are_forgotten() -> None:
    gcra = Gcra()
    for number in range(1000):
        gcra.take(f"caller{number}", 60, now=float(number) / 100)
    gcra.sweep(now=6.0)
    assert 400 < len(gcra) <= 505
    gcra.sweep(now=100.0)
    assert len(gcra) == 0


def test_a_flood_of_callers_is_bounded() -> None:
    gcra = Gcra(max_keys=100)
    for number in range(10_000):
        gcra.take(f"caller{number}", 1, now=0.0)
    assert len(gcra) == 100
    assert gcra.wait("caller9999", 1, now=0.0) == 60.0


def test_idle_accounts_are_forgotten_and_busy_ones_are_not() -> None:
    clock = [1.0]
    accounts = Accounts(lambda principal_id, day: 5, lambda: clock[0])
    busy = accounts.reserve("busy", 1, 100, lifetime=9e9)
    for number in range(1000):
        assert accounts.of(f"caller{number}", 1).used == 5
    clock[0] += IDLE_SECONDS - 1
    accounts.sweep()
    assert len(accounts) == 1001
    clock[0] += 1
    for _ in range(5):  # each does a bounded part
        accounts.sweep()
    assert len(accounts) == 1
    assert accounts.of("busy", 1) is busy.account


def test_accounts_over_the_limit_are_forgotten_before_they_are_idle() -> None:
    accounts = Accounts(lambda principal_id, day: 0, lambda: 1.0, max_accounts=100)
    for number in range(5000):
        accounts.of(f"caller{number}", 1)
    accounts.sweep()
    assert len(accounts) == 100
