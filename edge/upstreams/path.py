"""By which path packets reach a machine: a steady answer from samples that flap."""

from __future__ import annotations

from shared.tailscale.nodes import Path

# Seconds. When a path changes, samples contradict each other for some 6.5 s (tailnet.md §6), the time for which
# tailscaled trusts a direct one.
AGREE_AFTER = 3.0


class SteadyPath:
    """``path`` is what two samples in a row say that lie at least ``AGREE_AFTER`` apart."""

    def __init__(self) -> None:
        self.path = Path.UNKNOWN
        self._candidate: Path | None = None
        self._since = 0.0

    @property
    def undecided(self) -> bool:
        """Whether one more sample soon would tell something."""
        return self._candidate is not None or self.path is Path.UNKNOWN

    def begin(self, path: Path) -> None:
        """What is certain from one sample; once it is known, only ``take`` changes it."""
        if self.path is Path.UNKNOWN:
            self.path = path

    def take(self, sample: Path, now: float) -> bool:
        """Whether ``path`` is another one with this ``sample`` of loop time ``now``."""
        if sample is Path.UNKNOWN:  # nothing was sent for a while, which says nothing
            return False
        if sample is self.path:
            self._candidate = None
            return False
        if sample is not self._candidate:
            self._candidate, self._since = sample, now
            return False
        if now - self._since < AGREE_AFTER:
            return False
        self.path, self._candidate = sample, None
        return True
