"""Request rates by GCRA (the generic cell rate algorithm, ITU-T I.371): one number per caller, no window to game.

    arrival    when the caller's bucket will be empty again; each request moves it on by 60 s / limit
    allowed    while it lies at most 60 s - 60 s / limit ahead, so a full minute's worth may come at once

A caller whose arrival has passed is like one never seen and is forgotten.
"""

from __future__ import annotations

PERIOD_SECONDS = 60.0
# Sums of 60/limit drift by parts of a nanosecond; without a margin the last request of a burst would be refused.
_MARGIN_SECONDS = 1e-6
# About 20 MB of keys. Past it the least recent is forgotten: a flood of addresses must not cost more than this.
MAX_KEYS = 100_000


class Gcra:
    """Rates of many keys. ``now`` is monotonic seconds; ``per_minute`` at least 1 and may differ from call to call."""

    def __init__(self, max_keys: int = MAX_KEYS) -> None:
        # In order of the last take. No arrival lies over a minute past its last take, so the stale ones come first.
        self._arrivals: dict[str, float] = {}
        self._max_keys = max_keys

    def __len__(self) -> int:
        return len(self._arrivals)

    def wait(self, key: str, per_minute: int, now: float) -> float:
        """Seconds until ``key`` may send one more, 0.0 when it may now. Takes nothing."""
        over = self._arrivals.get(key, 0.0) - now - PERIOD_SECONDS + PERIOD_SECONDS / per_minute
        return over if over > _MARGIN_SECONDS else 0.0

    def take(self, key: str, per_minute: int, now: float) -> None:
        """Count one request of ``key``, allowed or not."""
        arrival = self._arrivals.pop(key, now)
        self._arrivals[key] = (arrival if arrival > now else now) + PERIOD_SECONDS / per_minute
        if len(self._arrivals) > self._max_keys:
            del self._arrivals[next(iter(self._arrivals))]

    def standing(self, key: str, per_minute: int, now: float) -> tuple[int, float]:
        """(requests that may come at once, seconds until all of them may)."""
        ahead = max(0.0, self._arrivals.get(key, 0.0) - now)
        return max(0, int((PERIOD_SECONDS - ahead + _MARGIN_SECONDS) * per_minute / PERIOD_SECONDS)), ahead

    def forget(self, key: str) -> None:
        """As if ``key`` had never sent anything."""
        self._arrivals.pop(key, None)

    def sweep(self, now: float) -> None:
        """Forget keys that are as if never seen. Costs what it removes."""
        stale = []
        for key, arrival in self._arrivals.items():
            if arrival > now:
                break
            stale.append(key)
        for key in stale:
            del self._arrivals[key]
