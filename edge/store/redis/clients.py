"""What the URL of a store stands for: its name for people, and redis-py's clients.

RESP2, and nothing sent that was not asked for: a user with few rights is enough.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

from redis.asyncio import ConnectionPool
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

_OPTIONS: Mapping[str, Any] = MappingProxyType(
    {"socket_timeout": None, "decode_responses": True, "protocol": 2, "driver_info": None}
)


def name_of(url: str) -> str:
    """Where ``url`` leads, without user and password."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return parts.path
    try:
        port = parts.port or 6379
    except ValueError:
        return "of edge.store"
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname or "localhost"
    return f"{host}:{port}"


def pool(url: str, connections: int, connect_seconds: float) -> ConnectionPool:
    """Closed by whoever is given it. Waiting is bounded by who calls, and the library itself tries nothing twice."""
    return ConnectionPool.from_url(
        url,
        max_connections=connections,
        socket_connect_timeout=connect_seconds,
        retry=Retry(NoBackoff(), 0),
        **_OPTIONS,
    )


def cluster(url: str, connections: int, connect_seconds: float) -> RedisCluster:
    """As ``pool``; it looks once where the keys have gone."""
    return RedisCluster.from_url(
        url,
        max_connections=connections,
        socket_connect_timeout=connect_seconds,
        retry=Retry(NoBackoff(), 1),
        require_full_coverage=False,
        **_OPTIONS,
    )
