"""Programs that tests need, built from pinned Go modules: minutes the first time, then kept between runs.

What is built is decided by a module's ``go.mod`` and ``go.sum``: a changed one gives another folder of the cache.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path


def cache_folder(name: str) -> Path:
    """``$XDG_CACHE_HOME/hearthlink/NAME``; it may be deleted at any time when no test runs."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "hearthlink" / name


@dataclass(frozen=True, slots=True)
class GoModule:
    """``source`` has go.mod and go.sum; ``packages`` are the programs that are built of it into a folder of
    ``cache``, which begins with ``name``."""

    name: str
    source: Path
    packages: tuple[str, ...]
    cache: Path

    @property
    def folder(self) -> Path:
        """Where the programs are, once they are built."""
        digest = hashlib.sha256()
        for name in ("go.mod", "go.sum"):
            digest.update((self.source / name).read_bytes())
        return self.cache / f"{self.name}-{digest.hexdigest()[:16]}"

    @property
    def built(self) -> bool:
        return self.folder.is_dir()

    def build(self) -> Path:
        """Build what is missing; a second process waits for the first. Raises RuntimeError with what the compiler
        said."""
        self.cache.mkdir(parents=True, exist_ok=True)
        with (self.cache / f"{self.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not self.built:
                self._build()
        return self.folder

    def _build(self) -> None:
        """Into a folder beside the real one, which then appears as a whole. Under the lock, so what else is unfinished
        is of a process that was killed."""
        for left in self.cache.glob(f"{self.name}-unfinished-*"):
            shutil.rmtree(left, ignore_errors=True)
        unfinished = Path(tempfile.mkdtemp(dir=self.cache, prefix=f"{self.name}-unfinished-"))
        try:
            command = ["go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", f"{unfinished}/"]
            done = subprocess.run(
                [*command, *self.packages], cwd=self.source, stderr=subprocess.PIPE, text=True, check=False
            )
            if done.returncode:
                raise RuntimeError(f"{self.name} could not be built with {shutil.which('go')}:\n{done.stderr[-2000:]}")
            unfinished.chmod(0o755)
            unfinished.rename(self.folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
