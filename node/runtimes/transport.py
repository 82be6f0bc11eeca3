"""The node's way to a runtime over HTTP: small JSON requests, and the answers, streamed or whole.

aiohttp stays inside this file and ``connector.py``. Nothing here arms a timer per read: who reads a stream watches its
stall.
"""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

from node.runtimes import upstream_errors
from node.runtimes.connector import Connector
from shared.contract.errors import ApiError

CONNECT_SECONDS = 5.0  # loopback answers at once; a tailnet peer behind a relay within a second or two
ERROR_BODY_SECONDS = 5.0  # for the body of a refusal, once its head is here
_LARGE_BODY = 1 << 20  # where aiohttp begins to warn
MAX_JSON_BYTES = 4 << 20  # a public API's model list is some 100 KiB
MAX_ANSWER_BYTES = 32 << 20  # 512 embeddings of 4096 numbers in text are some 25 MiB
_LONG_JSON = 256 << 10  # takes some milliseconds to parse, for which the streams of others would stand still
# llama.cpp, uvicorn and Node drop a connection that idled 5 s; leaving first keeps a chat off a dying one.
KEEP_ALIVE_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class Reply:
    """Answer to a small request. ``payload`` is its JSON, or its text when it is none."""

    status: int
    server: str
    payload: Any

    @property
    def owner(self) -> str:
        """Of the first model in an answer of /models; "" where it has none."""
        listed = self.payload.get("data") if isinstance(self.payload, dict) else None
        first = listed[0] if isinstance(listed, list) and listed else None
        name = first.get("owned_by") if isinstance(first, dict) else None
        return name if isinstance(name, str) else ""


