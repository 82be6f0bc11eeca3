"""``hearthlink model pull`` in this process, and the files it is tried on."""

from __future__ import annotations

import asyncio
import random
import struct
from pathlib import Path

import pytest

from hearthlink.__main__ import main

MODEL = "hf:acme/tiny/tiny.gguf"


def gguf(size: int = 300_000, seed: int = 1) -> bytes:
    """A file with a good header and noise behind it: version 3, no tensors, no metadata."""
    head = struct.pack("<4sIQQ", b"GGUF", 3, 0, 0)
    return head + random.Random(seed).randbytes(size - len(head))


CONTENT = gguf()


class Pull:
    """``await pull()``: exit status, standard output, standard error."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    async def __call__(self, model: str = MODEL, *more: str) -> tuple[int, str, str]:
        status = await asyncio.to_thread(main, ["model", "pull", model, *more])
        captured = self._capsys.readouterr()
        return status, captured.out, captured.err


def left(folder: Path) -> list[str]:
    """The names of everything below ``folder``."""
    return sorted(path.name for path in folder.rglob("*")) if folder.exists() else []
