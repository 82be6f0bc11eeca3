from __future__ import annotations

import asyncio
import json
import logging
import os
import pty
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from loguru import logger

from shared.log_outputs import Stream
from shared.log_writer import LogWriter
from shared.logs import Logs, configure, escape

FIELDS = {
    "method": "POST",
    "route": "/v1/chat",
    "status": 200,
    "principal": "p1",
    "prompt_tokens": 12,
    "completion_tokens": 30,
    "outcome": "completed",
    "request_id": "r" * 22,
}
Start = Callable[..., Logs]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


@pytest.fixture
def start(log: Path) -> Iterator[Start]:
    """Starts logging into the file ``log``; afterwards all of logging is as it was."""
    root, handlers, level = logging.getLogger(), logging.getLogger().handlers[:], logging.getLogger().level
    started: list[Logs] = []
    with log.open("w") as stream:

        def begin(level: str = "INFO", format: Any = "auto") -> Logs:
            started.append(configure(level, format, stream))
            return started[-1]

        yield begin
        for logs in started:
            logs.close()
    root.handlers[:] = handlers
    root.setLevel(level)


def lines(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def test_the_audit_line_is_one_json_object(start: Start, log: Path) -> None:
    logs = start("ERROR")
    logs.audit(FIELDS)
    logs.close()
    (line,) = lines(log)
    assert line.pop("time").endswith("+00:00")
    assert line == {"event": "request", **FIELDS}


def test_the_readable_audit_line(start: Start, log: Path) -> None:
    logs = start(format="text")
    logs.audit(FIELDS)
    logs.audit({"method": "GET", "route": "/v1/me", "status": 401, "outcome": "missing_token"})
    logs.close()
    first, second = (line.split(" ", 1)[1] for line in log.read_text().splitlines())
    assert first == f"POST /v1/chat 200 12+30 tokens completed {'r' * 22}"
    assert second == "GET /v1/me 401 0+0 tokens missing_token"


def test_a_terminal_gets_readable_lines_and_a_file_json() -> None:
    master, slave = pty.openpty()
    code = "from shared.logs import configure; l = configure(); l.audit({'method': 'GET', 'status': 200}); l.close()"
    try:
        subprocess.run([sys.executable, "-c", code], stderr=slave, timeout=30, check=True)
        assert b"GET 200 0+0 tokens" in os.read(master, 4096)
    finally:
        os.close(master)
        os.close(slave)
    piped = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=30, check=True)
    assert json.loads(piped.stderr)["event"] == "request"


NASTY = "a\r\nb\x1b[31mc\x00\x7f\x85\u2028\u202e\ud800"


@pytest.mark.parametrize("format", ["json", "text"])
def test_no_value_can_begin_a_line_or_steer_a_terminal(start: Start, log: Path, format: str) -> None:
    logs = start(format=format)
    logs.audit({**FIELDS, "route": NASTY, "outcome": NASTY, "client_id": NASTY})
    logger.info("said {}", NASTY)
    logger.bind(who=NASTY).info("bound")
    logging.getLogger("uvicorn.error").warning("std %s", NASTY)
    logs.close()
    raw = log.read_bytes()
    assert raw.count(b"\n") == 4
    assert raw.replace(b"\n", b"").decode("ascii").isprintable()
    if format == "json":
        assert lines(log)[0]["route"] == NASTY
        assert lines(log)[2]["who"] == NASTY


def test_escape_leaves_ordinary_text_alone() -> None:
    assert escape("Grüße, 世界 \\n 👋🏽") == "Grüße, 世界 \\n 👋🏽"
    assert escape("a\nb") == "a\\nb"


async def test_standard_logging_is_routed(start: Start, log: Path) -> None:
    logs = start()
    logging.getLogger("uvicorn.error").info("started {not a field} %d", 1)
    logging.getLogger("uvicorn.access").info("GET /?token=secret")
    logging.getLogger("somewhere").debug("too fine")
    asyncio.get_running_loop().call_exception_handler({"message": "went wrong", "future": "PROMPT"})
    logs.close()
    found = lines(log)
    assert [(line["logger"], line["level"], line["message"]) for line in found] == [
        ("uvicorn.error", "INFO", "started {not a field} 1"),
        ("asyncio", "ERROR", "went wrong"),
    ]


