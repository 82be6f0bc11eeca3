"""This machine, as several probes look at it: its settings, what runs on it, and its tailscaled. Each question is asked
once, by whoever is first."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import re
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

import httpx2

from hearthlink.doctor.probes import in_thread
from shared.addresses import OnAddress, OnInterface, OnTailnet, parse_node_listen, split_listen
from shared.interfaces import addresses_of

if TYPE_CHECKING:
    from shared.settings import Settings
    from shared.tailscale.client import LocalClient
    from shared.tailscale.errors import TailscaleError
    from shared.tailscale.status import Status

T = TypeVar("T")

_ASK_SECONDS = 3.0  # a health answer takes milliseconds, and nobody is to wait for one that does not come
_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}


@dataclass(frozen=True, slots=True)
class Answer:
    """What an HTTP server said: ``json`` is {} where that was no object. ``trouble`` says why nothing came back, and
    the rest is empty then; ``silent``: something may listen there, and said nothing. ``ahead`` is its clock less ours
    in seconds, None where it tells no time."""

    url: str
    status: int = 0
    body: Mapping[str, Any] | None = None
    trouble: str = ""
    silent: bool = False
    ahead: float | None = None

    @property
    def json(self) -> Mapping[str, Any]:
        return self.body or {}

    def has(self, *names: str) -> bool:
        return all(name in self.json for name in names)


class Machine:
    """An async context manager; what it opened is closed with it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.state: Path = settings.state
        # Proxies of the environment know nothing of this machine and of the tailnet.
        self._http = httpx2.AsyncClient(trust_env=False, timeout=_ASK_SECONDS)
        self._local: LocalClient | None = None
        self._asked: dict[str, asyncio.Task[Any]] = {}
        self._touched = {key.partition(".")[0] for key, _, origin in settings.dump() if origin != "default"}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._asked.values():
            task.cancel()
        await asyncio.gather(*self._asked.values(), return_exceptions=True)
        await self._http.aclose()
        if self._local is not None:
            await self._local.close()

    # -- what was set up here -------------------------------------------------------------------------------------

    @property
    def edge_ran(self) -> bool:
        """Whether an edge was ever started with this state."""
        return (self.state / "edge.db.lock").exists()

    @property
    def node_ran(self) -> bool:
        return (self.state / "node-id").exists()

    @property
    def has_edge(self) -> bool:
        return self.edge_ran or "edge" in self._touched

    @property
    def has_node(self) -> bool:
        return self.node_ran or "node" in self._touched

    @property
    def node_listen(self) -> OnAddress | OnTailnet | OnInterface:
        return parse_node_listen(self.settings.node.listen)

    @property
    def needs_tailnet(self) -> bool:
        """Whether the settings cannot be followed without Tailscale."""
        listen = self.node_listen
        dialled = self.has_edge and any(upstream.node for upstream in self.settings.edge.upstreams.values())
        return dialled or (self.has_node and isinstance(listen, OnTailnet) and listen.certain)

    @property
    def settings_file(self) -> Path | None:
        """Where settings of this machine are written, if they are in a file."""
        origins = (origin for _, _, origin in self.settings.dump())
        return next((Path(origin.removeprefix("file ")) for origin in origins if origin.startswith("file ")), None)

    @property
    def secrets_in_file(self) -> bool:
        return any(_masked(value) and origin.startswith("file ") for _, value, origin in self.settings.dump())

    @property
    def edit(self) -> str:
        """The command that changes a setting."""
        return f"${{EDITOR:-vi}} '{self.settings_file or 'hearthlink.toml'}'"

    # -- what runs here -------------------------------------------------------------------------------------------

    async def edge(self) -> Answer:
        """The edge's full health."""
        return await self._once("edge", lambda: self.get(f"{_url(self.settings.edge.ops_listen)}/healthz"))

    async def edge_runs(self) -> bool:
        return (await self.edge()).has("status", "version", "nodes")

    async def nodes(self) -> list[Mapping[str, Any]]:
        """The nodes in the edge's health; none when no edge runs here."""
        rows = (await self.edge()).json.get("nodes")
        return [row for row in rows if isinstance(row, Mapping)] if isinstance(rows, list) else []

    async def node(self) -> Answer:
        """The health of the node on this machine. A node that is there and tells nothing to this machine has answered
        with an error of its own."""
        return await self._once("node", self._ask_node)

    async def node_runs(self) -> bool:
        answer = await self.node()
        return answer.has("status", "runtime") or answer.has("error", "request_id")

    async def _ask_node(self) -> Answer:
        """Where it listens, else by its owner's socket, which says nothing of its network."""
        looking = asyncio.gather(*(self.get(f"{url}/healthz") for url in await self.node_urls()))
        by_socket, answers = await asyncio.gather(self._ask_socket(), looking)
        answered = [answer for answer in answers if answer.has("runtime")]
        if by_socket is not None and not answered:
            return by_socket
        answered = answered or [one for one in answers if one.status]
        return (answered or answers or [Answer("", trouble="it has no address to listen on now")])[0]

    async def _ask_socket(self) -> Answer | None:
        """By the socket that a node of this user keeps for its owner, whatever becomes of its network."""
        path = self.state / "node.sock"
        if not path.is_socket():
            return None
        transport = httpx2.AsyncHTTPTransport(uds=str(path))
        async with httpx2.AsyncClient(transport=transport, trust_env=False, timeout=_ASK_SECONDS) as http:
            answer = await self._get(http, "http://node/healthz")
        return replace(answer, url=f"unix:{path}") if answer.has("runtime") else None

    async def node_urls(self) -> list[str]:
        """Where the node on this machine is asked, if it runs. With TLS nobody is answered without a certificate."""
        listen = self.node_listen
        hosts = [listen.host] if isinstance(listen, OnAddress) else ["127.0.0.1"]
        if isinstance(listen, OnTailnet):
            status, _ = await asyncio.gather(self.tailscale_or_none(), self.edge())
            hosts += status.addresses if status is not None else ()
        found = [f"http://{bracketed(host)}:{listen.port}" for host in hosts]
        # `up` gives its node another port, and only its edge knows which.
        dialled = [str(row.get("url", "")) for row in await self.nodes()]
        found += [url.replace("ws", "http", 1).removesuffix("/link") for url in dialled if url.startswith("ws://127.")]
        return list(dict.fromkeys(found))

    async def get(self, url: str, headers: Mapping[str, str] | None = None, seconds: float = _ASK_SECONDS) -> Answer:
        """Never raises."""
        return await self._get(self._http, url, headers, seconds)

    async def _get(
        self,
        http: httpx2.AsyncClient,
        url: str,
        headers: Mapping[str, str] | None = None,
        seconds: float = _ASK_SECONDS,
    ) -> Answer:
        try:
            response = await http.get(url, headers=dict(headers or {}), timeout=seconds)
        except httpx2.TimeoutException:
            return Answer(url, trouble=f"silent for {seconds:g} s", silent=True)
        except (httpx2.TransportError, httpx2.InvalidURL, OSError) as error:
            return Answer(url, trouble=_why(error))
        return _answer(url, response)

    async def edge_process(self) -> int:
        """The process that holds the lock of the edge's database; 0 where the system does not tell, or nobody does."""

        def read() -> int:
            try:
                lock = (self.state / "edge.db.lock").stat()
                rows = Path("/proc/locks").read_text()
            except OSError:
                return 0
            # Another file system may have a file of the same number.
            device = f"{os.major(lock.st_dev):02x}:{os.minor(lock.st_dev):02x}"
            found = re.search(rf"FLOCK +ADVISORY +WRITE +(\d+) +{device}:{lock.st_ino} ", rows)
            return int(found[1]) if found else 0

        return await self._once("process", lambda: in_thread(read))

    # -- its tailscaled -------------------------------------------------------------------------------------------

    async def local(self) -> LocalClient:
        """Stays this object's."""
        if self._local is None:
            from shared.tailscale.client import LocalClient

            self._local = LocalClient(self.settings.tailscale.socket)
        return self._local

    async def tailscale(self) -> Status:
        """Raises TailscaleError."""

        async def ask() -> Status:
            return await (await self.local()).status()

        return await self._once("tailscale", ask)

    async def tailscale_or_none(self) -> Status | None:
        """Without a reason for why there is none."""
        from shared.tailscale.errors import TailscaleError

        try:
            return await self.tailscale()
        except TailscaleError:
            return None

    async def away(self) -> TailscaleError | None:
        """Why this machine is not in its tailnet; None when it is."""
        from shared.tailscale.errors import TailscaleError

        try:
            return (await self.tailscale()).problem
        except TailscaleError as error:
            return error

    async def addresses(self) -> dict[str, str]:
        """This machine's own addresses with the interface of each, without loopback and without those of one cable
        only."""

        def read() -> dict[str, str]:
            found = {text: name for _, name in socket.if_nameindex() for text in addresses_of(name)}
            parsed = {text: ipaddress.ip_address(text.partition("%")[0]) for text in found}
            return {
                text: name
                for text, name in found.items()
                if not parsed[text].is_loopback and not parsed[text].is_link_local
            }

        return await self._once("addresses", lambda: in_thread(read))

    async def _once(self, name: str, ask: Callable[[], Awaitable[T]]) -> T:
        if name not in self._asked:
            self._asked[name] = asyncio.ensure_future(ask())
        # A probe that is given up takes nobody else's answer away.
        return cast(T, await asyncio.shield(self._asked[name]))


def _masked(value: Any) -> bool:
    return value == "***" or (isinstance(value, list) and "***" in value)


def bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _url(listen: str) -> str:
    host, port = split_listen(listen)
    return f"http://{bracketed(_ANY.get(host, host))}:{port}"


def edge_url(settings: Settings) -> str:
    """Where the edge on this machine is asked by a caller on it."""
    return _url(settings.edge.listen)


def _answer(url: str, response: httpx2.Response) -> Answer:
    try:
        body = response.json()
    except ValueError:
        body = None
    return Answer(url, response.status_code, body if isinstance(body, dict) else None, ahead=_ahead(response))


def _why(error: BaseException) -> str:
    """In the system's words where it was the system."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, socket.gaierror):  # its number is none of the system's errors
            return str(inner.strerror)
        if isinstance(inner, OSError) and inner.errno:
            return os.strerror(inner.errno)
        inner = inner.__cause__ or inner.__context__
    return str(error) or type(error).__name__


def _ahead(response: httpx2.Response) -> float | None:
    try:
        # The header has whole seconds: on average it was half a second later.
        return parsedate_to_datetime(response.headers["date"]).timestamp() + 0.5 - time.time()
    except (KeyError, ValueError):
        return None
