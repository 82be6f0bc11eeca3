"""A model hub and its store, two servers on loopback, that behave as huggingface.co and its CDN do, or not.

``async with FakeHub() as hub``; ``hub.put(...)`` a file; then ``hub.twists`` or ``hub.store.twists`` change the next
answers, one each.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import TracebackType
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34
NOBODY = "http://127.0.0.1:9"  # the discard port: nothing listens there


@dataclass(frozen=True, slots=True)
class Asked:
    """One request, header names in small letters."""

    method: str
    path: str
    headers: dict[str, str]


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer. ``length`` is what Content-Length says; None leaves it out, and the end of the connection ends it."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    length: int | None = 0
    stall: bool = False  # keep the connection open, in silence, after the body


Twist = Callable[[Reply], Reply]


def refuse(status: int, **headers: str) -> Twist:
    """Another answer; ``retry_after="1"`` is the header Retry-After."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda _: Reply(status, named)


def cut(after: int) -> Twist:
    """Close the connection ``after`` bytes of the body."""
    return lambda reply: replace(reply, body=reply.body[:after])


def stall(after: int) -> Twist:
    return lambda reply: replace(reply, body=reply.body[:after], stall=True)


def short(by: int) -> Twist:
    """End cleanly, too early: no length is announced."""
    return lambda reply: replace(reply, body=reply.body[:-by], length=None)


def long(by: int) -> Twist:
    """More than there is, with no length announced."""
    return lambda reply: replace(reply, body=reply.body + bytes(by), length=None)


def send(body: bytes) -> Twist:
    return lambda reply: replace(reply, body=body, length=len(body))


def header(name: str, value: str) -> Twist:
    """Add or change a header; an empty ``value`` leaves it out."""
    changed = {name: value} if value else {}
    return lambda reply: replace(
        reply, headers={**{key: old for key, old in reply.headers.items() if key != name}, **changed}
    )


def as_it_is(reply: Reply) -> Reply:
    return reply


class Server:
    """One listener. ``asked`` are the requests so far; ``twists`` are used up, one by each GET, and with ``heads`` also
    by each HEAD."""

    def __init__(self, answer: Callable[[Asked], Reply]) -> None:
        self._answer = answer
        self._tasks: set[asyncio.Task[None]] = set()
        self.asked: list[Asked] = []
        self.twists: deque[Twist] = deque()
        self.heads = False
        self.url = ""

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def gets(self) -> list[Asked]:
        return [asked for asked in self.asked if asked.method == "GET"]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                await self._exchange(reader, writer)
        except asyncio.CancelledError:
            pass  # the end of the test; asyncio's own callback would report it
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.split("\r\n")
        method, path, _ = first.split()
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
        asked = Asked(method, path, headers)
        self.asked.append(asked)
        reply = self._answer(asked)
        if self.twists and (method == "GET" or self.heads):
            reply = self.twists.popleft()(reply)
        fields = {**reply.headers, "Connection": "close"}
        if reply.length is not None:
            fields["Content-Length"] = str(reply.length)
        writer.write(f"HTTP/1.1 {reply.status} Said\r\n".encode())
        writer.write("".join(f"{name}: {value}\r\n" for name, value in fields.items()).encode() + b"\r\n")
        if method == "GET":
            writer.write(reply.body)
        await writer.drain()
        if reply.stall:
            await asyncio.sleep(3600)


@dataclass(slots=True)
class Blob:
    """A file. ``promised`` is the sha256 that the hub tells, ``store_etag`` what its store says."""

    content: bytes
    promised: str
    store_etag: str


class FakeHub:
    """``hub`` redirects each file to ``store``, another host:port. ``hub.url`` is what HF_ENDPOINT is set to."""

    def __init__(self) -> None:
        self.files: dict[str, Blob] = {}  # by the path behind /resolve/REVISION/, with its repository
        self.hub = Server(self._redirect)
        self.store = Server(self._send)
        self.commit = COMMIT
        self.token: str | None = None  # that a request must show
        self.private_code = "RepoNotFound"

    async def __aenter__(self) -> FakeHub:
        await self.hub.start()
        await self.store.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.hub.stop()
        await self.store.stop()

    @property
    def url(self) -> str:
        return self.hub.url

    def put(self, name: str, content: bytes, *, promised: str | None = None) -> Blob:
        """Offer ``content`` as "owner/repo/path"."""
        digest = hashlib.sha256(content).hexdigest()
        blob = Blob(content, digest if promised is None else promised, f'"{digest[:32]}-1"')
        self.files[name] = blob
        return blob

    def _redirect(self, asked: Asked) -> Reply:
        found = re.fullmatch(r"(?:/mirror)?/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", urlsplit(asked.path).path)
        if self.token is not None and asked.headers.get("authorization") != f"Bearer {self.token}":
            return Reply(401, {"X-Error-Code": self.private_code})
        if found is None:
            return Reply(404)
        repo, revision, path = found[1], unquote(found[2]), unquote(found[3])
        if not any(name.startswith(f"{repo}/") for name in self.files):
            return Reply(404, {"X-Error-Code": "RepoNotFound"})
        if revision not in ("main", self.commit):
            return Reply(404, {"X-Error-Code": "RevisionNotFound"})
        blob = self.files.get(f"{repo}/{path}")
        if blob is None:
            return Reply(404, {"X-Error-Code": "EntryNotFound"})
        headers = {
            "Location": f"{self.store.url}/{repo}/{path.replace(' ', '%20')}?Signature=very-secret",
            "X-Repo-Commit": self.commit,
            "X-Linked-Size": str(len(blob.content)),
        }
        return Reply(302, headers | ({"X-Linked-Etag": f'"{blob.promised}"'} if blob.promised else {}))

    def _send(self, asked: Asked) -> Reply:
        blob = self.files[unquote(urlsplit(asked.path).path[1:])]
        whole = len(blob.content)
        headers = {"ETag": blob.store_etag, "Accept-Ranges": "bytes"}
        wanted = re.fullmatch(r"bytes=(\d+)-", asked.headers.get("range", ""))
        if wanted is None or asked.headers.get("if-range", blob.store_etag) != blob.store_etag:
            return Reply(200, headers, blob.content, whole)
        begin = int(wanted[1])
        if begin >= whole:
            return Reply(416, {"Content-Range": f"bytes */{whole}"})
        headers["Content-Range"] = f"bytes {begin}-{whole - 1}/{whole}"
        return Reply(206, headers, blob.content[begin:], whole - begin)
