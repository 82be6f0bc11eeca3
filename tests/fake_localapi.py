"""tailscaled's LocalAPI on a unix socket, as tailscale v1.102.5 speaks it.

    async with FakeLocalAPI(folder) as fake:
        fake.peers = [peer(2, "gpu", tags=["tag:gpu"])]
        fake.whois["100.64.0.2"] = whois(2, "gpu", tags=["tag:gpu"])
        fake.twist("prefs", text(501, "not supported by this server"))
        await fake.tell(PeersRemoved=[2])

``tests/tailnet/test_fake_localapi.py`` holds it against a real one.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qsl, urlsplit

from tests.tailnet.shapes import METRICS, VERSION, peer, ping, user

_API = "/localapi/v0/"
_REASONS = {200: "OK", 204: "No Content", 404: "Not Found"}
_RUNNING = 6
FELL_BEHIND = "IPN bus consumer fell behind; closing watch"


@dataclass(frozen=True, slots=True)
class Asked:
    """One request, header names in small letters."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer: text, or JSON of what is not text."""

    status: int = 200
    body: Any = ""
    headers: Mapping[str, str] = field(default_factory=dict)

    def encode(self, version: Mapping[str, str]) -> bytes:
        plain = isinstance(self.body, str | bytes)
        body = (
            self.body.encode() if isinstance(self.body, str) else self.body if plain else json.dumps(self.body).encode()
        )
        kind = "text/plain; charset=utf-8" if plain else "application/json"
        headers = {"Content-Type": kind, **version, **self.headers, "Content-Length": str(len(body))}
        lines = [f"HTTP/1.1 {self.status} {_REASONS.get(self.status, 'Other')}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def text(status: int, said: str, **headers: str) -> Reply:
    """The plain text of Go's ``http.Error``."""
    return Reply(status, f"{said}\n", {name.replace("_", "-"): value for name, value in headers.items()})


def error(said: str) -> Reply:
    """How ping and serve-config fail."""
    return Reply(500, {"error": said})


class FakeLocalAPI:
    """``path`` is its socket, in ``folder``; with a ``token`` it listens on ``port`` of 127.0.0.1, as macOS' apps do.

    Attributes are what it will answer. ``rights`` are the caller's. Until ``running`` is set it accepts and is silent.
    """

    def __init__(self, folder: Path, *, token: str = "") -> None:
        self.path = folder / "tailscaled.sock"
        self.port = 0
        self.asked: list[Asked] = []
        self.capability_version = 142
        self.rights = {"read", "write", "cert", "local admin"}
        self.own = peer(1, "edge", tags=["tag:edge"])
        self.peers: list[dict[str, Any]] = []
        self.users = [user(1, "tagged-devices")]
        self.status: dict[str, Any] = {"BackendState": "Running"}  # over what is made of the others
        self.state = _RUNNING
        self.whois: dict[str, dict[str, Any]] = {}
        self.pings: deque[dict[str, Any] | Reply] = deque()
        self.prefs: dict[str, Any] = {"ControlURL": "http://10.99.0.1:8080", "ShieldsUp": False, "AdvertiseTags": None}
        self.serve: dict[str, Any] | None = None
        self.certificate: Reply = text(500, "your Tailscale account does not support getting TLS certs")
        self.running = asyncio.Event()
        self.running.set()
        self._token = token
        self._twists: defaultdict[str, deque[Reply | Callable[[], Awaitable[None]]]] = defaultdict(deque)
        self._watchers: set[asyncio.StreamWriter] = set()
        self._connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        if self._token:
            self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
            self.port = self._server.sockets[0].getsockname()[1]
        else:
            self._server = await asyncio.start_unix_server(self._accept, self.path)

    async def stop(self) -> None:
        """As a tailscaled that ends: the socket's file stays."""
        if self._server is not None:
            self._server.close()
        for task, writer in self._connections.items():
            writer.transport.abort()
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def restart(self) -> None:
        await self.stop()
        self.path.unlink(missing_ok=True)
        await self.start()

    def twist(self, name: str, *answers: Reply) -> None:
        """The next answers of a call, in place of its own."""
        self._twists[_API + name].extend(answers)

    def before(self, name: str, action: Callable[[], Awaitable[None]]) -> None:
        """Do something when the next request for a call is here, before it is answered."""
        self._twists[_API + name].append(action)

    @property
    def watchers(self) -> int:
        return len(self._watchers)

    async def tell(self, **message: Any) -> None:
        """A notification to everybody who watches."""
        await self.tell_raw(json.dumps({"Version": VERSION, **message}, ensure_ascii=False).encode() + b"\n")

    async def tell_raw(self, message: bytes) -> None:
        for writer in self._watchers:
            writer.write(_chunk(message))
            await writer.drain()

    async def send_away(self) -> None:
        """What a watcher hears that fell behind."""
        await self.tell(ErrMessage=FELL_BEHIND, State=None)
        for writer in self._watchers:
            writer.write(_chunk(b""))
            writer.close()
        self._watchers.clear()

    def whole_status(self, peers: bool = True) -> dict[str, Any]:
        suffix = {"Name": "test", "MagicDNSSuffix": "tail.test", "MagicDNSEnabled": True}
        return {
            "Version": VERSION,
            "TUN": True,
            "BackendState": "Running",
            "HaveNodeKey": True,
            "AuthURL": "",
            "TailscaleIPs": self.own["TailscaleIPs"],
            "Self": self.own,
            "Health": [],
            "MagicDNSSuffix": "tail.test",
            "CurrentTailnet": suffix,
            "CertDomains": None,
            "ExtraRecords": None,
            "Peer": {peer["PublicKey"]: peer for peer in self.peers} if peers and self.peers else None,
            "User": {str(user["ID"]): user for user in self.users} or None,
            "ClientVersion": None,
            **self.status,
        }

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections[task] = writer
        task.add_done_callback(self._connections.pop)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                await self._answer(await _request(reader), reader, writer)
        self._watchers.discard(writer)
        writer.close()

    async def _answer(self, asked: Asked, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.asked.append(asked)
        if asked.path == "/server-status":
            writer.write(
                (Reply(body={}) if self.running.is_set() else Reply(503, {"error": "backend not ready"})).encode({})
            )
            return
        await self.running.wait()
        reply = self._guard(asked)
        while reply is None and (twists := self._twists[asked.path]):
            twist = twists.popleft()
            if isinstance(twist, Reply):
                reply = twist
            else:
                await twist()
        if reply is None and asked.path == f"{_API}watch-ipn-bus":
            await self._watch(asked, reader, writer)
            return
        version = {"Tailscale-Version": VERSION, "Tailscale-Cap": str(self.capability_version)}
        writer.write((reply or self._reply(asked)).encode(version))
        await writer.drain()

    def _guard(self, asked: Asked) -> Reply | None:
        """What is refused before it is looked at."""
        hosts = {"local-tailscaled.sock", f"127.0.0.1:{self.port}" if self._token else ""}
        if "origin" in asked.headers or "referer" in asked.headers or asked.headers["host"] not in hosts:
            return text(403, "invalid localapi request")
        if not self._token:
            return None
        scheme, _, given = asked.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "basic":
            return text(401, "auth required")
        return None if base64.b64decode(given).decode() == f":{self._token}" else text(403, "bad password")

    def _reply(self, asked: Asked) -> Reply:
        name = asked.path.removeprefix(_API)
        call = "certificate" if name.startswith("cert/") else name.replace("-", "_")
        handler: Callable[[Asked], Reply] | None = getattr(self, f"_{call}", None)
        return handler(asked) if handler else text(404, "404 page not found")

    def _status(self, asked: Asked) -> Reply:
        if "read" not in self.rights:
            return text(403, "status access denied")
        return Reply(body=self.whole_status(asked.query.get("peers") != "false"))

    def _whois(self, asked: Asked) -> Reply:
        address = asked.query.get("addr", "")
        found = self.whois.get(address) or self.whois.get(address.rpartition(":")[0].strip("[]"))
        return Reply(body=found) if found else text(404, "no match for IP:port")

    def _ping(self, asked: Asked) -> Reply:
        if asked.method != "POST":
            return text(400, "want POST")
        answer = self.pings.popleft() if self.pings else ping(asked.query["ip"], Err="no matching peer")
        return answer if isinstance(answer, Reply) else Reply(body=answer)

    def _prefs(self, asked: Asked) -> Reply:
        if asked.method == "PATCH":
            if "write" not in self.rights:
                return text(403, "prefs write access denied")
            fields = json.loads(asked.body)
            self.prefs |= {name: value for name, value in fields.items() if fields.get(f"{name}Set") is True}
        return Reply(body=self.prefs)

    def _serve_config(self, asked: Asked) -> Reply:
        if asked.method == "GET":
            return Reply(200, json.dumps(self.serve), {"Content-Type": "application/json", "Etag": self._etag()})
        if "write" not in self.rights:
            return text(403, "serve config denied")
        if '"unix:' in asked.body.decode() and "local admin" not in self.rights:
            return text(
                401, "must be root, or be an operator and able to run 'sudo tailscale' to serve a path or Unix socket"
            )
        if self.state != _RUNNING:
            return error("updating config: netMap is nil")
        if asked.headers.get("if-match", self._etag()) != self._etag():
            return text(412, "etag mismatch")
        self.serve = json.loads(asked.body)
        return Reply()

    def _etag(self) -> str:
        return hashlib.sha256(json.dumps(self.serve, sort_keys=True).encode()).hexdigest()

    def _certificate(self, asked: Asked) -> Reply:
        return self.certificate if self.rights & {"write", "cert"} else text(403, "cert access denied")

    def _usermetrics(self, asked: Asked) -> Reply:
        return Reply(200, METRICS)

    async def _watch(self, asked: Asked, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """The first message, then what is told, until the watcher goes."""
        mask = int(asked.query.get("mask", "0"))
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n"
            b"Tailscale-Cap: %d\r\n\r\n" % self.capability_version
        )
        first: dict[str, Any] = {"Version": VERSION, "SessionID": "be8ef895c7f27f2b", "State": self.state}
        first |= {"ErrMessage": None, "LoginFinished": None, "Prefs": None, "NetMap": None, "BrowseToURL": None}
        if mask & 1 << 14:
            first["InitialStatus"] = self.whole_status()
        if mask & 1 << 7:
            first["Health"] = {"Warnings": None}
        writer.write(_chunk(json.dumps(first).encode() + b"\n"))
        self._watchers.add(writer)
        await reader.read()
        raise ConnectionResetError


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


async def _request(reader: asyncio.StreamReader) -> Asked:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.removesuffix("\r\n\r\n").split("\r\n")
    method, target, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    url = urlsplit(target)
    return Asked(method, url.path, dict(parse_qsl(url.query)), headers, body)
