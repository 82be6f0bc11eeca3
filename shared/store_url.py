"""The URL of the server that several edges share, as ``edge.store`` has it. Without the client that will use it."""

from __future__ import annotations

import re
from urllib.parse import parse_qs, urlsplit

_SCHEMES = ("redis", "rediss", "unix")
_OPTIONS = frozenset({"db", "username", "password"})
_TLS_OPTIONS = frozenset({"ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname"})


def check(url: str) -> None:
    """Raises ValueError, with nothing of ``url`` in it: that may be a password with a character that ends it early."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise _no_port() from None
    if parts.scheme not in _SCHEMES or not url.startswith(f"{parts.scheme}://"):
        raise ValueError('is no store: write "sqlite", or the URL of a Redis or Valkey server, redis://HOST:6379/0')
    if port == 0:
        raise _no_port()
    if parts.fragment:
        raise ValueError("has a # in it: write %23 where a password has one")
    given = parse_qs(parts.query, keep_blank_values=True)
    known = _OPTIONS | (_TLS_OPTIONS if parts.scheme == "rediss" else frozenset())
    if not given.keys() <= known:
        raise ValueError(f"has an option after ? that there is not: there are {', '.join(sorted(known))}")
    _check_database(parts.scheme, parts.path, given.get("db"))


def _check_database(scheme: str, path: str, option: list[str] | None) -> None:
    if scheme == "unix" and not path.startswith("/"):
        raise ValueError("names no socket: write unix:///run/redis/redis.sock")
    named = [*(option or ()), *([path[1:]] if scheme != "unix" and len(path) > 1 else [])]
    if not all(re.fullmatch(r"[0-9]{1,9}", name) for name in named):
        example = "unix:///run/redis/redis.sock?db=0" if scheme == "unix" else "redis://HOST:6379/0"
        raise ValueError(f"names a database that is no number: write {example}")


def _no_port() -> ValueError:
    return ValueError("has a port that is no number from 1 to 65535: write redis://HOST:6379/0")