class HttpStream:
    """A ``RuntimeStream`` over one HTTP response, which it owns."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self._content = response.content
        self.content_type = response.content_type
        self._slow: asyncio.Future[None] | None = None  # a read that waits for the end

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
            if self._slow is None:
                self._content.on_eof(self._at_eof)  # once: the content keeps every callback that it is given
            self._slow = waiter = loop.create_future()
            timer = loop.call_later(seconds, _finish, waiter)
            try:
                await waiter
            finally:
                timer.cancel()
        try:
            return self._content.read_nowait()
        except (aiohttp.ClientError, OSError):
            raise _broken() from None

    def _at_eof(self) -> None:
        if self._slow is not None:
            _finish(self._slow)

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
        self._connector = Connector(limit=0, keepalive_timeout=KEEP_ALIVE_SECONDS)
        self._session = aiohttp.ClientSession(
            connector=self._connector,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=None),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": "hearthlink", "Accept-Encoding": "identity"},
            auto_decompress=False,
            trust_env=False,
        )
        self._closed = False

    async def close(self) -> None:
        """Idempotent. Every read and question under way ends with its error, as when the runtime goes away."""
        self._closed = True
        if self._connector.cut():
            # aiohttp's own close would leave readers waiting for ever: they are told first, which takes TLS two rounds.
            for _ in range(2):
                await asyncio.sleep(0)
        await self._session.close()

    async def ask(self, url: str, headers: Mapping[str, str], seconds: float, body: object = None) -> Reply:
        """GET, or POST ``body`` as JSON: that may be an order, so it goes over a new connection, and never twice.
        Raises OSError or TimeoutError when there was no whole answer."""
        response, raw = await self._whole(url, headers, seconds, body)
        return Reply(response.status, response.headers.get("Server", ""), _parse(raw))

    async def text(self, url: str, headers: Mapping[str, str], seconds: float) -> str:
        """GET: the body of a 200, else "". Raises as ``ask``."""
        response, raw = await self._whole(url, headers, seconds, None)
        return raw.decode("utf-8", "replace") if response.status == 200 else ""

    async def _whole(
        self, url: str, headers: Mapping[str, str], seconds: float, body: object
    ) -> tuple[aiohttp.ClientResponse, bytes]:
        try:
            async with asyncio.timeout(seconds), await self._send(url, headers, body, once=True) as response:
                return response, await _bounded(response)
        except aiohttp.ClientConnectorError as error:
            raise error.os_error from None
        except (aiohttp.ClientError, ValueError) as error:
            raise OSError(f"{type(error).__name__} while asking the runtime") from None

    async def stream(
        self,
        url: str,
        headers: Mapping[str, str],
        body: Mapping[str, Any],
        content_type: str = "text/event-stream",
    ) -> HttpStream:
        """POST ``body``; the stream that answers it, which the caller closes. One of another ``content_type`` is no
        answer. Raises ApiError as ``Runtime.stream``."""
        response = await self._post(url, headers, body)
        stream = HttpStream(response)
        if response.status == 200 and response.content_type == content_type:
            return stream
        try:
            raise await _refusal(response)
        finally:
            stream.close()

    async def answer(self, url: str, headers: Mapping[str, str], body: Mapping[str, Any]) -> dict[str, Any]:
        """POST ``body``; the JSON object that answers it. Raises ApiError as ``Runtime.ask``."""
        response = await self._post(url, headers, body)
        whole = False
        try:
            if response.status != 200 or response.content_type != "application/json":
                raise await _refusal(response)
            raw = await _bounded(response, MAX_ANSWER_BYTES)
            whole = True
        except (aiohttp.ClientError, OSError):
            raise _broken() from None
        except ValueError:
            raise ApiError(
                "upstream_invalid", "The model runtime's answer is too large. Ask for less at once.", should_retry=False
            ) from None
        finally:
            if not whole:
                HttpStream(response).close()
        answer = _parse(raw) if len(raw) <= _LONG_JSON else await asyncio.to_thread(_parse, raw, _as_it_is)
        if not isinstance(answer, dict):
            raise ApiError("upstream_invalid", "The model runtime answered with something that is no JSON object.")
        if answer.get("error"):  # a 200 proves nothing
            raise upstream_errors.from_event(answer["error"])
        return answer

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

    async def _send(
        self, url: str, headers: Mapping[str, str], body: object, *, once: bool = False
    ) -> aiohttp.ClientResponse:
        method, raw, type_of_body = "GET", None, {}
        if body is not None:
            raw = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
            method, type_of_body = "POST", {"Content-Type": "application/json"}
        task = asyncio.current_task()
        anew = once and body is not None
        while True:
            if self._closed:
                raise aiohttp.ClientConnectionError
            self._connector.dialled.discard(task)
            if anew:
                self._connector.dialling.add(task)
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
                # Nothing was answered, so ask again, once: another kept one may be as dead.
                if task in self._connector.dialled:
                    raise
                anew = True
            finally:
                self._connector.dialled.discard(task)
                self._connector.dialling.discard(task)


async def _refusal(response: aiohttp.ClientResponse) -> ApiError:
    """Read why there is no stream. A 200 proves nothing: LM Studio gives one, with an ``error``, to unknown paths."""
    try:
        async with asyncio.timeout(ERROR_BODY_SECONDS):
            payload = _parse(await _bounded(response))
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
        payload = ""
    if response.status >= 400:
        return upstream_errors.from_response(
            response.status, payload, retry_after=_seconds(response), path=response.url.path
        )
    if isinstance(payload, dict) and payload.get("error"):
        return upstream_errors.from_response(404, payload, path=response.url.path)
    return ApiError(
        "upstream_invalid",
        f"The model runtime answered HTTP {response.status}, and not with what was asked for. "
        "The owner of the node checks that node.runtime.url is an OpenAI-compatible server.",
    )


def _seconds(response: aiohttp.ClientResponse) -> float | None:
    text = response.headers.get("Retry-After", "")
    return min(float(text), 3600.0) if text.isascii() and text.isdigit() else None


async def _bounded(response: aiohttp.ClientResponse, limit: int = MAX_JSON_BYTES) -> bytes:
    raw = bytearray()
    while piece := await response.content.readany():
        raw += piece
        if len(raw) > limit:
            raise ValueError("the runtime's answer does not end")
    return bytes(raw)


def _as_it_is(fields: dict[str, Any]) -> dict[str, Any]:
    """For every object: json's C code keeps the interpreter to itself, but while it calls Python others may run."""
    return fields


def _parse(raw: bytes, object_hook: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    try:
        return json.loads(raw, object_hook=object_hook)
    except (ValueError, RecursionError):
        return raw[:2000].decode("utf-8", "replace")
