"""What a fake runtime can do with one chat request: scripts and the events they send.

A script is ``async (exchange) -> None``; it owns every byte of the answer and returns when the answer is over. The
factories here make scripts; ``tests.fake_presets`` gives names to the most used. Answers look like llama.cpp's on the
wire: role chunk, content chunks, finishing chunk, usage chunk if asked for, ``[DONE]``.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.fake_runtime import Exchange

Script = Callable[["Exchange"], Awaitable[None]]

DONE = b"data: [DONE]\n\n"
MODEL = "fake-model"
FOREVER = 3600.0  # seconds; every script is cancelled when its peer leaves or the runtime closes
# One to four bytes per character in UTF-8, so that a byte split at any place lands inside a character sooner or later.
_WORDS = ("one ", "søster ", "日本 ", "🌍 ", "end. ")


def words(n: int) -> list[str]:
    """The content of an answer of ``n`` events, one string per event."""
    return list(itertools.islice(itertools.cycle(_WORDS), n))


def text(n: int) -> str:
    """What a client must have read after ``n`` events."""
    return "".join(words(n))


def event(payload: Any) -> bytes:
    """One LF-framed ``data:`` event with compact JSON, non-ASCII text left as UTF-8."""
    return b"data: " + json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def chunk(delta: Mapping[str, Any], finish: str | None = None, **extra: Any) -> bytes:
    """One chat.completion.chunk event."""
    choices = [{"index": 0, "delta": dict(delta), "finish_reason": finish}]
    head = {"id": "chatcmpl-fake", "object": "chat.completion.chunk", "created": 1, "model": MODEL}
    return event({**head, "choices": choices, **extra})


def usage_chunk(usage: Any) -> bytes:
    head = {"id": "chatcmpl-fake", "object": "chat.completion.chunk", "created": 1, "model": MODEL}
    return event({**head, "choices": [], "usage": usage})


def role_chunk() -> bytes:
    return chunk({"role": "assistant", "content": None})


def answer(
    exchange: Exchange, n: int, *, usage: Any = "counted", before: Iterable[bytes] = (), after: Iterable[bytes] = ()
) -> list[bytes]:
    """All events of a good answer. ``usage``: "counted", "missing", or what to say instead. ``before`` goes after the
    role chunk, ``after`` behind ``[DONE]``."""
    events = [role_chunk(), *before, *(chunk({"content": word}) for word in words(n)), chunk({}, "stop")]
    if usage == "counted":
        usage = {"prompt_tokens": 7, "completion_tokens": n, "total_tokens": 7 + n}
    wanted = isinstance(options := exchange.json.get("stream_options"), dict) and options.get("include_usage")
    if usage != "missing" and wanted:
        events.append(usage_chunk(usage))
    return [*events, DONE, *after]


# -- good answers -----------------------------------------------------------------------------------------------------


def normal(n: int = 5, delay: float = 0.0, *, usage: Any = "counted", prefill: float = 0.0) -> Script:
    """``n`` content events, ``delay`` seconds before each; ``prefill`` seconds between the head and the first event.
    A request without ``stream`` is answered by one JSON document."""

    async def script(exchange: Exchange) -> None:
        if not exchange.json.get("stream"):
            await asyncio.sleep(prefill + n * delay)
            await exchange.respond(200, completion(n))
            return
        await exchange.start_stream()
        await asyncio.sleep(prefill)
        for piece in answer(exchange, n, usage=usage):
            if delay and b'"content":"' in piece:
                await asyncio.sleep(delay)
            await exchange.send(piece)
        await exchange.end_stream()

    return script


class Speaking:
    """An answer that goes on for as long as a test needs it: ``script`` says a word every ``delay`` seconds until
    ``enough`` is set, and then comes to a good end. ``said`` are the whole texts of the answers that did."""

    def __init__(self, delay: float) -> None:
        self.enough = asyncio.Event()
        self.said: list[str] = []
        self._delay = delay

    async def script(self, exchange: Exchange) -> None:
        await exchange.start_stream()
        await exchange.send(role_chunk())
        said = ""
        for word in itertools.cycle(_WORDS):
            await exchange.send(chunk({"content": word}))
            said += word
            if self.enough.is_set():
                break
            await asyncio.sleep(self._delay)
        self.said.append(said)
        await exchange.send(chunk({}, "stop") + DONE)
        await exchange.end_stream()


def saying(content: str, size: int = 8, delay: float = 0.0, *, whole: bool = True) -> Script:
    """A good answer with this text, ``size`` characters an event, ``delay`` seconds before each; unless it is ``whole``
    it has no end."""

    async def script(exchange: Exchange) -> None:
        await exchange.start_stream()
        await exchange.send(role_chunk())
        for start in range(0, len(content), size):
            await asyncio.sleep(delay)
            await exchange.send(chunk({"content": content[start : start + size]}))
        if whole:
            await exchange.send(chunk({}, "stop") + DONE)
        await exchange.end_stream()

    return script


def completion(n: int) -> dict[str, Any]:
    message = {"role": "assistant", "content": text(n)}
    return {
        "id": "chatcmpl-fake",
        "object": "chat.completion",
        "created": 1,
        "model": MODEL,
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 7, "completion_tokens": n, "total_tokens": 7 + n},
    }


def in_slices(size: int, n: int = 5, gap: float = 0.0005) -> Script:
    """The body in HTTP chunks of ``size`` bytes, ``gap`` seconds apart so that each is a read of its own. Size 1 splits
    at every byte; the two-, three- and four-byte characters of the text are then cut at every place."""

    async def script(exchange: Exchange) -> None:
        await exchange.start_stream()
        body = b"".join(answer(exchange, n))
        for start in range(0, len(body), size):
            await exchange.send(body[start : start + size])
            await asyncio.sleep(gap)
        await exchange.end_stream()

    return script


def split_at(offset: int, n: int = 5, gap: float = 0.005) -> Script:
    """The body in two reads, cut after ``offset`` bytes."""

    async def script(exchange: Exchange) -> None:
        await exchange.start_stream()
        body = b"".join(answer(exchange, n))
        for part in filter(None, (body[:offset], body[offset:])):
            await exchange.send(part)
            await asyncio.sleep(gap)
        await exchange.end_stream()

    return script


def half_characters(n: int = 5, gap: float = 0.002) -> Script:
    """Cuts inside every multi-byte character: no write ends on a whole one."""

    async def script(exchange: Exchange) -> None:
        await exchange.start_stream()
        body = b"".join(answer(exchange, n))
        starts = [i for i in range(1, len(body)) if body[i] & 0xC0 == 0x80]  # continuation bytes: inside a character
        for begin, end in itertools.pairwise([0, *starts, len(body)]):
            await exchange.send(body[begin:end])
            await asyncio.sleep(gap)
        await exchange.end_stream()

    return script


def rewritten(change: Callable[[bytes], bytes], n: int = 5) -> Script:
    """A good answer whose every event went through ``change``: other line ends, comments, fields in another order."""

    async def script(exchange: Exchange) -> None:
        await exchange.start_stream()
        for piece in answer(exchange, n):
            await exchange.send(change(piece))
        await exchange.end_stream()

    return script


def with_extras(n: int = 5, *, first: bytes = b"", before: Iterable[bytes] = (), after: Iterable[bytes] = ()) -> Script:
    """A good answer with bytes in front of it, events before its content, or events behind ``[DONE]``."""

    async def script(exchange: Exchange) -> None:
        await exchange.start_stream()
        await exchange.send(first)
        for piece in answer(exchange, n, before=before, after=after):
            await exchange.send(piece)
        await exchange.end_stream()

    return script


def reasoning(field: str) -> list[bytes]:
    return [chunk({field: thought}) for thought in ("Let me ", "think.")]


def progress(steps: int = 3) -> list[bytes]:
    """llama.cpp's ``return_progress``: the role delta again, with how much of the prompt is read."""
    total = steps * 100
    counts = ({"total": total, "cache": 0, "processed": done * 100, "time_ms": done} for done in range(1, steps + 1))
    return [chunk({"role": "assistant", "content": None}, prompt_progress=count) for count in counts]


