"""One question to tailscaled, one typed answer.

    async with LocalClient() as client:
        caller = await client.whois("100.64.0.7", 51234)

Every method raises TailscaleError: Unreachable, NotAnswering and UnexpectedAnswer always, others where it says so.
Paths and fields are those of tailscale v1.102.3, ``ipn/localapi``.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self
from urllib.parse import quote

from shared.tailscale.bus import Mask, Notification, read_notifications
from shared.tailscale.errors import NotRunning, Refused, UnexpectedAnswer
from shared.tailscale.metrics import Metrics
from shared.tailscale.ping import Kind, Ping
from shared.tailscale.prefs import Prefs, changed
from shared.tailscale.refusals import Answer
from shared.tailscale.serve import Config, ServeConfig
from shared.tailscale.socket import find
from shared.tailscale.status import Status
from shared.tailscale.transport import Transport
from shared.tailscale.whois import WhoIs

_API = "/localapi/v0/"
# Seconds. A booting tailscaled accepts and says nothing, and nobody here should wait long for it.
_WITHIN = 3.0
_PING_WITHIN = 6.0  # tailscaled itself waits for ever; a lost handshake is repeated after 5
_CERTIFICATE_WITHIN = 180.0  # the first one is negotiated with the certificate authority
_CERTIFICATE = b"-----BEGIN CERTIFICATE-----"


@dataclass(frozen=True, slots=True)
class Certificate:
    """PEM: the private key, and the certificate with its chain."""

    key: bytes = field(repr=False)
    chain: bytes


class LocalClient:
    """``socket`` is a path, where tailscaled does not listen at its platform's usual place. An async context manager;
    whoever makes it closes it."""

    def __init__(self, socket: str = "", *, seconds: float = _WITHIN) -> None:
        self._transport = Transport(functools.partial(find, socket), seconds)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._transport.close()

    @property
    def capability_version(self) -> int:
        """Of the tailscaled that answered last: 141 is 1.100, 142 is 1.102; 0 before the first answer."""
        return self._transport.capability_version

    async def ready(self) -> bool:
        """Whether tailscaled has begun to answer, told at once even while it starts."""
        try:
            await self._transport.request("GET", "/server-status")
        except NotRunning:
            return False
        return True

    async def status(self, *, peers: bool = True) -> Status:
        query = None if peers else {"peers": "false"}
        return Status.read((await self._get("status", query)).json())

    async def whois(self, host: str, port: int = 0, *, protocol: str = "") -> WhoIs | None:
        """Who has the address; None is nobody in the tailnet. In userspace networking callers come from 127.0.0.1,
        and only while a connection lives and with its ``port`` and ``protocol`` ("tcp") can be told whose it is."""
        address = (f"[{host}]:{port}" if ":" in host else f"{host}:{port}") if port else host
        query = {"addr": address, **({"proto": protocol} if protocol else {})}
        try:
            found = WhoIs.read((await self._get("whois", query)).json())
        except Refused as error:
            if error.status == 404:
                return None
            raise
        if not found.node.id:
            raise UnexpectedAnswer("tailscaled knows the caller and did not say who it is.")
        return found

    async def ping(self, address: str, kind: Kind = "disco", *, seconds: float = _PING_WITHIN) -> Ping:
        """NotAnswering is also a peer that does not answer."""
        query = {"ip": address, "type": kind}
        answer = await self._transport.request("POST", f"{_API}ping", query=query, seconds=seconds)
        return Ping.read(answer.json())

    async def prefs(self) -> Prefs:
        return Prefs.read((await self._get("prefs")).json())

    async def change_prefs(self, **fields: object) -> Prefs:
        """``change_prefs(ShieldsUp=False)``: fields as tailscaled names them; the others stay. Raises NotAllowed."""
        answer = await self._transport.request("PATCH", f"{_API}prefs", body=changed(**fields), right="write")
        return Prefs.read(answer.json())

    async def serve_config(self) -> ServeConfig:
        answer = await self._get("serve-config")
        etag = answer.headers.get("etag", "")
        if not etag:  # without it a change would overwrite whatever is there
            raise UnexpectedAnswer("tailscaled does not say which version of the serve configuration it has.")
        return ServeConfig(answer.json(), etag)

    async def set_serve_config(self, config: Config, etag: str) -> None:
        """Replace the whole configuration if it is still the one with ``etag``; ``serve.edit`` is the way to change a
        part. Raises Changed, NotAllowed, NotRunning, and Refused where tailscaled finds fault with it."""
        if not etag:
            raise ValueError("the ETag of the configuration that is replaced is needed")
        await self._transport.request(
            "POST", f"{_API}serve-config", body=config, headers={"If-Match": etag}, right="write"
        )

    async def certificate(self, name: str, *, valid_for_hours: int = 0) -> Certificate:
        """For one of ``Status.certificate_names``. The first takes up to some minutes. Raises NotAllowed, NotSupported,
        RateLimited, Refused."""
        query = {"type": "pair", **({"min_validity": f"{valid_for_hours}h"} if valid_for_hours else {})}
        answer = await self._transport.request(
            "GET", f"{_API}cert/{quote(name, safe='')}", query=query, right="cert", seconds=_CERTIFICATE_WITHIN
        )
        at = answer.body.find(_CERTIFICATE)
        if at <= 0:
            raise UnexpectedAnswer("tailscaled's answer is not a key with a certificate.")
        return Certificate(answer.body[:at], answer.body[at:])

    async def metrics(self) -> Metrics:
        return Metrics.read((await self._get("usermetrics")).text)

    @asynccontextmanager
    async def watch(self, mask: Mask) -> AsyncIterator[AsyncIterator[Notification]]:
        """What happens, as it happens; it ends with an error, Unreachable or Refused, and never by itself. Read it
        quickly: tailscaled ends it for a reader that falls behind."""
        async with self._transport.stream(f"{_API}watch-ipn-bus", {"mask": str(int(mask))}) as pieces:
            yield read_notifications(pieces)

    async def _get(self, name: str, query: dict[str, str] | None = None) -> Answer:
        return await self._transport.request("GET", _API + name, query=query)
