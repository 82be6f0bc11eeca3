"""A deployable as a process: settings, log, event loop, signals, exit status."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import uvloop
from loguru import logger

from shared.asgi.listener import CannotListen
from shared.asgi.server import until_signalled
from shared.garbage import settle_garbage
from shared.logs import Logs, configure
from shared.settings import Settings, SettingsError, load_settings
from shared.state import StateError
from shared.tls import TlsError


class Deployable(Protocol):
    """What serves: it can read its settings again, and let running answers finish."""

    def reload(self) -> None: ...
    async def drain(self) -> None: ...


# Starts the deployable, and closes it when the block is left.
Serve = Callable[[Settings, Logs], AbstractAsyncContextManager[Deployable]]


def run(name: str, serve: Serve, refusals: tuple[type[Exception], ...], settings: Settings | None = None) -> int:
    """Serve until SIGTERM or SIGINT; the exit status: 0 after a drain, 78 when something must be mended first (a wrong
    configuration is not worth a restart by a supervisor). ``refusals`` are the errors of ``serve`` that say in a
    sentence what that is, beside those that every deployable has."""
    try:
        settings = settings or load_settings()
        logs = configure(settings.logs.level, settings.logs.format)
    except SettingsError as error:
        print(f"hearthlink {name}: {error}", file=sys.stderr)
        return os.EX_CONFIG
    try:
        uvloop.run(_run(serve, settings, logs))
    except (CannotListen, SettingsError, StateError, TlsError, *refusals) as error:
        logger.error("the {} cannot start: {}", name, error)
        return os.EX_CONFIG
    finally:
        logs.close()
    return os.EX_OK


async def _run(serve: Serve, settings: Settings, logs: Logs) -> None:
    settle_garbage()
    async with serve(settings, logs) as deployable:
        await until_signalled(deployable.drain, deployable.reload)
