"""An aiohttp application on a free port of loopback, for as long as a block runs; and free ports for others."""

from __future__ import annotations

import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from aiohttp import web

# Linux gives those above to everybody who asks for any port, connections outward included.
_GIVEN_TO_ANYBODY = 32768


def free_pair() -> int:
    """As ``free_port``, and the next one is free as well."""
    while True:
        port = free_port()
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port + 1))
            return port


def free_port() -> int:
    """A port of loopback that nobody uses, for what must know its port beforehand, or call where nobody is. None that
    the system gives away: it could be another's before it is used."""
    while True:
        port = random.SystemRandom().randrange(10_000, _GIVEN_TO_ANYBODY)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


@asynccontextmanager
async def local_app(app: web.Application) -> AsyncIterator[str]:
    """Its URL. Who is still served when the block ends is cut."""
    runner = web.AppRunner(app, shutdown_timeout=0)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()
