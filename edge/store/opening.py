"""The store that the settings name, for a running edge and for whoever manages it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from loguru import logger

from edge.store.admin import Admin
from edge.store.errors import StoreNotYet
from edge.store.store import Store
from shared.settings import Settings
from shared.state import StateDir

SQLITE = "sqlite"
# Seconds between two tries to open it.
_TRY_EVERY = 1.0
# Seconds past a request's deadline after which its reservation counts as abandoned.
_USAGE_WITHIN = 60.0


def store_from(settings: Settings, state: StateDir) -> Store:
    """The edge's store, not open yet; the caller opens and closes it."""
    configured = settings.edge
    url = configured.store.get_secret_value()
    if url == SQLITE:
        from edge.store.sqlite.store import SQLiteStore

        return SQLiteStore(
            state,
            requests_per_minute_per_ip=configured.requests_per_minute_per_ip,
            abandoned_after=abandoned_after(settings),
        )
    from edge.store.redis.store import RedisStore  # an edge of its own has nothing to do with it

    return RedisStore(
        url,
        requests_per_minute_per_ip=configured.requests_per_minute_per_ip,
        abandoned_after=abandoned_after(settings),
        without_store=configured.without_store,
        budget=configured.store_timeout,
    )


async def open_patiently(store: Store) -> None:
    """Open it. At boot its server may come later than this machine, and in a restart the edge before may still be
    finishing its answers: one line says what is waited for. Raises StoreError and StateError."""
    clock = asyncio.get_running_loop().time
    began, told = clock(), False
    while True:
        try:
            await store.open()
            return
        except StoreNotYet as error:
            if clock() - began >= error.patience:
                raise
            if not told:
                until = f"for {error.patience:.0f} s" if math.isfinite(error.patience) else "until it answers"
                logger.warning("{} It is tried again every second, {}.", error, until)
                told = True
        await asyncio.sleep(_TRY_EVERY)


@asynccontextmanager
async def admin_from(settings: Settings, state: StateDir) -> AsyncIterator[Admin]:
    """What the owner manages the edge's store with, while the block runs. Raises StoreError."""
    url = settings.edge.store.get_secret_value()
    if url == SQLITE:
        from edge.store.sqlite.admin import SQLiteAdmin

        admin = SQLiteAdmin(state)
    else:
        from edge.store.redis.admin import RedisAdmin

        admin = RedisAdmin(url)
    try:
        await admin.open()
        yield admin
    finally:
        await admin.close()


def abandoned_after(settings: Settings) -> float:
    """``Store.abandoned_after`` for these settings."""
    return settings.edge.request_timeout + _USAGE_WITHIN
