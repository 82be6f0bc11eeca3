"""What a verb shows: data on standard output, all else on standard error, and the exit status."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

# C0 and C1 but for line feed and tab: with these a text could move the cursor, or send keys to the terminal.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
# Wider than any row, so that rich folds nothing where no terminal sets a width.
_NO_TERMINAL_WIDTH = 10_000


class Status(IntEnum):
    """Exit statuses, the same for every verb. ``edge`` and ``node`` also have 78 (sysexits.h: configuration)."""

    OK = 0
    FAILED = 1
    USAGE = 2  # wrong flags or settings
    NOT_FOUND = 3
    AUTH = 4  # the credential is missing, wrong or not enough
    UNAVAILABLE = 5  # nobody answers, or not now
    INTERRUPTED = 130  # 128 + SIGINT


class Failure(Exception):
    """A verb cannot go on. ``str(failure)`` says what happened, why and what to do; ``request_id`` is the edge's."""

    def __init__(self, message: str, status: Status = Status.FAILED, *, request_id: str = "") -> None:
        super().__init__(f"{message} (request {request_id})" if request_id else message)
        self.status = status


def printable(text: str) -> str:
    """``text`` from elsewhere, safe to write to a terminal."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def moving_terminal() -> Console | None:
    """Standard error as a terminal for what moves (a spinner, a bar); None where nothing can."""
    if not sys.stderr.isatty():
        return None
    # Imported only where it is used: a second start is to be quick.
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    return None if console.is_dumb_terminal else console


def say(text: str, above: Console | None = None) -> None:
    """A line for the person, on standard error; ``above`` what moves on that console."""
    if above is None:
        print(printable(text), file=sys.stderr, flush=True)
        return
    from rich.text import Text

    above.print(Text(printable(text)))


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Aligned columns on standard output: folded to a terminal's width, one line per row anywhere else."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else _NO_TERMINAL_WIDTH, highlight=False)
    table = Table(box=None, pad_edge=False, show_edge=False, header_style="", padding=(0, 2, 0, 0))
    for name in columns:
        table.add_column(name.upper(), overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    console.print(table)