# -- silence, garbage, death ------------------------------------------------------------------------------------------


def stall_before_headers(seconds: float = FOREVER) -> Script:
    async def script(exchange: Exchange) -> None:
        await asyncio.sleep(seconds)
        await exchange.drop()

    return script


def stall_mid_stream(n: int = 2, seconds: float = FOREVER) -> Script:
    """``n`` events, then silence on an open connection."""

    async def script(exchange: Exchange) -> None:
        await _begin(exchange, n)
        await asyncio.sleep(seconds)
        await exchange.drop()

    return script


def progress_forever(gap: float = 0.02) -> Script:
    """A prefill that never ends: progress events and no content."""

    async def script(exchange: Exchange) -> None:
        await exchange.start_stream()
        for piece in itertools.cycle(progress()):
            await exchange.send(piece)
            await asyncio.sleep(gap)

    return script


def endless_line(block: int = 65536) -> Script:
    """One ``data:`` line without end, as fast as the peer reads it (``exchange.sent`` says how far it got)."""

    async def script(exchange: Exchange) -> None:
        await exchange.start_stream()
        await exchange.send(b'data: {"choices":[{"delta":{"content":"')
        while True:
            await exchange.send(b"x" * block)

    return script


def huge_header(size: int = 1 << 20) -> Script:
    async def script(exchange: Exchange) -> None:
        await exchange.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nX-Huge: " + b"h" * size + b"\r\n\r\n"
        )
        await exchange.drop()

    return script