@pytest.mark.parametrize("format", ["json", "text"])
def test_tracebacks_show_places_and_never_what_a_caller_sent(start: Start, log: Path, format: str) -> None:
    def fail(prompt: str) -> None:
        try:
            int(prompt)
        except ValueError as error:
            try:
                raise RuntimeError("the socket is gone") from error
            except RuntimeError as outer:
                raise ExceptionGroup("group", [outer, KeyError(prompt)]) from None

    logs = start(format=format)
    typed = "PROMPT TEXT"
    try:
        fail(typed)
    except ExceptionGroup as error:
        logger.exception("failed")
        logging.getLogger("uvicorn.error").error("Exception in ASGI application\n", exc_info=error)
    logs.close()
    text = log.read_text()
    assert "PROMPT" not in text
    for part in ("ExceptionGroup: group", "RuntimeError: the socket is gone", "ValueError", "KeyError", "in fail"):
        assert text.count(part) >= 2


def test_values_that_are_not_json_do_not_raise(start: Start, log: Path) -> None:
    cycle: dict[Any, Any] = {}
    cycle["self"] = cycle
    logs = start()
    logs.audit({**FIELDS, "node": Path("/x")})
    logs.audit({**FIELDS, "node": cycle})
    logs.close()
    assert [line["status"] for line in lines(log)] == [200, "200"]


def fill(writer: int) -> None:
    """Write to a pipe until it takes nothing more."""
    os.set_blocking(writer, False)
    try:
        while True:
            os.write(writer, b"x" * 4096)
    except BlockingIOError:
        os.set_blocking(writer, True)


def full_pipe() -> tuple[int, int]:
    """Both ends of a pipe that takes nothing more."""
    reader, writer = os.pipe()
    fill(writer)
    return reader, writer


@pytest.mark.case("E64")
def test_a_blocked_pipe_drops_and_counts_and_never_stalls() -> None:
    reader, writer = full_pipe()
    with os.fdopen(writer, "w") as stream:
        log = LogWriter(Stream(stream), notice=lambda count: f"dropped {count}")
        began = time.perf_counter()
        for number in range(20_000):
            log.put(f"line {number}")
        assert time.perf_counter() - began < 2, "blocked for good without the bound"
        assert 20_000 > log.dropped > 10_000
        began = time.perf_counter()
        log.close(timeout=0.2)
        assert time.perf_counter() - began < 2
        assert os.read(reader, 4096) == b"x" * 4096
        text = b""
        while (told := re.search(rb"dropped (\d+)\n", text)) is None:
            text += os.read(reader, 65536)
        log.close(timeout=5)
        # What it could not write any more was dropped after it had told of the others.
        assert 10_000 < int(told[1]) <= log.dropped
    os.close(reader)


def test_a_pipe_without_a_reader_costs_lines_only() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream:
        log = LogWriter(Stream(stream), notice=lambda count: f"dropped {count}")
        log.put("one")
        log.close(timeout=5)
        assert log.dropped == 1
        log.put("two")
        assert log.dropped == 2


def test_a_process_that_forgets_to_close_still_writes_its_last_lines() -> None:
    code = "from shared.logs import configure; l = configure(); l.audit({'status': 200}); l.audit({'status': 201})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=30, check=True)
    assert [json.loads(line)["status"] for line in run.stderr.splitlines()] == [200, 201]


@pytest.mark.case("E64")
def test_a_process_whose_log_is_blocked_still_ends() -> None:
    reader, writer = full_pipe()
    code = "from shared.logs import configure; l = configure(); l.audit({'status': 200}); l.close()"
    try:
        subprocess.run([sys.executable, "-c", code], stderr=writer, timeout=30, check=True)
    finally:
        os.close(reader)
        os.close(writer)
