"""How far the load of a model is: a bar on a terminal, else a line every few seconds. On standard error."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

from hearthlink.output import moving_terminal, printable, say

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_LINE_EVERY = 5.0  # seconds


class LoadBar:
    """``with LoadBar() as bar``; ``clock`` is in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._bars: Progress | None = None
        self._bar: TaskID | None = None
        self._model = ""
        self._told_at = 0.0

    def __enter__(self) -> LoadBar:
        if (console := moving_terminal()) is not None:
            from rich import progress

            self._bars = progress.Progress(
                progress.TextColumn("{task.description}", markup=False),
                progress.BarColumn(bar_width=40),
                progress.TimeElapsedColumn(),
                console=console,
                transient=True,
                refresh_per_second=4,
            )
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def show(self, model: str, progress: float | None) -> None:
        """``progress`` is 0 to 1; None, while it is not known, moves without saying how far."""
        text = f"Loading {printable(model)}"
        if self._bars is not None:
            if self._bar is None or model != self._model:
                self._bar = self._bars.add_task(text, total=None)
            self._bars.update(self._bar, total=None if progress is None else 1.0, completed=progress or 0.0)
        elif model != self._model or self._clock() - self._told_at >= _LINE_EVERY:
            self._told_at = self._clock()
            say(f"{text}." if progress is None else f"{text}: {100 * progress:.0f} %.")
        self._model = model
