"""What the log says while a block runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from loguru import logger


@contextmanager
def logged(level: str = "WARNING", *, of: str | None = None) -> Iterator[list[str]]:
    """Lines ``LEVEL text`` from ``level`` on, of the module ``of`` or of all."""
    lines: list[str] = []
    handler = logger.add(lines.append, format="{level} {message}", level=level, filter=of)
    try:
        yield lines
    finally:
        logger.remove(handler)
