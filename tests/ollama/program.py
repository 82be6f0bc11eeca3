"""The ``ollama`` program, built from a pinned Go module and kept between runs.

0.11.4 is the last version that builds this way: later ones leave C headers out of their module. ``python -m
tests.ollama.program`` builds it ahead of a test run, in about 3 minutes the first time.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from tests.go_programs import GoModule, cache_folder


def _module() -> GoModule:
    source = Path(__file__).resolve().parent
    return GoModule("ollama", source, ("github.com/ollama/ollama",), cache_folder("ollama"))


def built() -> bool:
    return _module().built


def build() -> Path:
    """The program; a second process waits for the first. Raises RuntimeError with what the compiler said."""
    return _module().build() / "ollama"


def missing() -> str:
    """Why there is no Ollama here; empty when there is one, or can be built."""
    if sys.platform != "linux":
        return "Ollama is built for these tests on Linux only."
    if not built() and not (shutil.which("go") and shutil.which(os.environ.get("CC", "gcc"))):
        return "Ollama is built with Go and a C compiler."
    return ""


if __name__ == "__main__":
    sys.stdout.write(f"{build()}\n")
