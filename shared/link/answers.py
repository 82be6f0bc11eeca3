"""The answers that a node has under way on one link: a task for each stream, from its OPEN to its END or ERROR."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from loguru import logger

from shared.contract.errors import ApiError
from shared.link import frames
from shared.link.call import Call, End, Outlet
from shared.link.frames import Kind
from shared.link.streams import Responder

Serve = Callable[[Call, Outlet], Awaitable[End]]


class Answers:
    """``send`` takes the frames of a stream. ``running`` are the streams that have not ended; the session that made
    this awaits ``abandon`` before it is gone."""

    def __init__(self, send: Callable[[int, bytes], None]) -> None:
        self.running: dict[int, tuple[asyncio.Task[None], Responder]] = {}
        self._send = send
        self._loop = asyncio.get_running_loop()

    def begin(self, stream: int, serve: Serve, call: Call) -> None:
        responder = Responder(stream, self._send)
        task = asyncio.create_task(self._answer(serve, call, responder))
        self.running[stream] = (task, responder)
        task.add_done_callback(lambda _: self.running.pop(stream, None))

    def add_credit(self, stream: int, size: int) -> None:
        """Raises FrameError for more than was sent."""
        if stream in self.running:
            self.running[stream][1].add_credit(size)

    def cancel(self, stream: int) -> None:
        if stream in self.running:
            # Soon, not now: a task cancelled before its first step, because OPEN and CANCEL came in one message, would
            # end without the END that the edge waits for.
            self._loop.call_soon(self.running[stream][0].cancel)

    def fail(self, error: ApiError) -> None:
        """End all with ``error``, tokens so far counted."""
        for task, responder in list(self.running.values()):
            responder.closing = error
            self._loop.call_soon(task.cancel)

    async def abandon(self) -> None:
        """Cancel all and wait for their ends; nobody is there to be told."""
        tasks = [task for task, _ in self.running.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _answer(self, serve: Serve, call: Call, responder: Responder) -> None:
        stream = responder.stream
        try:
            end = await serve(call, responder)
            last = frames.pack_json(stream, Kind.END, end.to_wire())
        except asyncio.CancelledError:
            # CANCEL, a lost link, or a drain that ran out. The edge still wants the usage, exactly once.
            if responder.closing is not None:
                last = _error_frame(stream, responder.closing, call)
            else:
                last = frames.pack_json(stream, Kind.END, End("cancelled", call.tally.usage()).to_wire())
        except ApiError as error:
            last = _error_frame(stream, error, call)
        except Exception as error:
            logger.opt(exception=error).error("answering {} failed", call.request_id)
            internal = ApiError("internal_error", "The node failed to answer. Its log has the request id.")
            last = _error_frame(stream, internal, call)
        self._send(stream, last)


def _error_frame(stream: int, error: ApiError, call: Call) -> bytes:
    usage = call.tally.usage().to_wire()
    return frames.pack_json(stream, Kind.ERROR, {**error.to_wire(), "usage": usage})
