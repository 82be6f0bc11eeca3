"""Which of this machine's own addresses answer on a port."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import suppress

_CONNECT_SECONDS = 2.0  # to an address of one's own this takes no time; a firewall drops without a word
_AT_ONCE = 64  # a machine with containers has an address for each of their networks, and a shell few open files


async def answering(addresses: Iterable[str], port: int) -> list[str]:
    """Those that take a connection. A firewall between here and others is not seen: the connection is this machine's
    own."""
    tried = list(addresses)
    turn = asyncio.Semaphore(_AT_ONCE)
    found = await asyncio.gather(*(_connects(address, port, turn) for address in tried))
    return [address for address, connects in zip(tried, found, strict=True) if connects]


async def _connects(address: str, port: int, turn: asyncio.Semaphore) -> bool:
    try:
        async with turn, asyncio.timeout(_CONNECT_SECONDS):
            _, writer = await asyncio.open_connection(address, port)
    except (OSError, TimeoutError):
        return False
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
    return True
