"""What waits to be written on one link: frames collect while the loop runs one tick and leave together.

Control frames go first. The content of several streams takes turns once more than one message is waiting, so that a
long answer delays none of the others.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Container

from shared.link import frames


class Outbox:
    """One writer waits in ``filled`` and takes messages; anybody may put, without waiting. What bounds it is outside:
    credit for content, and ``waiting`` for a peer that sends and never reads."""

    def __init__(self) -> None:
        self._control: deque[bytes] = deque()
        self._content: deque[tuple[int, bytes]] = deque()
        self._something = asyncio.Event()
        self._awake = False  # the writer has been woken and has not run yet

    def __len__(self) -> int:
        return len(self._control) + len(self._content)

    def put_control(self, frame: bytes) -> None:
        self._control.append(frame)
        if not self._awake:
            self._wake()

    def put_content(self, stream: int, frame: bytes) -> None:
        self._content.append((stream, frame))
        if not self._awake:
            self._wake()

    def _wake(self) -> None:
        self._awake = True
        self._something.set()

    async def filled(self) -> None:
        """Wait until something is there."""
        await self._something.wait()
        self._something.clear()
        self._awake = False

    def waiting(self, but: Container[int]) -> int:
        """Frames that wait, without the content of the streams in ``but``, which credit bounds."""
        return len(self._control) + sum(stream not in but for stream, _ in self._content)

    def next_message(self) -> bytes:
        """Take one message. Only while something is there."""
        if self._control:
            return _fill(self._control)
        if sum(len(frame) for _, frame in self._content) > frames.MAX_MESSAGE_BYTES:
            return self._take_turns()
        message = b"".join([frame for _, frame in self._content])
        self._content.clear()
        return message

    def _take_turns(self) -> bytes:
        """A frame per stream in turn."""
        lanes: dict[int, deque[bytes]] = {}
        for stream, frame in self._content:
            lanes.setdefault(stream, deque()).append(frame)
        turns: deque[tuple[int, bytes]] = deque()
        while lanes:
            for stream in list(lanes):
                turns.append((stream, lanes[stream].popleft()))
                if not lanes[stream]:
                    del lanes[stream]
        ready = deque(frame for _, frame in turns)
        message = _fill(ready)
        self._content = deque(list(turns)[len(turns) - len(ready) :])
        return message


def _fill(ready: deque[bytes]) -> bytes:
    """Take frames from the front for one message: as many as fit, at least one."""
    taken = [ready.popleft()]
    size = len(taken[0])
    while ready and size + len(ready[0]) <= frames.MAX_MESSAGE_BYTES:
        size += len(ready[0])
        taken.append(ready.popleft())
    return b"".join(taken)
