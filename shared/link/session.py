"""One live link: frames over any message transport, the same code on both sides.

``run()`` reads until the link ends; a second task writes what the outbox holds. The edge opens streams (``open``), the
node serves them (``serve``), one task each. Whoever runs the session owns it; when ``run`` returns or is cancelled, the
transport is closed, every Reply has failed and every serving task has been cancelled and awaited.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from loguru import logger

from shared.contract.errors import ApiError
from shared.link import frames
from shared.link.answers import Answers, Serve
from shared.link.call import Call
from shared.link.frames import FrameError, Kind
from shared.link.hello import Hello, disagreement
from shared.link.outbox import Outbox
from shared.link.streams import Reply

# Seconds, all from design §3.4 and §3.8.
PING_AFTER = 5.0
# The same while answers are waited for: 2 to 3 s until the PING, 3 s until the link is suspect and 1 s until somebody
# looks leave room within the 10 s in which another node is asked (design §4).
PING_WAITING_AFTER = 2.0
SUSPECT_AFTER = 3.0
LOST_AFTER = 12.0
HELLO_WITHIN = 5.0
_OPEN_PINGS_AFTER = 1.0
_TICK = 1.0
# Frames that may wait to be sent beside those of running streams, which their credit bounds. More means a peer that
# sends and never reads.
_MAX_WAITING = 1 << 16

CLOSE_GOING_AWAY = 1001
CLOSE_PROTOCOL_ERROR = 1002
CLOSE_DENIED = 1008
CLOSE_VERSION = 4400


class Transport(Protocol):
    """A connection that carries whole binary messages. ``receive`` gives None once it is closed."""

    async def send(self, message: bytes) -> None: ...
    async def receive(self) -> bytes | None: ...
    async def close(self, code: int, reason: str) -> None: ...


class LinkClosed(Exception):
    """The link ended; ``reason`` is for the log and for people. ``code`` is the WebSocket close code we sent or saw."""

    def __init__(self, reason: str, code: int = CLOSE_GOING_AWAY) -> None:
        super().__init__(reason)
        self.reason = reason
        self.code = code


Stop = Callable[[str, str], bool]


class Session:
    """``serve`` and ``on_stop`` are given at the node, ``on_snapshot`` at the edge; a side that lacks one treats the
    frames meant for it as a violation. At the node a caller is (the edge's id from HELLO, principal), and ``refusing``
    is what new streams are answered with, while running ones go on."""

    def __init__(
        self,
        transport: Transport,
        hello: Hello,
        *,
        serve: Serve | None = None,
        on_stop: Stop | None = None,
        on_snapshot: Callable[[Mapping[str, Any]], None] | None = None,
    ) -> None:
        self.peer: Mapping[str, Any] = {}
        self.ready = asyncio.Event()
        self.draining = False
        self.refusing: ApiError | None = None
        self.closed = False
        self._transport = transport
        self._serve = serve
        self._on_stop = on_stop
        self._on_snapshot = on_snapshot
        self._loop = asyncio.get_running_loop()
        self._clock = self._loop.time
        self._outbox = Outbox()
        self._replies: dict[int, Reply] = {}
        self._answers = Answers(self._send_content)
        self._stops: dict[tuple[str, str], asyncio.Future[bool | None]] = {}
        self._last_stream = 0
        self._retired = False
        self._watching: asyncio.Task[LinkClosed] | None = None
        self._closing = LinkClosed("this side is shutting down")
        self._heard_at = self._clock()
        self._pinged_at: float | None = None
        self._started_at = self._heard_at
        self._send_control(frames.pack_json(0, Kind.HELLO, hello.to_wire()))

    # For the edge.

    def open(self, call: Call) -> Reply:
        """Send a request; returns at once. The caller reads the Reply and cancels it when it leaves early."""
        now = self._clock()
        self._last_stream += 1
        reply = Reply(self._last_stream, self._send_control, self._clock)
        if self.closed:  # since the caller chose this link
            reply.lose("it closed before the request left")
            return reply
        self._replies[reply.stream] = reply
        self._send_control(frames.pack_open(reply.stream, call.to_wire(now), call.body))
        if now - self._heard_at > _OPEN_PINGS_AFTER:
            self._ping(now)
        return reply

    async def stop(self, chat_id: str, principal: str) -> bool | None:
        """Ask the node to end a chat early; True when it ran there and belongs to ``principal``, None when there is no
        answer. Waits 2 s at most."""
        key = (chat_id, principal)
        waiter = self._stops.setdefault(key, self._loop.create_future())
        self._send_control(frames.pack_json(0, Kind.STOP, {"chat_id": chat_id, "principal": principal}))
        try:
            async with asyncio.timeout(2):
                return await asyncio.shield(waiter)
        except TimeoutError:
            return None
        finally:
            self._stops.pop(key, None)

    @property
    def suspect(self) -> bool:
        """No byte for 3 s after a PING: new streams should use another link."""
        return self._pinged_at is not None and self._clock() - self._pinged_at > SUSPECT_AFTER

    @property
    def usable(self) -> bool:
        return self.ready.is_set() and not self.draining and not self.closed and not self.suspect

    @property
    def streams(self) -> int:
        return len(self._replies) + len(self._answers.running)

    def retire(self) -> None:
        """A newer link takes the new streams: close this one as soon as its last stream has ended."""
        self.draining = self._retired = True

    # For the node.

    def send_snapshot(self, snapshot: Mapping[str, Any]) -> None:
        self._send_control(frames.pack_json(0, Kind.SNAPSHOT, snapshot))

    def go_away(self) -> None:
        """Take no new streams; running ones go on until ``run`` is cancelled."""
        self.draining = True
        self._send_control(frames.pack_json(0, Kind.GOAWAY, {"last": self._last_stream}))

    async def drained(self) -> None:
        """Wait until no stream runs here and everything written has left. The caller sets the deadline."""
        # At shutdown only; an Event would cost every stream something.
        while self._answers.running or self._replies or self._outbox:  # noqa: ASYNC110
            await asyncio.sleep(0.05)

    def fail_streams(self, error: ApiError) -> None:
        """End every served stream with ``error``, tokens so far counted."""
        self._answers.fail(error)

    # The link itself.

    def close(self, why: LinkClosed | None = None) -> None:
        """End the link, with code 1001 unless ``why`` has another; ``run`` returns then."""
        self._closing = why or self._closing
        if self._watching is not None:
            self._watching.cancel()

    async def run(self) -> LinkClosed:
        """Serve the link until it ends; returns why. Cancelling it closes the link."""
        writer = asyncio.create_task(self._write())
        self._watching = watch = asyncio.create_task(self._watch())
        reader = asyncio.create_task(self._read())
        tasks = (reader, writer, watch)
        ended = self._closing
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            ended = next(self._reason_of(task) for task in tasks if task.done())
        finally:
            self.closed = True
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._abandon(ended)
        return ended

    def _reason_of(self, task: asyncio.Task[LinkClosed]) -> LinkClosed:
        if task.cancelled():
            return self._closing
        if (error := task.exception()) is not None:
            return LinkClosed(f"the connection failed ({type(error).__name__}: {error})")
        return task.result()

    async def _abandon(self, ended: LinkClosed) -> None:
        for reply in self._replies.values():
            reply.lose(ended.reason)
        self._replies.clear()
        for waiter in self._stops.values():
            if not waiter.done():
                waiter.set_result(None)
        await self._answers.abandon()
        try:
            async with asyncio.timeout(1):
                await self._transport.close(ended.code, ended.reason[:120])
        except Exception as error:  # the transport is being thrown away; only its kind is of interest
            logger.debug("closing the link failed: {}", type(error).__name__)

    async def _read(self) -> LinkClosed:
        while True:
            message = await self._transport.receive()
            if message is None:
                return LinkClosed("the other side closed it")
            self._heard_at = self._clock()
            self._pinged_at = None
            try:
                for stream, kind, payload in frames.unpack(message):
                    closed = self._take(stream, kind, payload)
                    if closed is not None:
                        return closed
            except FrameError as error:
                return LinkClosed(f"the other side broke the protocol: {error}", CLOSE_PROTOCOL_ERROR)
            if self._swamped():
                return LinkClosed("the other side sends but does not read", CLOSE_DENIED)

    def _swamped(self) -> bool:
        return len(self._outbox) > _MAX_WAITING and self._outbox.waiting(but=self._answers.running) > _MAX_WAITING

    def _take(self, stream: int, kind: int, payload: bytes) -> LinkClosed | None:
        reply = self._replies.get(stream)
        if reply is not None and kind in (Kind.DATA, Kind.NOTE, Kind.HEAD, Kind.END, Kind.ERROR):
            if reply.receive(kind, payload):
                del self._replies[stream]
            return None
        if kind == Kind.HELLO:
            return self._greet(frames.read_json(payload))
        if not self.ready.is_set():
            raise FrameError("a frame before HELLO")
        if kind == Kind.OPEN:
            self._accept(stream, payload)
        elif kind == Kind.CREDIT:
            self._credit(stream, frames.read_json(payload).get("bytes"))
        elif kind == Kind.CANCEL:
            self._answers.cancel(stream)
        elif kind == Kind.PING:
            self._send_control(frames.pack(0, Kind.PONG, b"{}"))
        elif kind == Kind.SNAPSHOT:
            if self._on_snapshot is None:
                raise FrameError("a SNAPSHOT from an edge")
            self._on_snapshot(frames.read_json(payload))
        elif kind == Kind.STOP:
            self._take_stop(frames.read_json(payload))
        elif kind == Kind.GOAWAY:
            self._take_goaway(frames.read_json(payload).get("last"))
        return None  # unknown kinds and frames of finished streams are ignored

    def _greet(self, wire: Mapping[str, Any]) -> LinkClosed | None:
        if self.ready.is_set():
            raise FrameError("a second HELLO")
        if (reason := disagreement(wire)) is not None:
            return LinkClosed(reason, CLOSE_VERSION)
        self.peer = wire
        self.ready.set()
        return None

    def _accept(self, stream: int, payload: bytes) -> None:
        if self._serve is None:
            raise FrameError("an OPEN from a node")
        if stream <= self._last_stream:
            raise FrameError("a stream id used twice")
        self._last_stream = stream
        refusal = ApiError("draining", "The node is restarting. Please try again.") if self.draining else self.refusing
        if refusal is not None:  # never raised: an error that is raised time and again keeps every frame it passed
            self._refuse(stream, refusal)
            return
        try:
            call = Call.from_wire(*frames.read_open(payload), self._clock())
        except ApiError as error:
            self._refuse(stream, error)
            return
        call.principal = f"{self.peer.get('id', '')}:{call.principal}"
        self._answers.begin(stream, self._serve, call)

    def _refuse(self, stream: int, error: ApiError) -> None:
        self._send_content(stream, frames.pack_json(stream, Kind.ERROR, error.to_wire()))

    def _credit(self, stream: int, size: Any) -> None:
        if not isinstance(size, int) or size < 0:
            raise FrameError("a CREDIT without bytes")
        self._answers.add_credit(stream, size)

    def _take_stop(self, wire: Mapping[str, Any]) -> None:
        chat_id, principal = str(wire.get("chat_id", "")), str(wire.get("principal", ""))
        if self._on_stop is not None:
            stopped = self._on_stop(chat_id, f"{self.peer.get('id', '')}:{principal}")
            answer = {"chat_id": chat_id, "principal": principal, "stopped": stopped}
            self._send_control(frames.pack_json(0, Kind.STOP, answer))
        elif (waiter := self._stops.get((chat_id, principal))) is not None and not waiter.done():
            waiter.set_result(wire.get("stopped") is True)

    def _take_goaway(self, last: Any) -> None:
        self.draining = True
        for stream, reply in list(self._replies.items()):
            if isinstance(last, int) and stream > last:
                reply.fail(ApiError("draining", "The node is restarting. Please try again."))
                del self._replies[stream]

    # Liveness.

    async def _watch(self) -> LinkClosed:
        while True:
            await asyncio.sleep(_TICK)
            now = self._clock()
            silent = now - self._heard_at
            if not self.ready.is_set() and now - self._started_at > HELLO_WITHIN:
                return LinkClosed(f"no HELLO within {HELLO_WITHIN:.0f} s", CLOSE_PROTOCOL_ERROR)
            if self._retired and not self.streams:
                return LinkClosed("a newer link has taken over")
            if silent > LOST_AFTER:
                return LinkClosed(f"silent for {silent:.0f} s")
            if silent >= (PING_WAITING_AFTER if self._replies else PING_AFTER) and self._pinged_at is None:
                self._ping(now)

    def _ping(self, now: float) -> None:
        if self._pinged_at is None:
            self._pinged_at = now
            self._send_control(frames.pack(0, Kind.PING, b"{}"))

    # Writing.

    def _send_control(self, frame: bytes) -> None:
        if not self.closed:
            self._outbox.put_control(frame)

    def _send_content(self, stream: int, frame: bytes) -> None:
        if not self.closed:
            self._outbox.put_content(stream, frame)

    async def _write(self) -> LinkClosed:
        while True:
            await self._outbox.filled()
            while self._outbox:
                try:
                    await self._transport.send(self._outbox.next_message())
                except Exception as error:
                    return LinkClosed(f"writing failed ({type(error).__name__})")
