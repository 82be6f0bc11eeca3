"""A real OpenID Connect issuer (``oidc-provider``, which is certified) as a process, with clients that have tokens.

async with running_issuer() as issuer:
    bearer = await issuer.token()
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from tests.javascript import PACKAGES, install, require_node

# What the edge is called at the issuer; with ``/ES256`` behind it, tokens are signed so.
AUDIENCE = "https://chat.example.org"
PLAN_CLAIM = "https://example.org/plan"
_SECRET = "not-a-secret-" * 4
_SECONDS = 20.0


class Issuer:
    """``url`` is its name in ``iss``; ``kids`` are the ids of its keys."""

    def __init__(self, child: asyncio.subprocess.Process, client: aiohttp.ClientSession) -> None:
        self.child = child
        self.url = ""
        self.kids: list[str] = []
        self._client = client

    async def token(self, client: str = "someone", resource: str = AUDIENCE) -> str:
        """An access token of ``client``: "someone", "tester" on plan ``beta``, "stranger" on one that is not there,
        "confused" with a list of plans."""
        form = {"grant_type": "client_credentials", "client_id": client, "client_secret": _SECRET, "resource": resource}
        async with self._client.post(self.url + "/token", data=form) as response:
            answer = await response.json()
            assert response.status == 200, answer
            return answer["access_token"]

    async def rotate(self, *, keep: bool) -> None:
        """New keys sign from now on; ``keep``: the old ones are published beside them."""
        assert self.child.stdin is not None
        self.child.stdin.write(b"add\n" if keep else b"replace\n")
        await self.read()

    async def read(self) -> None:
        """What it says when it has begun to use keys."""
        assert self.child.stdout is not None
        async with asyncio.timeout(_SECONDS):
            while line := await self.child.stdout.readline():
                if line.startswith(b"{"):
                    said: dict[str, Any] = json.loads(line)
                    self.url, self.kids = said["issuer"], said["kids"]
                    return
        raise AssertionError("the issuer ended")

    async def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.child.kill()
        await self.child.wait()


@asynccontextmanager
async def running_issuer(port: int = 0) -> AsyncIterator[Issuer]:
    """Serve at ``port``, any unless given, while the block runs."""
    require_node()
    await install(PACKAGES)
    child = await asyncio.create_subprocess_exec(
        *("node", "oidc_issuer.js", str(port)),
        cwd=PACKAGES,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    async with aiohttp.ClientSession(trust_env=False) as client:
        issuer = Issuer(child, client)
        try:
            await issuer.read()
            yield issuer
        finally:
            await issuer.kill()
