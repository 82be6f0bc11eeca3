"""An issuer of signed tokens whose every answer a test owns: its documents, its keys, and what its tokens claim.

async with FakeIssuer() as issuer:
    bearer = issuer.token(sub="ann")
"""

from __future__ import annotations

import asyncio
import functools
import time
from types import TracebackType
from typing import Any, Self

from aiohttp import web
from joserfc import jwt
from joserfc.jwk import Key, RSAKey
from joserfc.jws import JWSRegistry

AUDIENCE = "https://chat.example.org"
DISCOVERY = "/.well-known/openid-configuration"
CERTIFICATES = "/cdn-cgi/access/certs"  # where a team of Cloudflare Access has them


@functools.cache
def rsa_key(name: str) -> RSAKey:
    """The same for the same name: making one takes a tenth of a second."""
    return RSAKey.generate_key(2048, {"kid": name})


class FakeIssuer:
    """Serves while its block runs. ``answers`` are its documents by path: JSON, or a ``web.Response``. ``asked`` has
    the path of each request. While ``held`` is set, answers wait."""

    def __init__(self) -> None:
        self.url = ""
        self.key = rsa_key("first")
        self.answers: dict[str, Any] = {}
        self.asked: list[str] = []
        self.held = asyncio.Event()
        self._released = asyncio.Event()
        self._runner: web.AppRunner | None = None
        self._port = 0

    async def __aenter__(self) -> Self:
        await self.start()
        self.url = f"http://127.0.0.1:{self._port}"
        self.answers[DISCOVERY] = {"issuer": self.url, "jwks_uri": self.url + "/jwks"}
        self.publish(self.key)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """At the port of before, if there was one."""
        app = web.Application()
        app.router.add_get("/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, shutdown_timeout=0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port)
        await site.start()
        self._port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        self.release()
        if self._runner is not None:
            await self._runner.cleanup()
        self._runner = None

    def hold(self) -> None:
        self.held.set()
        self._released.clear()

    def release(self) -> None:
        self.held.clear()
        self._released.set()

    def publish(self, *keys: Key | dict[str, Any]) -> None:
        """These and no others, at both places where a JWKS may be."""
        published = [key if isinstance(key, dict) else {**key.as_dict(private=False), "use": "sig"} for key in keys]
        self.answers["/jwks"] = self.answers[CERTIFICATES] = {"keys": published}

    def rotate(self, name: str, *, keep: bool = False) -> None:
        """A new key signs from now on; ``keep``: the old one is published beside it."""
        old, self.key = self.key, rsa_key(name)
        self.publish(self.key, *((old,) if keep else ()))

    def token(
        self, *, key: Key | None = None, algorithm: str = "RS256", head: dict[str, Any] | None = None, **claims: Any
    ) -> str:
        """Signed by ``key``, its own unless given, and meant for ``AUDIENCE`` for five minutes; a claim that is None is
        left out, as is a member of ``head``."""
        key, now = key or self.key, int(time.time())
        said = {"iss": self.url, "aud": AUDIENCE, "sub": "ann", "iat": now, "exp": now + 300, **claims}
        members = {"alg": algorithm, "kid": key.kid, "typ": "at+jwt", **(head or {})}
        return jwt.encode(
            {name: value for name, value in members.items() if value is not None},
            {name: value for name, value in said.items() if value is not None},
            key,
            registry=_Anything(strict_check_header=False),
            default_type=None,
        )

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request.path)
        if self.held.is_set():
            await self._released.wait()
        answer = self.answers.get(request.path)
        if answer is None:
            return web.Response(status=404)
        return answer if isinstance(answer, web.StreamResponse) else web.json_response(answer)


class _Anything(JWSRegistry):
    """Signs with any algorithm, as an attacker would."""

    def check_header(self, header: Any) -> None:
        pass

    def get_alg(self, name: str) -> Any:
        return self.algorithms[name]
