"""Processes of a bench run: started on their own CPUs, waited for, ended."""

from __future__ import annotations

import http.client
import json
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from bench import procfs
from bench.client import Wave

# 2,000 streams are 2,000 sockets on each side of a hop.
_OPEN_FILES = 16384
_TERMINATE_SECONDS = 5.0
_POLL_SECONDS = 0.002
_ANSWER_SECONDS = 2.0
CHECKOUT = Path(__file__).resolve().parent.parent


class BenchError(Exception):
    """Something the bench needs did not start or answer; the text says what and shows the end of its log."""


@dataclass(frozen=True)
class Cpus:
    """Which CPUs the measured processes run on, and which the generator and its upstream: apart when there are two."""

    measured: frozenset[int]
    load: frozenset[int]

    @classmethod
    def split(cls) -> Cpus:
        available = sorted(os.sched_getaffinity(0))
        half = len(available) // 2
        return cls(frozenset(available[half:]), frozenset(available[:half])) if half else cls.shared()

    @classmethod
    def shared(cls) -> Cpus:
        everything = frozenset(os.sched_getaffinity(0))
        return cls(everything, everything)


def _connect(address: tuple[str, int]) -> socket.socket:
    return socket.create_connection(address, _ANSWER_SECONDS)


@dataclass(frozen=True)
class Place:
    """A machine to run processes on: this one, or one whose network is its own. ``inside`` is the command that runs
    another one there, ``connect`` makes a connection from there."""

    inside: tuple[str, ...] = ()
    connect: Callable[[tuple[str, int]], socket.socket] = _connect


HERE = Place()


class Process:
    """A child with its output in ``folder/name.log``; a context manager that ends it and all it started."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        folder: Path,
        cpus: frozenset[int],
        environment: Mapping[str, str] | None = None,
        place: Place = HERE,
    ) -> None:
        self.name = name
        self.place = place
        self.log = folder / f"{name}.log"

        def prepare() -> None:
            os.sched_setaffinity(0, cpus)
            hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
            resource.setrlimit(resource.RLIMIT_NOFILE, (_OPEN_FILES if hard < 0 else min(_OPEN_FILES, hard), hard))

        self.started_at = time.perf_counter()
        with self.log.open("ab") as output:
            self._child = subprocess.Popen(
                [*place.inside, *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=CHECKOUT,
                env={**_clean_environment(), **(environment or {})},
                preexec_fn=prepare,
            )

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def pids(self) -> list[int]:
        return procfs.family(self.pid)

    def wait_ready(self, url: str, seconds: float = 30.0) -> float:
        """Poll ``url`` until it answers 200; seconds since the process was started. Raises BenchError."""
        return self._wait(lambda: _answers(url, self.place), url, seconds)

    def wait_listening(self, port: int, seconds: float = 30.0) -> float:
        """As ``wait_ready``, until ``port`` of loopback takes connections: for what does not speak HTTP."""
        return self._wait(lambda: _listens(port), f"port {port}", seconds)

    def _wait(self, look: Callable[[], tuple[bool, str]], where: str, seconds: float) -> float:
        deadline = time.monotonic() + seconds
        state = "no answer yet"
        while time.monotonic() < deadline:
            if (code := self._child.poll()) is not None:
                raise BenchError(f"{self.name} ended with code {code} before it was ready.\n{self.tail()}")
            ready, state = look()
            if ready:
                return time.perf_counter() - self.started_at
            time.sleep(_POLL_SECONDS)
        raise BenchError(f"{self.name} was not ready at {where} after {seconds:.0f} s ({state}).\n{self.tail()}")

    def tail(self, lines: int = 15) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._child.terminate()
        try:
            self._child.wait(_TERMINATE_SECONDS)
        except subprocess.TimeoutExpired:
            for pid in reversed(self.pids):
                os.kill(pid, 9)
            self._child.wait()


def _clean_environment() -> dict[str, str]:
    """The caller's environment without settings of Hearthlink or Python that would change what is measured."""
    dropped = ("HEARTHLINK_", "PYTHON", "LM_STUDIO_")
    return {name: value for name, value in os.environ.items() if not name.startswith(dropped)}


def _answers(url: str, place: Place) -> tuple[bool, str]:
    parts = urlsplit(url)
    assert parts.hostname and parts.port
    connection = http.client.HTTPConnection(parts.hostname, parts.port)
    try:
        connection.sock = place.connect((parts.hostname, parts.port))
        connection.sock.settimeout(_ANSWER_SECONDS)
        connection.request("GET", parts.path)
        status = connection.getresponse().status
        return status == 200, f"status {status}"
    except (OSError, http.client.HTTPException) as error:
        return False, str(error)
    finally:
        connection.close()


def _listens(port: int) -> tuple[bool, str]:
    try:
        socket.create_connection(("127.0.0.1", port), _ANSWER_SECONDS).close()
        return True, ""
    except OSError as error:
        return False, str(error)


def free_port() -> int:
    """A loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass(frozen=True)
class Result:
    """What one run of the generator saw; ``waves`` as ``client.Seen.summary``, CPU in seconds and memory in bytes by
    process name. ``generator_busy`` and ``others_busy`` (programs that are not part of the bench) in CPUs."""

    waves: list[dict[str, Any]]
    cpu: dict[str, float]
    rss: dict[str, int]
    elapsed: float
    generator_busy: float
    others_busy: float
    late: bool

    def checked(self) -> Self:
        """Itself. Raises BenchError when a request failed or time ran out: figures of errors are worth nothing."""
        for wave in self.waves:
            if wave["bad"]:
                raise BenchError(f"{wave['bad']} of {wave['bad'] + wave['good']} requests failed: {wave['error']}")
        if self.late:
            raise BenchError(f"the requests were not answered within {self.elapsed:.0f} s")
        return self


def run_load(
    url: str,
    headers: dict[str, str],
    waves: list[Wave],
    pids: dict[str, list[int]],
    cpus: Cpus,
    seconds: float = 60.0,
    helpers: Sequence[int] = (),
    place: Place = HERE,
) -> Result:
    """Run the generator as a process of its own, with the plan that ``bench.load`` describes, at ``place``. Raises
    BenchError when it does not end."""
    asked = [asdict(wave) for wave in waves]
    plan = {"url": url, "headers": headers, "waves": asked, "pids": pids, "helpers": list(helpers), "seconds": seconds}
    try:
        done = subprocess.run(
            [*place.inside, sys.executable, "-m", "bench.load"],
            input=json.dumps(plan),
            capture_output=True,
            text=True,
            cwd=CHECKOUT,
            timeout=seconds + 30,
            preexec_fn=lambda: os.sched_setaffinity(0, cpus.load),
        )
    except subprocess.TimeoutExpired:
        raise BenchError(f"the load generator did not end within {seconds + 30:.0f} s") from None
    if done.returncode:
        raise BenchError(f"the load generator failed:\n{done.stderr[-2000:]}")
    return Result(**json.loads(done.stdout))
