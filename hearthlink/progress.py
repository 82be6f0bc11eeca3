"""What ``up`` is waiting for: a spinner on a terminal, else a line when it changes, one in a few seconds."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING

from hearthlink.output import moving_terminal, printable, say

if TYPE_CHECKING:
    from rich.status import Status

_LINE_EVERY = 5.0  # seconds


class Progress:
    """``with Progress() as progress``; on standard error."""

    def __init__(self) -> None:
        self._spinner: Status | None = None
        self._stage = ""
        self._shown = ""
        self._shown_at = 0.0

    def __enter__(self) -> Progress:
        if (console := moving_terminal()) is not None:
            self._spinner = console.status("Starting node and edge.")
            self._spinner.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def show(self, stage: str, text: str) -> None:
        """Wait for ``text``. ``stage`` is what a change of deserves a line of its own, at once."""
        if self._spinner is not None:
            from rich.text import Text

            self._spinner.update(Text(printable(text)))
            return
        now = time.monotonic()
        if stage != self._stage or (text != self._shown and now - self._shown_at >= _LINE_EVERY):
            self._stage, self._shown, self._shown_at = stage, text, now
            say(text)

    def note(self, text: str) -> None:
        """A line that stays."""
        say(text, above=self._spinner.console if self._spinner is not None else None)

    def stop(self) -> None:
        """Take the spinner away; idempotent."""
        if self._spinner is not None:
            self._spinner.stop()
            self._spinner = None
