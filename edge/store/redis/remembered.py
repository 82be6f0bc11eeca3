"""Refusals that hold for a while, known to this process: a flood of what is refused does not reach the server."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass

from edge.store.ledger import Grant
from shared.contract.errors import ApiError

# About 10 MB. Past it the oldest is forgotten, and the server asked again.
_MOST = 20_000


@dataclass(frozen=True, slots=True)
class _Refusal:
    until: float
    error: Callable[[float], ApiError]
    grant: Grant


class Remembered:
    """Refusals by whom and what they are about. ``monotonic`` gives seconds."""

    def __init__(self, monotonic: Callable[[], float], most: int = _MOST) -> None:
        self._monotonic = monotonic
        self._most = most
        self._refusals: dict[Hashable, _Refusal] = {}

    def __len__(self) -> int:
        return len(self._refusals)

    def keep(self, whom: Hashable, seconds: float, error: Callable[[float], ApiError], grant: Grant) -> None:
        """For ``seconds`` from now ``whom`` is refused; ``error`` makes it, given the seconds that are left."""
        self._refusals.pop(whom, None)
        self._refusals[whom] = _Refusal(self._monotonic() + seconds, error, grant)
        if len(self._refusals) > self._most:
            del self._refusals[next(iter(self._refusals))]

    def find(self, whom: Hashable) -> ApiError | None:
        refusal = self._refusals.get(whom)
        if refusal is None:
            return None
        left = refusal.until - self._monotonic()
        if left <= 0:
            del self._refusals[whom]
            return None
        error = refusal.error(left)
        if error.status == 429:
            error.extra_headers += refusal.grant.headers()
        return error

    def forget(self, whom: Hashable) -> None:
        self._refusals.pop(whom, None)

    def clear(self) -> None:
        self._refusals.clear()

    def sweep(self) -> None:
        """Forget what is over. Costs what is there, so it is for once in a while."""
        now = self._monotonic()
        for whom in [whom for whom, refusal in self._refusals.items() if refusal.until <= now]:
            del self._refusals[whom]
