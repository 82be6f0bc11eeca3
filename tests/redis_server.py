"""A real redis-server on a free port, for tests that kill, pause, fill and fail it over."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Self

import pytest

from tests.local_app import free_port

_START_SECONDS = 10.0
_OTHER_PORTS = 3


class RedisServer:
    """``redis-server`` with ``options`` (as on its command line, without the dashes) and its files in ``folder``.

    ``start`` it before use and ``stop`` it after; in between it may be killed and started again, on the same port.
    """

    def __init__(self, folder: Path, **options: str) -> None:
        self.folder = folder
        self.port = free_port()
        self.options = {
            "save": "",
            "appendonly": "no",
            **{name.replace("_", "-"): value for name, value in options.items()},
        }
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def log(self) -> str:
        return (self.folder / "redis.log").read_text()

    def start(self) -> Self:
        """Start it and wait until it answers. Raises AssertionError with its log when it does not."""
        if shutil.which("redis-server") is None and not os.environ.get("CI"):
            pytest.skip("needs the redis-server program")
        self.folder.mkdir(exist_ok=True)
        for _ in range(_OTHER_PORTS):
            if self._run():
                break
            self.port = free_port()  # somebody else was quicker
        assert self._process is not None and self._process.poll() is None, self.log
        return self

    def _run(self) -> bool:
        """Whether its port was free."""
        command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)]
        for name, value in self.options.items():
            command += [f"--{name}", *(value.split() or [""])]
        log = self.folder / "redis.log"
        said = log.stat().st_size if log.exists() else 0
        with log.open("ab") as out:
            self._process = subprocess.Popen(command, stdout=out, stderr=out)
        deadline = time.monotonic() + _START_SECONDS
        while "Ready to accept connections" not in self.log[said:]:
            if self._process.poll() is not None:
                return "Address already in use" not in self.log[said:]
            assert time.monotonic() < deadline, self.log
            time.sleep(0.01)
        return True

    def stop(self) -> None:
        """SIGKILL, as a machine that is gone; what was not written is lost. Idempotent."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def pause(self) -> None:
        """It keeps its connections and takes new ones, but says nothing until ``resume``."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        os.kill(self._process.pid, number)

    def ask(self, *command: str) -> str:
        """What ``redis-cli`` prints for one command. Raises AssertionError when the server refuses it."""
        tls = ["--tls", "--insecure"] if "tls-port" in self.options else []
        done = subprocess.run(
            ["redis-cli", "-p", str(self.port), *tls, *command], capture_output=True, text=True, timeout=10, check=False
        )
        said = done.stdout.strip()
        assert done.returncode == 0 and not said.startswith(("ERR", "(error)")), said + done.stderr
        return said


@functools.cache
def shared_redis() -> RedisServer:
    """One server for all tests of this process that begin with FLUSHALL; it ends with the process."""
    folder = Path(tempfile.mkdtemp(prefix="hearthlink-redis-"))
    server = RedisServer(folder)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    atexit.register(server.stop)
    return server.start()


@asynccontextmanager
async def running_redis(folder: Path, **options: str) -> AsyncIterator[RedisServer]:
    """A server while the block runs, with data of its own."""
    server = RedisServer(folder, **options)
    try:
        yield server.start()
    finally:
        server.stop()
