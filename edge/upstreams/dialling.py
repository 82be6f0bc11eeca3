"""One attempt to open a link, and how it failed in the terms of ``reach``."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field

import aiohttp

from edge.upstreams.reach import Failure, Kind
from shared.link.transports import DIAL_WITHIN, DialledTransport, DialRefused
from shared.tls import refusal

_KINDS: Mapping[int, Kind] = {
    errno.ECONNREFUSED: "refused",
    errno.ENETUNREACH: "unreachable",
    errno.EHOSTUNREACH: "unreachable",
    errno.EADDRNOTAVAIL: "unreachable",
    errno.ETIMEDOUT: "timeout",
}
_BAD_GATEWAY = 502  # what tailscaled's proxy says when it could not connect


@dataclass(frozen=True, slots=True)
class Place:
    """Where a node is now. ``proxy`` is tailscaled's, in userspace networking."""

    url: str
    proxy: str | None = None
    tls: ssl.SSLContext | None = field(default=None, repr=False)


class Unreached(Exception):
    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.kind)
        self.failure = failure


async def dial(client: aiohttp.ClientSession, place: Place, token: str) -> DialledTransport:
    """A link to the node at ``place``, which the caller closes. Raises Unreached."""
    try:
        async with asyncio.timeout(DIAL_WITHIN):
            return await DialledTransport.dial(client, place.url, token, proxy=place.proxy, tls=place.tls)
    except DialRefused as refused:
        if place.proxy is not None and refused.status == _BAD_GATEWAY:
            raise Unreached(Failure("refused")) from None
        raise Unreached(Failure("status", status=refused.status)) from None
    except TimeoutError:
        raise Unreached(Failure("timeout", seconds=DIAL_WITHIN)) from None
    except (aiohttp.ClientError, OSError) as error:
        raise Unreached(_failure(error, place)) from None
    except ValueError:  # of the codec for host names, among others
        raise Unreached(Failure("name", detail="it is not a valid address")) from None


def _failure(error: aiohttp.ClientError | OSError, place: Place) -> Failure:
    if isinstance(error, aiohttp.ClientProxyConnectionError):
        return Failure("proxy")
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        cause = error.certificate_error
    if isinstance(cause, socket.gaierror):  # its numbers are not those of errno
        return Failure("name", detail=cause.strerror or "its host is not known")
    if isinstance(cause, ssl.SSLError):
        return Failure("tls", detail=refusal(cause))
    if place.tls is not None and isinstance(cause, aiohttp.ServerDisconnectedError | ConnectionResetError):
        # With TLS 1.3 a client has done with the handshake before the other side looks at its certificate.
        return Failure(
            "tls", detail="it hung up right after it, as when it does not accept our certificate; its log says why"
        )
    number = cause.errno if isinstance(cause, OSError) else None
    kind = _KINDS.get(number or 0, "other")
    detail = os.strerror(number) if number else type(cause).__name__
    return Failure(kind, detail=detail, seconds=DIAL_WITHIN)
