"""An edge over HTTP, as the verbs use it: JSON, one stream, and every failure as a sentence with an exit status."""

from __future__ import annotations

import json
import os
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import SplitResult

import httpx2

from hearthlink.output import Failure, Status, printable
from shared import __version__
from shared.addresses import is_loopback, origin_of, split_url
from shared.contract import sse

_CONNECT_SECONDS = 10.0
# The edge writes a heartbeat into a stream every 10 s; one that is silent this long is dead.
_SILENT_SECONDS = 60.0
# A JSON answer is silent until it is whole; the edge itself gives up after edge.request_timeout, 600 s.
_WHOLE_ANSWER_SECONDS = 660.0
_STOP_SECONDS = 3.0
_DONE = "[DONE]"
_SHOWN = 300  # characters of an answer that is not Hearthlink's
# A service token, with which a program passes Cloudflare Access: header to variable, and the host it is for. Never
# flags, which others can read in the list of processes.
_ACCESS = {"CF-Access-Client-Id": "CF_ACCESS_CLIENT_ID", "CF-Access-Client-Secret": "CF_ACCESS_CLIENT_SECRET"}
_ACCESS_HOST = "CF_ACCESS_HOST"
_HEADER_TEXT = re.compile(r"[\x21-\x7e]{1,512}")


def base_url(text: str) -> SplitResult:
    """``text`` as the URL of an edge. Raises Failure."""
    try:
        return split_url(text, "http", "https")
    except ValueError as error:
        raise Failure(f"{text[:80]!r} {error}.", Status.USAGE) from None


def access_headers(url: str) -> dict[str, str]:
    """What passes Cloudflare Access in front of the edge at ``url``, of the environment; nothing where that names no
    service token or another host, or where anybody on the way could read it. Raises Failure for a part of one."""
    parts = base_url(url)
    given = {header: os.environ.get(variable, "") for header, variable in _ACCESS.items()}
    host = os.environ.get(_ACCESS_HOST, "")
    meant, local = parts.hostname == host.lower(), is_loopback(parts.hostname or "")
    if not any(given.values()) or not (parts.scheme == "https" or local) or (local and not meant):
        return {}
    if not all(_HEADER_TEXT.fullmatch(value) for value in (host, *given.values())):
        names = " and ".join(_ACCESS.values())
        raise Failure(
            f"A service token of Cloudflare Access has two parts of one word each: set {names}, and {_ACCESS_HOST} to"
            " the only host that may see them.",
            Status.USAGE,
        )
    return given if meant else {}


