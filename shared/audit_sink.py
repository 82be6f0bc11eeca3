"""Where audit lines go: with everything else in the log, to standard output, to the journal, or to a file of their
own. What cannot be written is kept in memory, up to a bound, and said once (reliability §6, case 63)."""

from __future__ import annotations

import contextlib
import errno
import os
import pwd
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from loguru import logger

from shared.log_outputs import JOURNAL_SOCKET, Journal, RotatingFile, Stream
from shared.log_writer import LogWriter, Output
from shared.logs import audit_line, dropped_line
from shared.settings_sections import AuditSettings

# What a start refuses, because only the owner can mend it. A full or read-only disk may mend itself: the edge serves.
_WRONG = frozenset(
    {errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EINVAL, errno.ENXIO, errno.ELOOP}
)
_CLOSE_SECONDS = 2.0  # for the last lines, at the end of the process

Write = Callable[[Mapping[str, Any]], None]


class AuditError(Exception):
    """A sink that cannot work; the message says which, why, and what to do."""


class AuditSink:
    """``write`` takes the fields of one line: names and short JSON-compatible values, never what was said. It costs
    microseconds, never waits and never raises."""

    def __init__(self, write: Write, writer: LogWriter | None = None, *, strict: bool = False) -> None:
        """Lines go to ``writer``; without one, their fields to ``write``."""
        self._write = write
        self._writer = writer
        self._strict = strict

    def write(self, fields: Mapping[str, Any]) -> None:
        if self._writer is None:
            self._write(fields)
        else:
            self._writer.put(audit_line(datetime.now(UTC), fields))

    def look(self) -> None:
        """Notice a write that hangs; about once a second."""
        if self._writer is not None:
            self._writer.look()

    @property
    def problem(self) -> str | None:
        """Why lines cannot be written right now, a sentence for the owner; None when all is well. The log, which has
        its own writer, is never said to have one."""
        return self._writer.problem if self._writer is not None else None

    @property
    def refuses(self) -> bool:
        """Whether requests must be refused now, because what they do could not be written down."""
        return self._strict and self.problem is not None

    @property
    def dropped(self) -> int:
        """Lines lost for good since the start."""
        return self._writer.dropped if self._writer is not None else 0

    @property
    def waiting(self) -> int:
        """Lines in memory that are not written yet."""
        return self._writer.waiting if self._writer is not None else 0


@contextmanager
def audit_sink(settings: AuditSettings, log: Write) -> Iterator[AuditSink]:
    """The sink that ``settings`` name, while the block runs; ``log`` is where lines go with ``sink = "log"``. The last
    lines are written at the end. Raises AuditError."""
    output = _output(settings)
    if output is None:
        yield AuditSink(log)
        return

    def changed(problem: str | None) -> None:
        if problem is None:
            logger.info("audit lines are written again to {}, {} were lost", settings.sink, writer.dropped)
        else:
            logger.error("audit lines cannot be written to {}: {}. The last ones are kept", settings.sink, problem)

    writer = LogWriter(output, dropped_line, changed)
    try:
        yield AuditSink(log, writer, strict=settings.strict)
    finally:
        writer.close(_CLOSE_SECONDS)
        if writer.problem is not None:
            logger.error("the last audit lines are lost, {} since the start: {}", writer.dropped, writer.problem)


def record_act(settings: AuditSettings, act: str, target: str, **fields: Any) -> None:
    """Write the line of one act of the owner at the command line: ``"key.revoke"`` of a key's id, never of a secret.

    Nothing is written with ``sink = "log"`` or ``"stdout"``, which belong to the edge's own process. Raises AuditError.
    """
    if settings.sink in ("log", "stdout"):
        return
    line = {"event": "act", "act": act, "target": target, "by": _user(), "via": "command line", **fields}
    # A file is put aside by the edge alone: two that do it at once would put aside one that is nearly empty.
    output = _output(settings.model_copy(update={"rotate_at": sys.maxsize}))
    assert output is not None
    try:
        output.write([audit_line(datetime.now(UTC), line)])
    except OSError as error:
        raise AuditError(
            f"{act} {target} is done, and no audit line could be written: {_why(settings, error)}"
        ) from None
    finally:
        output.close()


def _output(settings: AuditSettings) -> Output | None:
    """None for the log. Raises AuditError for what cannot work."""
    if settings.sink == "log":
        return None
    if settings.sink == "stdout":
        return Stream(sys.stdout)
    if settings.sink == "journald":
        if not os.path.exists(JOURNAL_SOCKET):
            raise AuditError(
                f"audit.sink is journald, and there is none on this machine ({JOURNAL_SOCKET} is missing). Choose a"
                " file, stdout or log."
            )
        return Journal()
    file = RotatingFile(Path(settings.sink), rotate_at=settings.rotate_at, keep=settings.keep)
    try:
        file.open()
    except OSError as error:
        if error.errno in _WRONG:
            raise AuditError(f"No audit line can be written: {_why(settings, error)}") from None
    return file


def _why(settings: AuditSettings, error: OSError) -> str:
    then = "Make its folder, and let the user who runs Hearthlink write there, or change audit.sink."
    if error.errno == errno.EINVAL:  # /dev/full, a pipe
        then = "Write the path of a file that may be made, or one of log, stdout and journald, as audit.sink."
    return f"{settings.sink}: {error.strerror}. {then}"


def _user() -> str:
    with contextlib.suppress(KeyError):
        return pwd.getpwuid(os.getuid()).pw_name
    return f"#{os.getuid()}"