def raw(data: bytes, *, reset: bool = False) -> Script:
    """Exactly these bytes instead of an HTTP response, then the end of the connection."""

    async def script(exchange: Exchange) -> None:
        await exchange.write(data)
        await (exchange.reset() if reset else exchange.drop())

    return script


def body(data: bytes, content_type: str = "text/event-stream", status: int = 200) -> Script:
    """A whole response with this body."""

    async def script(exchange: Exchange) -> None:
        await exchange.respond(status, data, content_type)

    return script


def reset_mid_stream(n: int = 2) -> Script:
    """``n`` events, then RST, as when the process is killed."""

    async def script(exchange: Exchange) -> None:
        await _begin(exchange, n)
        await asyncio.sleep(0.02)  # a reset overtakes what the peer has not read yet
        await exchange.reset()

    return script


def eof_without_done(n: int = 2, *, framed: bool = True, finish: str | None = None) -> Script:
    """``n`` events, then a clean end of the body (``framed``) or of the connection inside it; never ``[DONE]``."""

    async def script(exchange: Exchange) -> None:
        await _begin(exchange, n)
        if finish:
            await exchange.send(chunk({}, finish))
        await (exchange.end_stream() if framed else exchange.drop())

    return script


async def _begin(exchange: Exchange, n: int) -> None:
    await exchange.start_stream()
    for piece in (role_chunk(), *(chunk({"content": word}) for word in words(n))):
        await exchange.send(piece)


# -- errors -----------------------------------------------------------------------------------------------------------


def refuse(status: int, payload: Any, headers: Iterable[tuple[str, str]] = ()) -> Script:
    """An HTTP answer with a JSON body, before any stream."""

    async def script(exchange: Exchange) -> None:
        await exchange.respond(status, payload, headers=headers)

    return script


def error_in_stream(frame: bytes, n: int = 2, *, done: bool = False) -> Script:
    """``n`` events, then the runtime's error ``frame``; ``done`` adds the ``[DONE]`` that vLLM sends after it."""

    async def script(exchange: Exchange) -> None:
        if n:
            await _begin(exchange, n)
        else:
            await exchange.start_stream()
        await exchange.send(frame)
        if done:
            await exchange.send(DONE)
        await exchange.end_stream()

    return script
