"""What the node does, told as it happens to whoever watches: requests, what was added to them, queue, loads, errors.

What was said is told only while the owner captures it. Publishing costs a dict and one append per watcher; nothing is
published per streamed event.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

# For whoever begins to watch: the last minutes of a busy node.
_REMEMBERED = 200
# Of one watcher that does not read; then it loses the oldest, and is told how many.
_WAITING = 1000
# Bytes of what was said, in all events that somebody may still read: with the events it fits into one answer.
_MAX_CONTENT = 4 << 20


class Watcher:
    """One reader of the events. Ends with the node; there is one reader."""

    def __init__(self, before: list[dict[str, Any]]) -> None:
        self._waiting: deque[dict[str, Any]] = deque(before, maxlen=_WAITING)
        self._lost = 0
        self._some = asyncio.Event()
        self._ended = False

    def put(self, event: dict[str, Any]) -> None:
        self._lost += len(self._waiting) == _WAITING
        self._waiting.append(event)
        self._some.set()

    def end(self) -> None:
        """Nothing more will come."""
        self._ended = True
        self._some.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> dict[str, Any]:
        while not self._waiting:
            if self._ended:
                raise StopAsyncIteration
            self._some.clear()
            await self._some.wait()
        if self._lost:
            lost, self._lost = self._lost, 0
            return {"kind": "lost", "events": lost}
        return self._waiting.popleft()


class Events:
    """``heard`` is called with each event. Only while ``capturing`` do events hold what was said."""

    def __init__(self, heard: Callable[[Mapping[str, Any]], None] = lambda event: None) -> None:
        self._heard = heard
        self._seq = 0
        self._recent: deque[dict[str, Any]] = deque(maxlen=_REMEMBERED)
        self._said: deque[tuple[dict[str, Any], int]] = deque()  # events that hold what was said, and bytes of that
        self._said_bytes = 0
        self._watchers: set[Watcher] = set()
        self._capture: asyncio.TimerHandle | None = None

    @property
    def watched(self) -> bool:
        """Whether somebody listens now: what matters to nobody later is told only then."""
        return bool(self._watchers)

    @property
    def capturing(self) -> bool:
        return self._capture is not None

    def capture(self, seconds: float) -> None:
        """Let events hold what is said from now on, for so long; 0 ends it. What was said is forgotten then."""
        if self._capture is not None:
            self._capture.cancel()
        if seconds:
            self._capture = asyncio.get_running_loop().call_later(seconds, self._end_capture)
        else:
            self._end_capture()

    def recent(self) -> list[dict[str, Any]]:
        """What is remembered, the oldest first."""
        return list(self._recent)

    def publish(self, kind: str, **fields: Any) -> None:
        """``fields`` are JSON-compatible; what somebody said belongs in ``content``, which is left out unless
        ``capturing``."""
        if "content" in fields and not self.capturing:
            del fields["content"]
        self._seq += 1
        event = {"seq": self._seq, "at": round(time.time(), 3), "kind": kind, **fields}
        self._recent.append(event)
        if "content" in fields:
            self._bound(event)
        for watcher in self._watchers:
            watcher.put(event)
        self._heard(event)

    @contextmanager
    def watching(self, *, replay: bool = False) -> Iterator[Watcher]:
        """A watcher for as long as the block runs; ``replay``: it first hears what is remembered."""
        watcher = Watcher(self.recent() if replay else [])
        self._watchers.add(watcher)
        try:
            yield watcher
        finally:
            self._watchers.discard(watcher)

    def end(self) -> None:
        """End all watching: the node goes."""
        for watcher in self._watchers:
            watcher.end()

    def _bound(self, event: dict[str, Any]) -> None:
        size = len(json.dumps(event["content"], ensure_ascii=False).encode())
        self._said.append((event, size))
        self._said_bytes += size
        while self._said_bytes > _MAX_CONTENT:
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        """Of what was said, wherever the event still is."""
        event, size = self._said.popleft()
        self._said_bytes -= size
        del event["content"]

    def _end_capture(self) -> None:
        self._capture = None
        while self._said:
            self._forget_oldest()
