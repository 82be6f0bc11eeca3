"""When to try again what may go well the next time, how long to wait before, and when to stop."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence

from hearthlink.models import amounts
from hearthlink.output import Failure, Status

# Seconds before each further try; a flaky network is back by then, and a person does not wait longer for a dead one.
PAUSES: Sequence[float] = (1.0, 2.0, 4.0, 8.0, 15.0)
# A hub that asks for more than this is asked again by the person, not by a process that sleeps.
LONGEST_PAUSE = 60.0
# What a try must have brought to count as going forward: tries are bounded by the size of the file then.
PROGRESS_BYTES = 1 << 20
_JITTER = 0.25  # many machines that were cut at once do not come back at once


class Passing(Exception):
    """Something that trying again may mend. ``str(error)`` is a sentence; ``pause`` is what the server asked for, in
    seconds."""

    def __init__(self, message: str, *, pause: float | None = None) -> None:
        super().__init__(message)
        self.pause = pause


class Patience:
    """The tries of one file. ``note`` tells the person about each pause."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note = note
        self._failed = 0

    def wait(self, trouble: Passing, gained: int = 0) -> None:
        """Wait before the next try; ``gained`` are the bytes that the last one brought. Raises Failure when there have
        been enough."""
        self._failed = 1 if gained >= PROGRESS_BYTES else self._failed + 1
        if self._failed > len(PAUSES):
            raise Failure(f"{trouble} It was tried {self._failed} times.", Status.UNAVAILABLE) from None
        pause = PAUSES[self._failed - 1] * (1 + random.uniform(-_JITTER, _JITTER))
        if trouble.pause is not None:
            if trouble.pause > LONGEST_PAUSE:
                raise Failure(
                    f"{trouble} It asks to wait {amounts.duration(trouble.pause)}: try again then.", Status.UNAVAILABLE
                ) from None
            pause = max(pause, trouble.pause)
        self._note(f"{trouble} Trying again in {amounts.duration(pause)}.")
        time.sleep(pause)
