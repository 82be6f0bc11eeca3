"""The names that callers may use for this edge: what stands in ``Host`` of a request.

A page of the internet can make its own name lead to 127.0.0.1 (DNS rebinding) and then call what listens there as if it
were its own server. It cannot change the name, which the browser writes into ``Host``.
"""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import urlsplit

from shared.addresses import is_address, is_loopback


def names_of(hosts: Iterable[str], public_url: str | None = None) -> set[str]:
    """The names that settings allow: ``hosts``, and the one of ``public_url``."""
    return {name_in(host) for host in (*hosts, *([urlsplit(public_url).netloc] if public_url is not None else ()))}


class Hosts:
    """``names`` in lower case and without a port. ``loopback_only`` for what is open to this machine alone: ``names``
    and those of loopback. Else the names, or any where there are none, and every address: no page can have one for its
    name."""

    def __init__(self, names: Iterable[str], *, loopback_only: bool = False) -> None:
        self._names = frozenset(names)
        self._any = not self._names and not loopback_only
        self._loopback_only = loopback_only

    def admits(self, host: bytes | None) -> bool:
        """Whether a request with this ``Host`` may come in, None for one without, as HTTP/1.0 allows."""
        if self._any:
            return True
        if host is None:
            return not self._loopback_only  # no browser leaves it out, and nobody spoofs with nothing
        name = name_in(host.decode("latin-1"))
        if name in self._names or is_loopback(name):
            return True
        return not self._loopback_only and is_address(name)


def name_in(host: str) -> str:
    """The name or address in ``Host``, in lower case, without port, brackets and the dot of the root."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].rstrip(".").lower()
