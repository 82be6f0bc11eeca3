"""One writer of log lines: whoever logs leaves a line in a bounded queue, a thread of its own writes it. A reader that
stops reading (a blocked pipe, a full disk) costs lines, which are counted, and never stalls the event loop."""

from __future__ import annotations

import atexit
import contextlib
import io
import os
import queue
import select
import threading
from collections.abc import Callable
from typing import TextIO

# Lines that may wait: about 2 MiB of audit lines, some seconds of a busy edge.
_MAX_WAITING = 4096
# Lines are collected for this many seconds and written together: a wake-up per line would cost more than the line.
_COLLECT_SECONDS = 0.05
# How long a descriptor that takes nothing is waited for before looking again whether close() has given up.
_BLOCKED_SECONDS = 0.25


class LogWriter:
    """Writes lines to ``stream``, which stays the caller's. Call ``close()`` to have the last lines written.

    ``notice`` makes the line that says how many lines were dropped before it.
    """

    def __init__(self, stream: TextIO, notice: Callable[[int], str]) -> None:
        self._stream = stream
        self._notice = notice
        self._waiting: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._counting = threading.RLock()
        self._dropped = 0
        self._told = 0
        self._closing = threading.Event()
        self._given_up = False
        # A daemon: a blocked pipe must not keep the process from leaving.
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    @property
    def dropped(self) -> int:
        """Lines that were not written since the start, because too many waited or the stream refused them."""
        return self._dropped

    def put(self, line: str) -> None:
        """Leave one line, without its line end. Never waits and never raises; from any thread or signal handler."""
        if self._waiting.qsize() < _MAX_WAITING and not self._closing.is_set():
            self._waiting.put(line)
        else:
            self._count(1)

    def close(self, timeout: float = 1.0) -> None:
        """Write what waits, for ``timeout`` seconds at most, and end the thread. Later lines are dropped."""
        if not self._closing.is_set():
            self._closing.set()
            self._waiting.put(None)
            atexit.unregister(self.close)
        self._thread.join(timeout)
        self._given_up = True

    def _count(self, lines: int) -> None:
        with self._counting:
            self._dropped += lines

    def _run(self) -> None:
        while (line := self._waiting.get()) is not None:
            self._closing.wait(_COLLECT_SECONDS)
            lines, ended = [line], False
            with contextlib.suppress(queue.Empty):
                while not ended:
                    following = self._waiting.get_nowait()
                    ended = following is None
                    if following is not None:
                        lines.append(following)
            self._write(lines)
            if ended:
                return

    def _write(self, lines: list[str]) -> None:
        dropped = self._dropped
        if dropped > self._told:
            lines.append(self._notice(dropped - self._told))
        try:
            self._put_out("\n".join(lines) + "\n")
            self._told = dropped
        except (OSError, ValueError):  # the pipe is gone, the disk is full, the stream is closed
            self._count(len(lines))

    def _put_out(self, text: str) -> None:
        try:
            descriptor = self._stream.fileno()
        except (io.UnsupportedOperation, AttributeError):
            self._stream.write(text)
            self._stream.flush()
            return
        # Past the stream's own buffer: a thread that is blocked inside it would abort the interpreter at exit.
        rest = memoryview(text.encode("utf-8", "backslashreplace"))
        while rest:
            try:
                rest = rest[os.write(descriptor, rest) :]
            except BlockingIOError:
                if self._given_up:
                    raise
                select.select([], [descriptor], [], _BLOCKED_SECONDS)
