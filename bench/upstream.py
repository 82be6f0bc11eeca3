"""A runtime that costs next to nothing: an OpenAI-like server which emits stamped events at an exact pace.

``max_tokens`` is the number of events, ``seed`` the milliseconds between them (0: at once). Every event carries the
microsecond it was made in, as ``@<16 digits>``, so that a reader can tell its lag. The first event leaves as soon as
the request is read, which makes time to first token a property of what stands between. One ticker serves all streams.

    python -m bench.upstream PORT
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import time
from collections.abc import Callable
from typing import Any, cast

import uvloop

_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_CHUNK = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"bench","choices":[{"index":0,'
    b'"delta":%s,"finish_reason":%s}]}\n\n'
)
_CONTENT = _CHUNK % (b'{"content":"@%d "}', b"null")
_USAGE = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"bench","choices":[],"usage":'
    b'{"prompt_tokens":20,"completion_tokens":%d,"total_tokens":%d}}\n\n'
)
_ANSWER = (
    b'{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"bench","choices":[{"index":0,"message":'
    b'{"role":"assistant","content":"%s"},"finish_reason":"stop"}],"usage":{"prompt_tokens":20,"completion_tokens":%d,'
    b'"total_tokens":%d}}'
)
_MODELS = b'{"object":"list","data":[{"id":"bench","object":"model","created":1,"owned_by":"bench"}]}'
# A tick of a millisecond spreads streams as their starts are spread, and costs 2 % of a core.
_TICK_SECONDS = 0.001


def _framed(event: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(event), event)


_ROLE_FRAME = _framed(_CHUNK % (b'{"role":"assistant","content":null}', b"null"))
_FINISH_FRAME = _framed(_CHUNK % (b"{}", b'"stop"'))
_DONE_FRAME = _framed(b"data: [DONE]\n\n") + b"0\r\n\r\n"
# Stamps have 16 digits until the year 2286, so the frame's length is known beforehand.
_EVENT_FRAME = b"%x\r\n%s\r\n" % (len(_CONTENT % 10**15), _CONTENT)


class Wheel:
    """Streams by the tick of their next event; a stream is due at its own start plus whole intervals."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._slots: dict[int, list[Callable[[], None]]] = {}
        self._now = 0
        self._running = False

    def at(self, tick: int, callback: Callable[[], None]) -> None:
        self._slots.setdefault(tick, []).append(callback)
        if not self._running:
            self._running = True
            self._now = self.tick() - 1
            self._loop.call_later(_TICK_SECONDS, self._turn)

    def tick(self) -> int:
        return int(self._loop.time() / _TICK_SECONDS)

    def _turn(self) -> None:
        now = self.tick()
        for tick in range(self._now + 1, now + 1):
            for callback in self._slots.pop(tick, ()):
                callback()
        self._now = now
        self._running = bool(self._slots)
        if self._running:
            self._loop.call_later(_TICK_SECONDS, self._turn)


class Connection(asyncio.Protocol):
    """One keep-alive connection; requests one after the other."""

    def __init__(self, wheel: Wheel) -> None:
        self._wheel = wheel
        self._buffer = b""
        self._gone = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._write = cast(asyncio.Transport, transport).write

    def connection_lost(self, exc: Exception | None) -> None:
        self._gone = True

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self._buffer[:end].lower()
        at = head.find(b"content-length:")
        size = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
        if len(self._buffer) < end + 4 + size:
            return
        body = self._buffer[end + 4 : end + 4 + size]
        self._buffer = self._buffer[end + 4 + size :]
        if head.startswith(b"post "):
            self._chat(json.loads(body))
        else:
            self._json(_MODELS if b"/models" in head else b'{"status":"ok"}')

    def _json(self, body: bytes) -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
        self._write(head + body)

    def _chat(self, request: dict[str, Any]) -> None:
        total = request.get("max_tokens") or request.get("max_completion_tokens") or 16
        if not request.get("stream"):
            self._json(_ANSWER % (b"word " * total, total, total + 20))
            return
        self._left = total
        with_usage = (request.get("stream_options") or {}).get("include_usage")
        usage = _framed(_USAGE % (total, total + 20)) if with_usage else b""
        self._end = _FINISH_FRAME + usage + _DONE_FRAME
        self._interval = int(request.get("seed") or 0)
        self._write(_HEAD + _ROLE_FRAME)
        self._due = self._wheel.tick()
        self._emit()

    def _emit(self) -> None:
        """Write the next event, or all of them when there is no pace; then ask for the next turn."""
        while not self._gone:
            self._write(_EVENT_FRAME % (time.time_ns() // 1000))
            self._left -= 1
            if self._left <= 0:
                self._write(self._end)
                return
            if self._interval:
                self._due += self._interval
                self._wheel.at(self._due, self._emit)
                return


async def serve(port: int) -> None:
    loop = asyncio.get_running_loop()
    wheel = Wheel(loop)
    server = await loop.create_server(lambda: Connection(wheel), "127.0.0.1", port, backlog=4096)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    gc.disable()  # a collection would show as lag that is not the proxy's
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(int(sys.argv[1])))
