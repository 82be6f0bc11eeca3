"""How far a download is: bars on a terminal, else a line every few seconds. On standard error."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

from hearthlink.models import amounts
from hearthlink.output import moving_terminal, printable, say

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

_LINE_EVERY = 5.0  # seconds


class Meter:
    """``with Meter() as meter``: ``begin`` once all sizes are known, then ``advance`` with what has arrived.

    ``clock`` is in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._bars: Progress | None = None
        self._bar: TaskID | None = None
        self._name = ""
        self._total = 0
        self._done = 0
        self._told = (0.0, 0)  # when the last line was written, and how much was there

    def __enter__(self) -> Meter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def begin(self, name: str, total: int, done: int) -> None:
        """``name`` will take ``total`` bytes, of which ``done`` are here."""
        self._name, self._total, self._done = printable(name), total, done
        self._told = (self._clock(), done)
        if (console := moving_terminal()) is not None:
            self._bars = _bars(console)
            self._bars.start()
            self._bar = self._bars.add_task(self._name, total=total, completed=done)
        elif done:
            say(f"{self._name}: going on from {amounts.size(done)} of {amounts.size(total)}.")
        else:
            say(f"{self._name}: {amounts.size(total)} to load.")

    def advance(self, count: int) -> None:
        """``count`` more bytes are here; fewer when they are negative, because they had to be thrown away."""
        self._done += count
        if self._bars is not None and self._bar is not None:
            self._bars.update(self._bar, completed=self._done)
            return
        now, (then, before) = self._clock(), self._told
        if now - then >= _LINE_EVERY:
            say(self._line((self._done - before) / (now - then)))
            self._told = (now, self._done)

    def note(self, text: str) -> None:
        """A line that stays."""
        say(text, above=self._bars.console if self._bars is not None else None)

    def _line(self, speed: float) -> str:
        percent = 100 * self._done / max(self._total, 1)
        line = f"{self._name}: {amounts.size(self._done)} of {amounts.size(self._total)} ({percent:.0f} %)"
        if speed <= 0:
            return f"{line}, nothing is coming"
        left = amounts.duration((self._total - self._done) / speed)
        return f"{line}, {amounts.size(speed)}/s, {left} left"


def _bars(console: Console) -> Progress:
    """The bars, not started."""
    from rich import progress

    return progress.Progress(
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(bar_width=None),
        progress.DownloadColumn(),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
        console=console,
        transient=True,
        refresh_per_second=4,
    )