class EdgeClient:
    """``async with EdgeClient(url, headers) as edge``. ``headers`` go with every request: credential and origin.

    So does what passes Cloudflare Access (``access_headers``); ``behind_access`` says whether there is such.

    Proxies of the environment are used for other machines, never for loopback. With ``socket`` the connection is to
    that unix socket, whatever ``url`` says.
    """

    def __init__(self, url: str, headers: Mapping[str, str], *, socket: Path | None = None) -> None:
        parts = base_url(url)
        self.url = url.rstrip("/")
        self.local = is_loopback(parts.hostname or "")
        self.origin = origin_of(parts)
        access = access_headers(url)
        self.behind_access = bool(access)
        self._client = httpx2.AsyncClient(
            transport=httpx2.AsyncHTTPTransport(uds=str(socket)) if socket is not None else None,
            trust_env=not self.local,
            headers={"User-Agent": f"hearthlink/{__version__}", **access, **headers},
            timeout=httpx2.Timeout(_SILENT_SECONDS, connect=_CONNECT_SECONDS),
        )

    async def __aenter__(self) -> EdgeClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    def use(self, headers: Mapping[str, str]) -> None:
        """Send these from now on."""
        self._client.headers.update(headers)

    async def ask(self, method: str, path: str, body: Any = None, *, seconds: float = _WHOLE_ANSWER_SECONDS) -> Any:
        """The JSON of a 2xx answer, None for an empty one. Raises Failure."""
        response = await self._send(method, path, body, seconds)
        if not response.is_success:
            raise self._refused(response.status_code, response.headers, response.content)
        return self._json(response) if response.content else None

    async def health(self) -> dict[str, Any]:
        """What ``/healthz`` says when a chat could be answered. Raises Failure when none could."""
        response = await self._send("GET", "/healthz", None, _SILENT_SECONDS)
        health = self._json(response)
        if not isinstance(health, dict) or not {"status", "version"} <= health.keys():
            raise self._foreign(response.status_code, response.content)
        if response.is_success:
            return health
        if health["status"] == "maintenance":
            raise Failure(
                "The edge is closed to all but admins. Its owner opens it: hearthlink maintenance off",
                Status.UNAVAILABLE,
            )
        raise Failure(
            f"The edge runs but cannot answer a chat ({health['status']}). Its log, and /healthz on its operations"
            " address, tell what each node lacks.",
            Status.UNAVAILABLE,
        )

    @asynccontextmanager
    async def stream(self, body: Mapping[str, Any]) -> AsyncIterator[Answer]:
        """A chat as it is made. Leaving the block closes the connection, which stops the model. Raises Failure."""
        headers = {"Accept": "text/event-stream"}
        try:
            async with self._client.stream("POST", f"{self.url}/v1/chat", json=body, headers=headers) as response:
                if not response.is_success:
                    raise self._refused(response.status_code, response.headers, await response.aread())
                yield Answer(response)
        except httpx2.TransportError as error:
            raise self._unreachable(error) from None

    async def events(
        self, method: str, path: str, body: Any = None, *, silent: float = _SILENT_SECONDS
    ) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        """Names and fields of the events of what answers with a stream, to its end. ``silent`` are the seconds without
        a byte after which it is given up. Raises Failure, also for an error in the stream."""
        timeout = httpx2.Timeout(silent, connect=_CONNECT_SECONDS)
        headers = {"Accept": "text/event-stream"}
        try:
            async with self._client.stream(
                method, self.url + path, json=body, headers=headers, timeout=timeout
            ) as response:
                if not response.is_success:
                    raise self._refused(response.status_code, response.headers, await response.aread())
                decoder = sse.Decoder()
                async for chunk in response.aiter_bytes():
                    for event in decoder.feed(chunk):
                        fields = json.loads(event.data)
                        if event.event == "error":
                            raise failure_of(fields, 200, response.headers.get("x-request-id", ""))
                        yield event.event, fields
        except httpx2.TransportError as error:
            raise self._unreachable(error) from None
        except (sse.SSEError, ValueError, KeyError, TypeError):
            raise Failure("The stream is not one of Hearthlink.") from None

    async def stop(self, chat_id: str) -> bool:
        """Stop a chat; False when it was over already. Raises Failure."""
        try:
            await self.ask("DELETE", f"/v1/chat/{chat_id}", seconds=_STOP_SECONDS)
        except Failure as failure:
            if failure.status is Status.NOT_FOUND:
                return False
            raise
        return True

    async def _send(self, method: str, path: str, body: Any, seconds: float) -> httpx2.Response:
        timeout = httpx2.Timeout(seconds, connect=_CONNECT_SECONDS)
        try:
            return await self._client.request(method, self.url + path, json=body, timeout=timeout)
        except httpx2.TransportError as error:
            raise self._unreachable(error) from None
        except httpx2.InvalidURL:
            raise Failure(f"{self.url} is not a URL that can be asked.", Status.USAGE) from None

    def _json(self, response: httpx2.Response) -> Any:
        try:
            return response.json()
        except ValueError:
            raise self._foreign(response.status_code, response.content) from None

    def _unreachable(self, error: httpx2.TransportError) -> Failure:
        cause = cause_of(error)
        if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
            if "CERTIFICATE" in cause.upper():
                return Failure(f"The certificate of {self.url} is not trusted ({cause}).", Status.UNAVAILABLE)
            advice = "Start it with `hearthlink up`, or name a running edge with --url URL."
            if not self.local:
                advice = "Check the address, the network, and that the edge runs."
            return Failure(f"Nothing answers at {self.url} ({cause}). {advice}", Status.UNAVAILABLE)
        if isinstance(error, httpx2.TimeoutException):
            return Failure(f"{self.url} was silent for too long. Its log may say why.", Status.UNAVAILABLE)
        if isinstance(error, httpx2.ProxyError):
            advice = "Correct HTTPS_PROXY, or name the host in NO_PROXY."
            return Failure(f"The proxy does not lead to {self.url} ({cause}). {advice}", Status.UNAVAILABLE)
        return Failure(f"The connection to {self.url} broke ({cause}). Try again; the edge's log may say why.")

    def _refused(self, status: int, headers: Mapping[str, str], body: bytes) -> Failure:
        try:
            envelope = json.loads(body)
            return failure_of(envelope, status, headers.get("x-request-id", ""))
        except (ValueError, KeyError, TypeError):
            return self._foreign(status, body)

    def _foreign(self, status: int, body: bytes) -> Failure:
        said = " ".join(printable(body.decode("utf-8", "replace")).split())[:_SHOWN]
        return Failure(
            f"{self.url} answered HTTP {status}, but not as a Hearthlink edge does: {said or 'nothing'}. Something else"
            " listens there, or a proxy in between answered.",
            Status.UNAVAILABLE if status in (502, 503, 504) else Status.FAILED,
        )


