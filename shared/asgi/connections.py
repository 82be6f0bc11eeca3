"""How many connections one caller has open, so that nobody can take them all."""

from __future__ import annotations

from collections.abc import Callable


class Connections:
    """Counts those of the listeners that name it. ``most`` of one caller, None for no limit; it may be set at any time,
    for connections from then on. ``whose`` gives the caller of a peer's address, None for one that has no limit.
    ``refused`` are those that were too many."""

    def __init__(self, most: int | None, whose: Callable[[str], str | None]) -> None:
        self.most = most
        self.whose = whose
        self.refused = 0
        self._open: dict[str, int] = {}

    def __len__(self) -> int:
        """Connections that count for somebody."""
        return sum(self._open.values())

    def enter(self, peer: str) -> str | None:
        """Count a connection from ``peer``; returns for whom, which ``leave`` needs when it closes. Raises
        TooManyConnections, and then counts nothing."""
        caller = self.whose(peer)
        if caller is None:
            return None
        count = self._open.get(caller, 0)
        if self.most is not None and count >= self.most:
            self.refused += 1
            raise TooManyConnections(self.most)
        self._open[caller] = count + 1
        return caller

    def leave(self, caller: str | None) -> None:
        if caller is None:
            return
        if (count := self._open[caller] - 1) > 0:
            self._open[caller] = count
        else:
            del self._open[caller]


class TooManyConnections(Exception):
    """One caller has as many open as ``most`` allows."""

    def __init__(self, most: int) -> None:
        super().__init__(f"{most} connections from this address are open already, the most that this edge allows.")
