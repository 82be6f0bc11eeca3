"""The node's way to a runtime over HTTP: small JSON requests, and one streamed answer per chat.

aiohttp stays inside this file. Nothing here arms a timer per read: who reads a stream watches its stall.
"""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

from node.runtimes import upstream_errors
from shared.contract.errors import ApiError

CONNECT_SECONDS = 5.0  # loopback answers at once; a tailnet peer behind a relay within a second or two
ERROR_BODY_SECONDS = 5.0  # for the body of a refusal, once its head is here
_LARGE_BODY = 1 << 20  # where aiohttp begins to warn
MAX_JSON_BYTES = 4 << 20  # a public API's model list is some 100 KiB
# llama.cpp, uvicorn and Node drop a connection that idled 5 s; leaving first keeps a chat off a dying one.
KEEP_ALIVE_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class Reply:
    """Answer to a small request. ``payload`` is its JSON, or its text when it is none."""

    status: int
    server: str
    payload: Any


class HttpStream:
    """A ``RuntimeStream`` over one HTTP response, which it owns."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self._content = response.content
        self.content_type = response.content_type

    @property
    def at_end(self) -> bool:
        return self._content.at_eof()

    async def read(self) -> bytes:
        try:
            return await self._content.readany()
        except (aiohttp.ClientError, OSError):
            raise _broken() from None

    async def read_slowly(self, seconds: float) -> bytes:
        if not self._content.is_eof():
            loop = asyncio.get_running_loop()
            waiter = loop.create_future()
            timer = loop.call_later(seconds, _finish, waiter)
            self._content.on_eof(lambda: _finish(waiter))
            try:
                await waiter
            finally:
                timer.cancel()
        try:
            return self._content.read_nowait()
        except (aiohttp.ClientError, OSError):
            raise _broken() from None

    def close(self) -> None:
        """Cut the connection, or keep it for the next request when the body was read to its end."""
        if (connection := self._response.connection) is not None:
            if connection.transport is not None:
                connection.transport.abort()  # close() would first flush what is still unsent
            self._response.close()


def _finish(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def _broken() -> ApiError:
    return ApiError("runtime_error", "The model runtime closed the connection in the middle of the answer. Try again.")


class Transport:
    """One pool of connections to one runtime. Made inside a running loop; ``close()`` belongs to the maker.

    Environment proxies, cookies, redirects and compression are off: the runtime is a neighbour, and a key must not
    follow a redirect.
    """

    def __init__(self) -> None:
        self._connector = _Connector(limit=0, keepalive_timeout=KEEP_ALIVE_SECONDS)
        self._session = aiohttp.ClientSession(
            connector=self._connector,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=None),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": "hearthlink", "Accept-Encoding": "identity"},
            auto_decompress=False,
            trust_env=False,
        )

    async def close(self) -> None:
        await self._session.close()

    async def ask(self, url: str, headers: Mapping[str, str], seconds: float, body: object = None) -> Reply:
        """GET, or POST ``body`` as JSON. Raises OSError or TimeoutError when there was no whole answer."""
        try:
            async with asyncio.timeout(seconds), await self._send(url, headers, body) as response:
                raw = await _bounded(response)
                return Reply(response.status, response.headers.get("Server", ""), _parse(raw))
        except aiohttp.ClientConnectorError as error:
            raise error.os_error from None
        except (aiohttp.ClientError, ValueError) as error:
            raise OSError(f"{type(error).__name__} while asking the runtime") from None

    async def stream(self, url: str, headers: Mapping[str, str], body: Mapping[str, Any]) -> HttpStream:
        """POST ``body``; the event stream that answers it, which the caller closes. Raises ApiError as
        ``Runtime.chat``."""
        response = await self._post(url, headers, body)
        stream = HttpStream(response)
        if response.status == 200 and response.content_type == "text/event-stream":
            return stream
        try:
            raise await _refusal(response)
        finally:
            stream.close()

    async def _post(self, url: str, headers: Mapping[str, str], body: object) -> aiohttp.ClientResponse:
        try:
            return await self._send(url, headers, body)
        except (aiohttp.ClientConnectorError, aiohttp.ServerTimeoutError):
            raise ApiError(
                "node_unavailable", "The model runtime cannot be reached just now. Try again in a moment."
            ) from None
        except aiohttp.ClientResponseError:
            raise ApiError(
                "upstream_invalid", "What answers at the model runtime's address does not speak HTTP as it should."
            ) from None
        except (aiohttp.ClientError, OSError, ValueError):
            raise ApiError(
                "runtime_error", "The model runtime closed the connection before it answered. Try again."
            ) from None

    async def _send(self, url: str, headers: Mapping[str, str], body: object) -> aiohttp.ClientResponse:
        method, raw, type_of_body = "GET", None, {}
        if body is not None:
            raw = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
            method, type_of_body = "POST", {"Content-Type": "application/json"}
        task = asyncio.current_task()
        while True:
            self._connector.dialled.discard(task)
            try:
                return await self._session.request(
                    method,
                    url,
                    headers={**headers, **type_of_body},
                    # aiohttp warns of large bytes, which it would write in one go; a file it writes piece by piece.
                    data=io.BytesIO(raw) if raw is not None and len(raw) > _LARGE_BODY else raw,
                    allow_redirects=False,
                )
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError, aiohttp.ClientConnectionResetError):
                # A runtime may drop a kept connection just when we write to it (llama.cpp does after each stream).
                # Nothing was answered, so ask again; at the latest a new connection ends this.
                if task in self._connector.dialled:
                    raise
            finally:
                self._connector.dialled.discard(task)


class _Connector(aiohttp.TCPConnector):
    """Remembers which tasks were given a new connection; aiohttp's tracing tells, too, and costs every request 3 %."""

    dialled: set[asyncio.Task[Any] | None]

    def __init__(self, *, limit: int, keepalive_timeout: float) -> None:
        super().__init__(limit=limit, keepalive_timeout=keepalive_timeout)
        self.dialled = set()

    async def _create_connection(self, *arguments: Any, **named: Any) -> Any:
        self.dialled.add(asyncio.current_task())
        return await super()._create_connection(*arguments, **named)


async def _refusal(response: aiohttp.ClientResponse) -> ApiError:
    """Read why there is no stream. A 200 proves nothing: LM Studio gives one, with an ``error``, to unknown paths."""
    try:
        async with asyncio.timeout(ERROR_BODY_SECONDS):
            payload = _parse(await _bounded(response))
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
        payload = ""
    if response.status >= 400:
        return upstream_errors.from_response(response.status, payload, retry_after=_seconds(response))
    if isinstance(payload, dict) and payload.get("error"):
        return upstream_errors.from_response(404, payload)
    return ApiError(
        "upstream_invalid",
        f"The model runtime answered HTTP {response.status} without an event stream. "
        "The owner of the node checks that node.runtime.url is an OpenAI-compatible server.",
    )


def _seconds(response: aiohttp.ClientResponse) -> float | None:
    text = response.headers.get("Retry-After", "")
    return min(float(text), 3600.0) if text.isascii() and text.isdigit() else None


async def _bounded(response: aiohttp.ClientResponse) -> bytes:
    raw = bytearray()
    while piece := await response.content.readany():
        raw += piece
        if len(raw) > MAX_JSON_BYTES:
            raise ValueError("the runtime's answer does not end")
    return bytes(raw)


def _parse(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        return raw[:2000].decode("utf-8", "replace")
