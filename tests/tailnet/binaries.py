"""The programs of the hermetic tailnet, built from pinned Go modules and kept between runs.

    programs = build()          # seconds when they are there, minutes once
    programs.tailscaled         # a Path

What is built is decided by ``go/*/go.mod`` and ``go.sum``: a changed one gives another folder of the cache.
``python -m tests.tailnet.binaries`` builds them ahead of a test run.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

MODULES = Path(__file__).resolve().parent / "go"
# headscale asks for another version of tailscale.com, so each has a module of its own.
PACKAGES = {
    "tailscale": ("tailscale.com/cmd/tailscale", "tailscale.com/cmd/tailscaled"),
    "headscale": ("github.com/juanfont/headscale/cmd/headscale",),
}


@dataclass(frozen=True, slots=True)
class Programs:
    headscale: Path
    tailscale: Path
    tailscaled: Path


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/hearthlink/tailnet``; it may be deleted at any time when no test runs."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "hearthlink" / "tailnet"


def _folder(module: str) -> Path:
    digest = hashlib.sha256()
    for name in ("go.mod", "go.sum"):
        digest.update((MODULES / module / name).read_bytes())
    return cache_folder() / f"{module}-{digest.hexdigest()[:16]}"


def built() -> bool:
    return all(_folder(module).is_dir() for module in PACKAGES)


def build() -> Programs:
    """Build what is missing; a second process waits for the first. Raises RuntimeError with what the compiler said."""
    cache_folder().mkdir(parents=True, exist_ok=True)
    for module in PACKAGES:
        with (cache_folder() / f"{module}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not _folder(module).is_dir():
                _build(module)
    tailscale, headscale = _folder("tailscale"), _folder("headscale")
    return Programs(headscale / "headscale", tailscale / "tailscale", tailscale / "tailscaled")


def _build(module: str) -> None:
    """Into a folder beside the real one, which then appears as a whole. Under the lock, so what else is unfinished is
    of a process that was killed."""
    for left in cache_folder().glob(f"{module}-unfinished-*"):
        shutil.rmtree(left, ignore_errors=True)
    unfinished = Path(tempfile.mkdtemp(dir=cache_folder(), prefix=f"{module}-unfinished-"))
    try:
        command = ["go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", f"{unfinished}/"]
        done = subprocess.run(
            [*command, *PACKAGES[module]], cwd=MODULES / module, stderr=subprocess.PIPE, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{module} could not be built with {shutil.which('go')}:\n{done.stderr[-2000:]}")
        unfinished.chmod(0o755)
        unfinished.rename(_folder(module))
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


if __name__ == "__main__":
    sys.stdout.write(f"{build()}\n")
