"""Open files, which connections are: as many as the system allows, and some of them kept for operations."""

from __future__ import annotations

import contextlib
import resource
from typing import Any

# Kept for the operations listener (health, metrics, admin), for links to nodes and for the store: some tens, and of a
# small limit an eighth, so that callers still have most of it.
_RESERVE = 64
_SHARE = 8
# As systemd and kernels allow by default. Containers may allow a thousand times that, which is slow for programs that
# are started from here and close all descriptors one by one.
_MOST = 1 << 20


def raise_limit() -> None:
    """Allow this process as many open files as the system lets it have. The lower limit that processes start with is
    for programs that use select(2), which nothing here does with connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST if hard == resource.RLIM_INFINITY else min(hard, _MOST)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # macOS says unlimited and means less
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def scarce(transport: Any) -> bool:
    """Whether a connection that was just accepted has one of the last descriptors, which are kept for operations.

    The system gives the lowest one that is free, so its number tells how many are in use, and asking costs nothing.
    """
    sock = transport.get_extra_info("socket")
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if sock is None or soft == resource.RLIM_INFINITY:
        return False
    return sock.fileno() >= soft - min(_RESERVE, soft // _SHARE)