@dataclass(frozen=True, slots=True)
class Part:
    """One event of an answer: ``text`` for words, else ``event`` ("queued", "loading") with its ``fields``; ``done``
    for the terminal one."""

    text: str = ""
    event: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)
    done: bool = False


class Answer:
    """A streamed answer. ``chat_id`` stops it."""

    def __init__(self, response: httpx2.Response) -> None:
        self._response = response
        self.chat_id = response.headers.get("hearthlink-chat-id", "")
        self.request_id = response.headers.get("x-request-id", "")

    async def parts(self) -> AsyncIterator[Part]:
        """Every event up to the terminal one, which is the last. Raises Failure for an error in the stream, and for one
        that ends without its terminal event."""
        decoder = sse.Decoder()
        try:
            async for chunk in self._response.aiter_bytes():
                for event in decoder.feed(chunk):
                    part = self._part(event)
                    yield part
                    if part.done:
                        return
        except (sse.SSEError, ValueError, KeyError, TypeError, IndexError, AttributeError):
            raise Failure("The stream is not one of a Hearthlink edge.", request_id=self.request_id) from None
        raise Failure(
            "The answer was cut: the stream ended without its last event. Something between here and the edge closed"
            " it, or the edge stopped.",
            request_id=self.request_id,
        )

    def _part(self, event: sse.Event) -> Part:
        if event.data == _DONE:
            return Part(done=True)
        fields = json.loads(event.data)
        if event.event == "error":
            raise failure_of(fields, 200, self.request_id)
        if event.event:
            return Part(event=event.event, fields=fields)
        choices = fields["choices"]
        return Part(text=(choices[0]["delta"].get("content") or "") if choices else "", fields=fields)


def cause_of(error: BaseException) -> str:
    """What the system said about a failed connection, else what the client made of it."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, OSError) and inner.strerror:
            return inner.strerror
        inner = inner.__cause__ or inner.__context__
    return str(error) or type(error).__name__


def failure_of(envelope: Mapping[str, Any], status: int, request_id: str) -> Failure:
    """The error of an envelope (design §3.1). Raises KeyError or TypeError when it is none."""
    error = envelope["error"]
    code, message = error["code"], printable(error["message"])
    return Failure(message, _exit_status(code, status), request_id=envelope.get("request_id") or request_id)


def _exit_status(code: str, status: int) -> Status:
    from shared.contract.errors import CODES

    known = CODES.get(code)
    status = known.status if known else status
    if status in (401, 403):
        return Status.AUTH
    if status == 404:
        return Status.NOT_FOUND
    return Status.UNAVAILABLE if status in (429, 503, 504) else Status.FAILED
