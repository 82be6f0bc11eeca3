"""HTTP to the LocalAPI: one request, one answer or one TailscaleError.

The Host header is what tailscaled demands; Origin, Referer and the environment's proxies are never sent or used. A
failed connection makes the next request look for the socket again: on macOS its port and token change with each start.
"""

from __future__ import annotations

import asyncio
import errno
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import Any

import httpx2

from shared.tailscale import refusals
from shared.tailscale.errors import NotAnswering, Right, UnexpectedAnswer, Unreachable
from shared.tailscale.refusals import Answer
from shared.tailscale.socket import Endpoint

_HOST = "http://local-tailscaled.sock"
# Bytes. The status of a tailnet with ten thousand members takes some ten million.
_MAX_ANSWER = 256 << 20
# Requests at once, the bus among them.
_LIMITS = httpx2.Limits(max_connections=64, max_keepalive_connections=8, keepalive_expiry=30)


class Transport:
    """``find`` says where tailscaled listens. ``seconds`` is the deadline of a request that names no other. Whoever
    made it closes it."""

    def __init__(self, find: Callable[[], Endpoint], seconds: float) -> None:
        self.capability_version = 0  # of the tailscaled that answered last; 0 is unknown
        self._find = find
        self._seconds = seconds
        self._http: httpx2.AsyncClient | None = None
        self._endpoint: Endpoint | None = None

    async def close(self) -> None:
        http, self._http = self._http, None
        if http is not None:
            await http.aclose()

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        right: Right = "read",
        seconds: float | None = None,
    ) -> Answer:
        """The whole answer, of status 200 to 299. ``right`` is what this call needs, for the error that says so."""
        within = seconds or self._seconds
        content = None if body is None else json.dumps(body).encode()
        http = await self._client()
        async with (
            self._errors(http, within),
            asyncio.timeout(within),
            http.stream(method, path, params=query, content=content, headers=headers) as response,
        ):
            answer = await self._answer(response)
        if not answer.succeeded:
            raise refusals.error_of(answer, path, right)
        return answer

    @asynccontextmanager
    async def stream(self, path: str, query: Mapping[str, str]) -> AsyncIterator[AsyncIterator[bytes]]:
        """An answer without end, in pieces as they come; leaving the block closes it."""
        async with AsyncExitStack() as stack:
            http = await self._client()
            async with self._errors(http, self._seconds), asyncio.timeout(self._seconds):
                response = await stack.enter_async_context(http.stream("GET", path, params=query))
                answer = None if response.is_success else await self._answer(response)
            if answer is not None:
                raise refusals.error_of(answer, path, "read")
            yield await stack.enter_async_context(aclosing(self._pieces(http, response)))

    async def _pieces(self, http: httpx2.AsyncClient, response: httpx2.Response) -> AsyncGenerator[bytes]:
        async with self._errors(http, self._seconds):
            async for piece in response.aiter_raw():
                yield piece

    async def _client(self) -> httpx2.AsyncClient:
        if self._http is None:
            endpoint = await asyncio.to_thread(self._find)
            if self._http is None:  # another request may have been quicker
                self._http, self._endpoint = _connector(endpoint), endpoint
        return self._http

    async def _answer(self, response: httpx2.Response) -> Answer:
        version = response.headers.get("tailscale-cap", "")
        if version.isascii() and version.isdigit():
            self.capability_version = int(version)
        body = bytearray()
        async for piece in response.aiter_raw():
            body += piece
            if len(body) > _MAX_ANSWER:
                raise UnexpectedAnswer(f"The answer of tailscaled is longer than {_MAX_ANSWER >> 20} MiB.")
        headers = {name.lower(): value for name, value in response.headers.items()}
        return Answer(response.status_code, headers, bytes(body))

    @asynccontextmanager
    async def _errors(self, http: httpx2.AsyncClient, within: float) -> AsyncIterator[None]:
        """Whatever fails between here and tailscaled, as a TailscaleError. Where nothing listens any more, ``http`` is
        given up, unless another request has done that already."""
        try:
            yield
        except (TimeoutError, httpx2.TimeoutException):
            raise NotAnswering(
                f"tailscaled at {self._endpoint or 'its socket'} did not answer within {within:g} s: it starts, or it "
                "hangs. If it stays so: sudo systemctl restart tailscaled"
            ) from None
        except httpx2.ConnectError as error:
            failure = _failure(self._endpoint, error)
            if self._http is http:
                await self.close()
            raise failure from None
        except httpx2.TransportError:
            raise Unreachable(f"tailscaled at {self._endpoint} hung up: it was stopped or restarted.") from None


def _connector(endpoint: Endpoint) -> httpx2.AsyncClient:
    # Deadlines are around whole requests; the bus has none, since it may be silent for hours.
    options: dict[str, Any] = {"trust_env": False, "timeout": None, "headers": {"Accept-Encoding": "identity"}}
    if endpoint.path:
        transport = httpx2.AsyncHTTPTransport(uds=endpoint.path, limits=_LIMITS)
        return httpx2.AsyncClient(transport=transport, base_url=_HOST, **options)
    url = f"http://127.0.0.1:{endpoint.port}"
    return httpx2.AsyncClient(base_url=url, auth=("", endpoint.token), limits=_LIMITS, **options)


def _failure(endpoint: Endpoint | None, error: BaseException) -> Unreachable:
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    number = cause.errno if cause is not None else None
    if number == errno.ENOENT:
        return Unreachable(
            f"There is no tailscaled at {endpoint}. Install and start Tailscale, or name its socket (what tailscaled "
            "was given as --socket) in the setting tailscale.socket, or in TS_SOCKET."
        )
    if number in (errno.EACCES, errno.EPERM):
        return Unreachable(
            f"This user may not open {endpoint}: let it into the folders above it, or run as another user."
        )
    return Unreachable(
        f"tailscaled does not run: nothing listens at {endpoint}. Start it: sudo systemctl start tailscaled"
    )
