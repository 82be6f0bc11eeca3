"""How many inferences to hand at once to a server that batches as many as its memory holds and queues the rest.

Its own queue knows no callers and cannot be told to forget, so what waits is to wait in the node's. The server is not
asked how many it takes, which it does not know: it is watched.
"""

from __future__ import annotations

from dataclasses import dataclass

MOST = 256  # where vLLM stops by default
FULL = 0.9  # of the memory for contexts: with less left, a running one may be thrown out to be read again


@dataclass(frozen=True, slots=True)
class Load:
    """What a server says of itself. ``waiting``: requests that it has no room for, ``queued``: all that wait, for
    whatever; ``memory``: the share in use of what holds contexts; ``progress``: any count that grows while it
    computes."""

    running: int = 0
    waiting: int = 0
    memory: float = 0.0
    progress: float = 0.0
    queued: int = 0


class Pacing:
    """Begins with ``slots``; no more than ``most``."""

    def __init__(self, slots: int, most: int = MOST) -> None:
        self._most = most
        self.slots = min(slots, most)

    def saw(self, load: Load) -> int:
        """The slots from now on: while requests wait for room, as many as run, but no less than half, because one look
        may fall into the moment between two batches; while all are in use and there is room, a quarter more."""
        if load.waiting:
            self.slots = max(1, min(self.slots, max(load.running, self.slots // 2)))
        elif load.running >= self.slots and load.memory < FULL:
            self.slots = min(self._most, self.slots + max(1, self.slots // 4))
        return self.slots


class Standstill:
    """Notices a server that has work and does none: vLLM's scheduler can stop while /health is 200 (vllm #53130)."""

    def __init__(self) -> None:
        self._last = Load()
        self._since: float | None = None

    def seconds(self, load: Load, now: float) -> float | None:
        """For how long requests have waited without anything moving; None while something does. ``now``: monotonic."""
        stuck = load.queued > 0 and load == self._last
        self._last = load
        if not stuck:
            self._since = None
            return None
        self._since = now if self._since is None else self._since
        return now - self._since
