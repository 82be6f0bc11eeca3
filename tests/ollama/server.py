"""``ollama serve`` on a free port, with models of its own.

with OllamaServer(build(), folder) as ollama:
    ollama.create("demo", DEMO)
    ...                             # point a node at ollama.url
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.redis_server import free_port

_START_SECONDS = 20.0
_STOP_SECONDS = 10.0
_OTHER_PORTS = 3


class OllamaServer:
    """A context manager. ``program`` is the binary, ``folder`` takes its models, keys and log; ``environ`` are settings
    beside those (OLLAMA_…)."""

    def __init__(self, program: Path, folder: Path, **environ: str) -> None:
        self._program = program
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0
        self._environ = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "OLLAMA_MODELS": str(folder / "models"),
            "OLLAMA_NUM_PARALLEL": "1",
            **environ,
        }

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def log(self) -> str:
        return (self._folder / "ollama.log").read_text(errors="replace")

    def __enter__(self) -> Self:
        for _ in range(_OTHER_PORTS):
            self._port = free_port()
            if self._start():
                return self
        raise AssertionError(self.log)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """It ends its runners itself; what is left of its group is killed."""
        process = self._process
        if process is None:
            return
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_SECONDS)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def _start(self) -> bool:
        """Whether its port was free."""
        with (self._folder / "ollama.log").open("ab") as out:
            self._process = subprocess.Popen(
                [self._program, "serve"], env=self._spoken(), stdout=out, stderr=out, start_new_session=True
            )
        deadline = time.monotonic() + _START_SECONDS
        while self._process.poll() is None:
            try:
                self.ask("/api/version")
            except OSError:
                assert time.monotonic() < deadline, self.log
                time.sleep(0.02)
            else:
                return True
        assert "address already in use" in self.log, self.log
        return False

    def _spoken(self) -> dict[str, str]:
        return {**self._environ, "OLLAMA_HOST": f"127.0.0.1:{self._port}"}

    def create(self, name: str, weights: Path, *lines: str) -> None:
        """A model of a GGUF file; ``lines`` are those of its Modelfile beside FROM. One thread computes it: more stand
        in each other's way on a machine that does other things."""
        modelfile = self._folder / f"{name}.Modelfile"
        modelfile.write_text("\n".join([f"FROM {weights}", "PARAMETER num_thread 1", *lines]) + "\n")
        done = subprocess.run(
            [self._program, "create", name, "-f", modelfile],
            env=self._spoken(), capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    def ask(self, path: str, body: Any = None) -> dict[str, Any]:
        """One of its own routes: GET, or POST ``body``. Raises OSError."""
        data = None if body is None else json.dumps(body).encode()
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(urllib.request.Request(self.url + path, data), timeout=30) as response:
            return json.loads(response.read())

    def loaded(self) -> dict[str, int]:
        """Models in memory, each with its context in tokens."""
        return {model["name"]: model["context_length"] for model in self.ask("/api/ps")["models"]}

    @property
    def loads(self) -> int:
        """How many times it has loaded a model so far."""
        return self.log.count('msg="starting llama server"')

    def unload_all(self) -> None:
        for name in self.loaded():
            self.ask("/api/generate", {"model": name, "keep_alive": 0})
        deadline = time.monotonic() + _STOP_SECONDS
        while self.loaded():
            assert time.monotonic() < deadline, self.loaded()
            time.sleep(0.02)
