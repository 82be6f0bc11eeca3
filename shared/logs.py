"""Logs: loguru for what happens now and then, one preformatted audit line per request, both through one writer unless
the audit has a sink of its own (``shared.audit_sink``).

Lines are JSON objects, or one readable line each on a terminal. Control characters in any value are escaped, so a
caller can neither begin a line of his own nor steer a terminal. Prompts, answers and secrets are never handed to a log;
tracebacks show places, and of an exception's text only what cannot quote a caller.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import traceback
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, TextIO

from loguru import logger

from shared.log_outputs import Stream
from shared.log_writer import LogWriter

if TYPE_CHECKING:
    from loguru import Message

# One line's longest message and traceback, in characters: a line is for reading.
_MAX_MESSAGE = 4096
_MAX_TRACEBACK = 16_384
_MAX_CAUSES = 8  # of an exception that are shown; a longer chain is a loop
_LEVELS = frozenset({"DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"})
# C0, DEL, C1, line and paragraph separators, bidirectional controls, lone surrogates.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
# Loggers that tell of every request or socket; the audit line says it once.
_QUIET = ("uvicorn.access", "aiohttp.access", "httpx2", "httpcore2", "websockets")
_ENCODE = json.JSONEncoder(separators=(",", ":"), default=str).encode  # ASCII only: escapes all but DEL


def escape(text: str) -> str:
    """``text`` on one line, with control characters written as ``\\xNN`` or ``\\uNNNN``."""
    if text.isprintable():  # the common case; spaces count as printable, everything below does not
        return text
    return _CONTROL.sub(lambda match: repr(match[0])[1:-1], text)


class Logs:
    """The set-up of one process, made by ``configure``. ``close()`` writes the last lines."""

    def __init__(self, writer: LogWriter, *, readable: bool) -> None:
        self._writer = writer
        self._readable = readable

    @property
    def dropped(self) -> int:
        """Lines lost because they could not be written in time, since the start."""
        return self._writer.dropped

    def audit(self, fields: Mapping[str, Any]) -> None:
        """Emit the one line of a request, at any level. ``fields``: names and short JSON-compatible values, such as
        method, route, status, principal, chat_type, prompt_tokens, completion_tokens, outcome, node, duration_ms,
        request_id. Costs microseconds; never waits, never raises for what the values are."""
        now = datetime.now(UTC)
        if self._readable:
            self._writer.put(_readable_audit(now, fields))
        else:
            self._writer.put(audit_line(now, fields))

    def close(self) -> None:
        """Take the sinks away and write what waits, within a second."""
        logger.remove()
        self._writer.close()

    def _sink(self, message: Message) -> None:
        record = message.record
        fields: dict[str, Any] = {
            "time": record["time"].astimezone(UTC).isoformat(timespec="milliseconds"),
            "level": record["level"].name,
            "event": "log",
            "message": record["message"][:_MAX_MESSAGE],
            "logger": record["extra"].get("logger", record["name"]),
        }
        fields |= {name: value for name, value in record["extra"].items() if name not in fields}
        error = record["exception"].value if record["exception"] else None
        trace = "".join(_trace(error))[-_MAX_TRACEBACK:] if error else ""
        if not self._readable:
            self._writer.put(_encode({**fields, "exception": trace} if trace else fields))
            return
        extra = "".join(f" {name}={value}" for name, value in record["extra"].items() if name != "logger")
        line = escape(f"{record['time']:%H:%M:%S} {fields['level']:<7} {fields['message']}{extra}")
        self._writer.put("\n".join([line, *(f"    {escape(part)}" for part in trace.splitlines())]))


def configure(
    level: str = "INFO", format: Literal["auto", "json", "text"] = "auto", stream: TextIO | None = None
) -> Logs:
    """Send loguru's and the standard library's logs to ``stream`` (standard error), from ``level`` on.

    ``"auto"`` is readable on a terminal and JSON elsewhere. The caller closes the result at the end of the process.
    """
    target = sys.stderr if stream is None else stream
    readable = format == "text" or (format == "auto" and target.isatty())
    logs = Logs(LogWriter(Stream(target), _dropped_text if readable else dropped_line), readable=readable)
    logger.remove()
    # An empty format: the sink builds the line. backtrace and diagnose would print the values of variables.
    logger.add(logs._sink, level=level, format=lambda _: "", backtrace=False, diagnose=False, catch=True)
    _route_standard_logging(level)
    return logs


def _route_standard_logging(level: str) -> None:
    logging.basicConfig(handlers=[_ToLoguru()], level=level, force=True)
    for name in ("uvicorn", "uvicorn.error", "asyncio"):
        routed = logging.getLogger(name)
        routed.handlers.clear()
        routed.propagate = True
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


class _ToLoguru(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if record.name == "asyncio":
            message = message.partition("\n")[0]  # the rest are reprs of tasks and exceptions, which may quote anything
        level = record.levelname if record.levelname in _LEVELS else "INFO"
        error = record.exc_info[1] if record.exc_info else None
        logger.bind(logger=record.name).opt(exception=error).log(level, "{}", message)


def _dropped_text(count: int) -> str:
    return f"{datetime.now():%H:%M:%S} WARNING {count} log lines were dropped: they could not be written in time"


def audit_line(now: datetime, fields: Mapping[str, Any]) -> str:
    """One JSON object: ``fields`` after ``time`` and ``event``, which is ``"request"`` unless they say otherwise."""
    return _encode({"time": now.isoformat(timespec="milliseconds"), "event": "request", **fields})


def dropped_line(count: int) -> str:
    """One JSON object that says how many lines before it are lost."""
    time = datetime.now(UTC).isoformat(timespec="milliseconds")
    return _encode({"time": time, "level": "WARNING", "event": "dropped", "lines": count})


def _encode(fields: dict[str, Any]) -> str:
    try:
        line = _ENCODE(fields)
    except (TypeError, ValueError):  # a key that is no text, a cycle: a line about it is better than none
        line = _ENCODE({str(name): str(value) for name, value in fields.items()})
    return line.replace("\x7f", "\\u007f") if "\x7f" in line else line


def _readable_audit(now: datetime, fields: Mapping[str, Any]) -> str:
    """time method route status act target tokens outcome request id."""
    tokens = f"{fields.get('prompt_tokens') or 0}+{fields.get('completion_tokens') or 0} tokens"
    shown = (fields.get(name) for name in ("method", "route", "status", "act", "target"))
    ended = (fields.get(name) for name in ("outcome", "request_id"))
    parts = (f"{now.astimezone():%H:%M:%S}", *shown, tokens, *ended)
    return escape(" ".join(str(part) for part in parts if part is not None))


def _trace(error: BaseException, depth: int = 0) -> Iterator[str]:
    """Places and types of ``error`` and of what it came from. ValueErrors and LookupErrors quote the value they met,
    which may be a caller's, so their text is left out."""
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if cause is not None and depth < _MAX_CAUSES:
        yield from _trace(cause, depth + 1)
        yield "which led to:\n"
    yield from traceback.format_tb(error.__traceback__)
    text = "" if isinstance(error, ValueError | LookupError) else str(error)
    yield f"{type(error).__qualname__}: {text}\n" if text else f"{type(error).__qualname__}\n"
    if isinstance(error, BaseExceptionGroup) and depth < _MAX_CAUSES:
        for member in error.exceptions:
            yield from _trace(member, depth + 1)
