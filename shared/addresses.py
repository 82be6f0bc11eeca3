"""Listen addresses, origins and URLs as settings name them: read, checked, judged. Pure, no name is looked up."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

# CGNAT range of a tailnet's IPv4 addresses and its IPv6 prefix (tailscale.com/kb/1033, kb/1121).
_TAILNET = (ipaddress.ip_network("100.64.0.0/10"), ipaddress.ip_network("fd7a:115c:a1e0::/48"))
_DEFAULT_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}
# Where a node listens, unless told otherwise, and where an edge dials it.
NODE_PORT = 8001
# What Linux takes for the name of a network interface (dev_valid_name), less what nobody uses.
_INTERFACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}")
# MagicDNS names, whole or their first part, and tags as a policy writes them.
_MEMBER = re.compile(r"tag:[A-Za-z][A-Za-z0-9-]{0,62}|[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?\.?")
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


@dataclass(frozen=True, slots=True)
class OnAddress:
    """One address, which is this machine's own loopback."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class OnTailnet:
    """Whatever addresses this machine has in its tailnet. ``certain`` False: only where tailscaled answers."""

    port: int
    certain: bool = True


@dataclass(frozen=True, slots=True)
class OnInterface:
    """Whatever addresses the network interface ``name`` has."""

    name: str
    port: int


def parse_node_listen(text: str) -> OnAddress | OnTailnet | OnInterface:
    """``"auto"``, ``"tailnet"``, ``"interface:wg0"``, each of the two with ``:PORT`` where it is another one, or an
    address as ``split_listen`` reads it. Raises ValueError with a sentence, also for an address that is not loopback:
    the others are found, never written down."""
    if text == "auto":
        return OnTailnet(NODE_PORT, certain=False)
    kind, _, rest = text.partition(":")
    if kind == "tailnet":
        return OnTailnet(_port(rest))
    if kind == "interface":
        name, colon, port = rest.partition(":")
        if not _INTERFACE.fullmatch(name) or (colon and not port):
            raise ValueError('is not the name of a network interface: write "interface:wg0"')
        return OnInterface(name, _port(port))
    host, number = split_listen(text)
    if is_tailnet(host):
        raise ValueError('is an address of the tailnet, which may change: write "tailnet" to listen on all of them')
    if not is_loopback(host):
        raise ValueError(
            "is not loopback: the node would be open to a network without knowing who calls; write 127.0.0.1:8001,"
            ' "tailnet", or "interface:NAME" with certificates'
        )
    return OnAddress(host, number)


def _port(text: str) -> int:
    if text and not (text.isascii() and text.isdigit() and 0 < int(text) < 65536):
        raise ValueError('has no port behind its last colon: write a number, such as "tailnet:8001"')
    return int(text) if text else NODE_PORT


def member(text: str) -> str:
    """``text`` when it can name a machine of the tailnet: a MagicDNS name or its first part, ``"tag:gpu"``, or an
    address of a tailnet. Raises ValueError."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        if not _MEMBER.fullmatch(text):
            raise ValueError('is no machine of a tailnet: write its name, "tag:gpu", or its address') from None
        return text
    if not is_tailnet(str(address)):
        raise ValueError("is not an address of a tailnet: write the machine's name, or use url for other networks")
    return str(address)


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


def is_address(host: str) -> bool:
    """Whether ``host`` is an IP address, without brackets, and no name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


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


def https_or_loopback(text: str) -> str:
    """``text`` when it is a URL that nobody on the way can answer for: https, or http on this machine. Raises
    ValueError with a sentence."""
    url = split_url(text, "https", "http")
    if url.scheme == "http" and not is_loopback(url.hostname or ""):
        raise ValueError("is not encrypted: write https://")
    return text


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


def origin_of(url: SplitResult) -> str:
    """What a browser sends as the origin of a page at ``url``: small letters, no default port."""
    host = f"[{url.hostname}]" if ":" in (url.hostname or "") else url.hostname
    default = _DEFAULT_PORTS.get(url.scheme)
    return f"{url.scheme}://{host}" + (f":{url.port}" if url.port not in (None, default) else "")


def host_name(text: str) -> str:
    """A name or address as it stands in ``Host``, in lower case and without a port. Raises ValueError."""
    name = text.lower()
    bare = name[1:-1] if name.startswith("[") and name.endswith("]") else name
    if not _is_host(bare, name):
        raise ValueError("is no name of a host: write it without scheme and port, such as chat.example.org")
    return name


def network(text: str) -> str:
    """``text`` when it is an IP address or a network such as ``"10.0.0.0/8"``. Raises ValueError, also for one that
    holds every address."""
    try:
        prefix = ipaddress.ip_network(text, strict=False).prefixlen
    except ValueError:
        raise ValueError('is neither an IP address nor a network: write "10.1.2.3" or "10.0.0.0/8"') from None
    if prefix == 0:
        raise ValueError("is every address, so that the list would be none: write only those that are meant")
    return text
