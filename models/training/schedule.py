"""How long training takes and how fast it learns on the way."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

_WARM_UP = 60  # steps
_DECAY_FROM = 0.3  # share of the time after which the rate falls in a straight line to 0
_LONG_FROM = 0.8  # share of the time after which rows are long


@dataclass(slots=True)
class Schedule:
    """Goes by the clock, so that the rate has come down to 0 when ``seconds`` are over on any machine, however many
    steps it made."""

    seconds: float
    _began: float = field(default_factory=time.monotonic)

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self._began

    @property
    def share(self) -> float:
        """Of the time that has passed, 0 to 1."""
        return min(1.0, self.elapsed / self.seconds)

    @property
    def over(self) -> bool:
        return self.share >= 1.0

    @property
    def long_rows(self) -> bool:
        return self.share >= _LONG_FROM

    def rate(self, step: int) -> float:
        """Of the full learning rate, for ``step`` counted from 1."""
        return min(1.0, step / _WARM_UP) * min(1.0, (1.0 - self.share) / (1.0 - _DECAY_FROM))
