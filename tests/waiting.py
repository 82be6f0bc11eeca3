"""Waiting for what another task, process or machine will do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


async def wait_until(
    predicate: Callable[[], object], seconds: float = 5.0, *, what: Callable[[], object] | None = None
) -> None:
    """Return as soon as ``predicate()`` is true, looked at every 5 ms. Raises AssertionError after ``seconds``,
    with what ``what()`` says then."""
    try:
        async with asyncio.timeout(seconds):
            while not predicate():  # noqa: ASYNC110 - what is waited for has no event of its own
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"not within {seconds} s" + (f": {what()}" if what else "")) from None
