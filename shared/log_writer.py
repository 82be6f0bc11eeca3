"""One writer of log lines: whoever logs leaves a line in a bounded queue, a thread of its own writes it. A reader that
stops reading, a full disk or a service that is away never stalls the event loop: the last lines are kept and written
once that is over, older ones are counted."""

from __future__ import annotations

import atexit
import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Protocol

# Lines that are kept: about 2 MiB of audit lines, some seconds of a busy edge. Twice as many for a moment: those that
# wait for the thread, and those it has taken and could not write.
KEPT = 4096
# Lines are collected for this many seconds and written together: a wake-up per line would cost more than the line.
_COLLECT_SECONDS = 0.05
# Lines in one write, so that a write that fails is not the whole of what is kept.
_BATCH = 512
# Seconds until the next try where lines could not be written: a disk does not become free sooner.
_RETRY_SECONDS = 0.5
# Seconds that one write may take before that counts as a fault.
_SLOW_SECONDS = 1.0
_TOO_SLOW = "whoever takes the lines is too slow, or takes none any more"


class Output(Protocol):
    """Where lines end. Used by the writer's thread alone, which may wait inside ``write``."""

    def write(self, lines: Sequence[str]) -> int:
        """Write the lines, which are without their ends, in order; return how many are written whole, at least one.
        Raises OSError, or ValueError for what is closed, when none is."""
        ...

    def give_up(self) -> None:
        """Wait no longer inside ``write``. From any thread."""

    def close(self) -> None:
        """Let go of everything."""


class LogWriter:
    """Writes lines to ``output``, which it owns. Call ``close()`` to have the last lines written.

    ``notice`` makes the line that says how many lines were dropped before it. ``changed`` is told what ``problem`` has
    become, a sentence or None, by whichever thread notices.
    """

    def __init__(
        self, output: Output, notice: Callable[[int], str], changed: Callable[[str | None], None] | None = None
    ) -> None:
        self._output = output
        self._notice = notice
        self._changed = changed
        self._waiting: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._counting = threading.RLock()  # held for what both threads change
        self._dropped = 0
        self._told = 0
        self._kept: deque[str] = deque()  # taken by the thread and not written yet, the oldest first
        self._try_again = 0.0  # monotonic time
        self._writing_since: float | None = None  # monotonic time
        self._ended = False  # the thread has taken all there was before close
        self._left = False  # and close has not waited until it had written it
        self.problem: str | None = None
        """Why lines cannot be written right now, for the owner; None when all is well."""
        self._closing = threading.Event()
        # A daemon: a blocked pipe must not keep the process from leaving.
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    @property
    def dropped(self) -> int:
        """Lines that will never be written, since the start."""
        return self._dropped + (self.waiting if self._left else 0)

    @property
    def waiting(self) -> int:
        """Lines in memory."""
        end = self._closing.is_set() and not self._ended  # which is none
        return max(self._waiting.qsize() - end, 0) + len(self._kept)

    def put(self, line: str) -> None:
        """Leave one line, without its line end. Never waits and never raises; from any thread or signal handler."""
        if self._closing.is_set():
            self._count(1)
            return
        if self._waiting.qsize() >= KEPT:  # the thread hangs in the output: the oldest line makes room
            with contextlib.suppress(queue.Empty):
                self._waiting.get_nowait()
                self._count(1)
            self._found(_TOO_SLOW)
        self._waiting.put(line)

    def look(self) -> None:
        """See whether the thread hangs in the output, and whether that is over: about once a second, from any
        thread."""
        with self._counting:
            since = self._writing_since
            if since is not None and time.monotonic() - since > _SLOW_SECONDS:
                self._found(_TOO_SLOW)
            elif since is None and not self.waiting and self.problem == _TOO_SLOW:
                self._found(None)

    def close(self, timeout: float = 1.0) -> None:
        """Write what waits, for ``timeout`` seconds at most, and end the thread. Later lines are dropped. What waits
        still when the thread hangs in the output counts as dropped, too, and ``problem`` says so."""
        if not self._closing.is_set():
            self._closing.set()
            self._waiting.put(None)
            atexit.unregister(self.close)
        self._thread.join(timeout)
        self._output.give_up()
        if self._thread.is_alive():
            self._left = True
            self.problem = self.problem or _TOO_SLOW

    def _count(self, lines: int) -> None:
        with self._counting:
            self._dropped += lines

    def _found(self, problem: str | None) -> None:
        if self.problem == problem:
            return
        self.problem = problem
        if self._changed is not None:
            self._changed(problem)

    def _run(self) -> None:
        while not self._ended:
            self._ended = self._collect()
            if self._kept and (self._ended or time.monotonic() >= self._try_again):
                self._write()
        self._count(len(self._kept))
        self._kept.clear()
        self._output.close()

    def _collect(self) -> bool:
        """Wait for lines and take all there are, or wait until it is time to try again; whether that was the end."""
        with contextlib.suppress(queue.Empty):
            line = self._waiting.get(timeout=_RETRY_SECONDS if self._kept else None)
            self._closing.wait(_COLLECT_SECONDS)
            while line is not None:
                self._kept.append(line)
                line = self._waiting.get_nowait()
            return True
        while len(self._kept) > KEPT:
            self._kept.popleft()
            self._count(1)
        return False

    def _write(self) -> None:
        try:
            while self._kept:
                lines = list(islice(self._kept, _BATCH))
                dropped = self._dropped
                notices = [self._notice(dropped - self._told)] if dropped > self._told else []
                written = self._timed(notices + lines)
                if notices:
                    self._told = dropped
                for _ in range(written - len(notices)):
                    self._kept.popleft()
        except (OSError, ValueError) as error:
            self._try_again = time.monotonic() + _RETRY_SECONDS
            self._found(_sentence(error))
        else:
            # One that is too slow for what comes has caught up when little is left, not after each write.
            if self.problem != _TOO_SLOW or self._waiting.qsize() < KEPT // 2:
                self._found(None)

    def _timed(self, lines: Sequence[str]) -> int:
        with self._counting:
            self._writing_since = time.monotonic()
        try:
            return self._output.write(lines)
        finally:
            with self._counting:
                self._writing_since = None


def _sentence(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else "") or str(error)
