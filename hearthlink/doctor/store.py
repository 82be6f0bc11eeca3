"""The group limits, where edges share a store: that its server answers, is quick, and keeps what it counts."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from urllib.parse import urlsplit

from hearthlink.doctor.limits import LIMITS, plans_gone
from hearthlink.doctor.machine import Machine
from hearthlink.doctor.probes import Probe
from hearthlink.doctor.report import Line
from shared import addresses

_SECONDS = 8.0
_OPEN_SECONDS = 3.0
# Round trips of which the quickest is the network's; the others may have waited for this machine.
_TRIPS = 5


def probes(machine: Machine) -> list[Probe]:
    return [Probe(LIMITS, "store", lambda: store(machine), _SECONDS)]


async def store(machine: Machine) -> Sequence[Line]:
    url = machine.settings.edge.store.get_secret_value()
    if not machine.has_edge or url == "sqlite":
        return []
    from edge.store.errors import StoreError
    from edge.store.redis.scripts import LOOK
    from edge.store.redis.server import NoAnswer, Server

    server = Server(url, _OPEN_SECONDS)
    try:
        await server.open(_OPEN_SECONDS)
        trips: list[float] = []
        for _ in range(_TRIPS):
            began = time.monotonic()
            await server.probe(LOOK, "")
            trips.append(time.monotonic() - began)
        await server.drop_connections()
        began = time.monotonic()
        await server.probe(LOOK, "")
        dial = time.monotonic() - began
        info = await server.info()
        gone = await _plans_gone(machine, url)
    except (StoreError, NoAnswer) as error:
        return [LIMITS.broken("store", str(error), _mend(url, str(error)), "as somebody who may")]
    finally:
        await server.close()
    found = list(_doubts(machine, url, min(trips), dial, info.get("aof_enabled")))
    return [*gone, *(found or [LIMITS.ok("store", f"The store {server.name} answers in {min(trips) * 1000:.1f} ms.")])]


async def _plans_gone(machine: Machine, url: str) -> list[Line]:
    from edge.plans import plans_from
    from edge.store.redis.admin import RedisAdmin

    admin, now = RedisAdmin(url), time.time()
    try:
        await admin.open(make=False)
        keys, invites = await admin.list_keys(), await admin.list_invites()
    finally:
        await admin.close()
    used = Counter(key.plan for key in keys if key.revoked_at is None and (key.expires_at or now + 1) > now)
    used += Counter(invite.plan for invite in invites if invite.living(now) and invite.used < invite.uses)
    return plans_gone(machine, plans_from(machine.settings.plans), used)


def _doubts(machine: Machine, url: str, trip: float, dial: float, journal: object) -> Iterator[Line]:
    from edge.store.redis.server import TURN_BUDGETS

    budget = machine.settings.edge.store_timeout
    if dial > budget * TURN_BUDGETS / 2:
        text = f"A new connection to the store takes {dial * 1000:.0f} ms, and a request waits"
        text += f" {budget * TURN_BUDGETS * 1000:.0f} ms for one at most."
        yield LIMITS.warning("store", text, 'store_timeout = "250ms"', "[edge] of the settings, or move it nearer")
    elif trip > budget / 2:
        text = f"The store needs {trip * 1000:.0f} ms to answer, and a request waits {budget * 1000:.0f} ms at most."
        yield LIMITS.warning("store", text, 'store_timeout = "250ms"', "[edge] of the settings, or move it nearer")
    if journal == 0:
        text = "The store keeps no journal: a restart there forgets what was used, and perhaps keys and revocations."
        yield LIMITS.warning("store", text, f"{client_of(url)} CONFIG SET appendonly yes", "and in its own settings")
    host = urlsplit(url).hostname
    if url.startswith("redis:") and host and not (addresses.is_loopback(host) or addresses.is_tailnet(host)):
        text = f"What the edges and the store at {host} say to each other, signing keys too, can be read on the way."
        yield LIMITS.warning("store", text, 'store = "rediss://…"', "[edge] of the settings, with TLS at the server")


def _mend(url: str, text: str) -> str:
    if "maxmemory-policy" in text:
        return f"{client_of(url)} CONFIG SET maxmemory-policy noeviction"
    return f"{client_of(url)} PING"


def client_of(url: str) -> str:
    """How the server's own client is started, without user and password."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return f"redis-cli -s '{parts.path}'"
    tls = " --tls" if parts.scheme == "rediss" else ""
    return f"redis-cli -h {parts.hostname or 'localhost'} -p {parts.port or 6379}{tls}"
