"""What a user of this machine may ask of a tailscaled: ``python -m tests.tailnet.without_rights SOCKET UID`` prints,
for each call, "done" or which right is missing and the error's text."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Awaitable

from shared.tailscale.client import LocalClient
from shared.tailscale.errors import NotAllowed, TailscaleError


async def _attempt(call: Awaitable[object]) -> list[str]:
    try:
        await call
    except NotAllowed as error:
        return [error.right, str(error)]
    except TailscaleError as error:
        return [type(error).__name__, str(error)]
    return ["done", ""]


async def _attempts(socket: str) -> dict[str, list[str]]:
    async with LocalClient(socket, seconds=10) as client:
        served = await client.serve_config()
        handlers = {"Handlers": {"/": {"Proxy": "unix:/nowhere"}}}
        unix = {"TCP": {"8099": {"HTTP": True}}, "Web": {"edge.tail.test:8099": handlers}}
        calls = {
            "status": client.status(),
            "prefs": client.prefs(),
            "whois": client.whois("100.64.0.1"),
            "metrics": client.metrics(),
            "change prefs": client.change_prefs(Hostname="edge"),
            "serve": client.set_serve_config(served.config, served.etag),
            "serve a unix socket": client.set_serve_config(unix, served.etag),
            "certificate": client.certificate("edge.tail.test"),
        }
        return {name: await _attempt(call) for name, call in calls.items()}


async def main(socket: str, user: int) -> None:
    async with LocalClient(socket, seconds=10) as client:
        await client.status()  # loads every module, which the other user may not be able to read
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)
    sys.stdout.write(json.dumps(await _attempts(socket)))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
