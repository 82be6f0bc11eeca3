"""Listen addresses, origins and URLs as settings name them: read, checked, judged. Pure, no name is looked up."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import SplitResult, urlsplit

# CGNAT range of a tailnet's IPv4 addresses and its IPv6 prefix (tailscale.com/kb/1033, kb/1121).
_TAILNET = (ipaddress.ip_network("100.64.0.0/10"), ipaddress.ip_network("fd7a:115c:a1e0::/48"))
_DEFAULT_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}
_HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?")


def split_listen(text: str) -> tuple[str, int]:
    """``"127.0.0.1:8700"`` or ``"[::1]:8700"`` as host (no brackets) and port; port 0 asks the system for a free one.

    Raises ValueError with a sentence.
    """
    host, colon, port = text.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not colon or not (port.isascii() and port.isdigit()) or int(port) > 65535 or not _is_host(bare, host):
        raise ValueError('is not an address to listen on: write "127.0.0.1:8700" or "[::1]:8700"')
    return bare, int(port)


def _is_host(bare: str, written: str) -> bool:
    try:
        return (ipaddress.ip_address(bare).version == 6) == written.startswith("[")
    except ValueError:
        return bare == written and _HOST_NAME.fullmatch(bare) is not None


def is_loopback(host: str) -> bool:
    """Whether ``host`` can only be this machine: a loopback address, or the name localhost."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def is_tailnet(host: str) -> bool:
    """Whether ``host`` is an address of a tailnet, or a MagicDNS name."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host.lower().endswith(".ts.net")
    return any(address in network for network in _TAILNET)


def split_url(text: str, *schemes: str) -> SplitResult:
    """``text`` as a URL of one of ``schemes`` with a host and without user, password, query or fragment.

    Raises ValueError with a sentence that does not repeat the URL, which may hold a password.
    """
    wanted = " or ".join(f"{scheme}://" for scheme in schemes)
    try:
        url = urlsplit(text)
        host, _ = url.hostname, url.port
    except ValueError:
        raise ValueError(f"is not a URL: write {wanted}HOST:PORT") from None
    if url.scheme not in schemes or not host or re.search(r"[\s\x00-\x1f\x7f]", text):
        raise ValueError(f"is not a URL that works here: write {wanted}HOST:PORT")
    if "@" in url.netloc:
        raise ValueError("holds a user name or password: take it out of the URL and use the token or key setting")
    if url.query or url.fragment:
        raise ValueError("holds a query or fragment: end the URL at its path")
    return url


def origin(text: str) -> str:
    """``text`` when it is exactly what a browser sends as Origin. Raises ValueError that shows the exact form."""
    try:
        url = urlsplit(text)
        host, port = url.hostname, url.port
    except ValueError:
        host, port, url = None, None, urlsplit("")
    if not url.scheme or not host or "@" in url.netloc or "*" in text:
        raise ValueError('is not an origin: write scheme, host and port, such as "https://app.example.com"')
    bracketed = f"[{host}]" if ":" in host else host
    exact = f"{url.scheme}://{bracketed}"
    if port is not None and _DEFAULT_PORTS.get(url.scheme) != port:
        exact += f":{port}"
    if text != exact:
        raise ValueError(f"is not what a browser sends as its origin: write {exact!r}")
    return text


def network(text: str) -> str:
    """``text`` when it is an IP address or a network such as ``"10.0.0.0/8"``. Raises ValueError, also for one that
    holds every address."""
    try:
        prefix = ipaddress.ip_network(text, strict=False).prefixlen
    except ValueError:
        raise ValueError('is neither an IP address nor a network: write "10.1.2.3" or "10.0.0.0/8"') from None
    if prefix == 0:
        raise ValueError("is every address: any caller could choose theirs. List your proxies only")
    return text
