"""A deployable as a process: settings, log, event loop, signals, what systemd hears, exit status."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import uvloop
from loguru import logger

from shared.asgi.descriptors import raise_limit
from shared.asgi.listener import CannotListen
from shared.garbage import settle_garbage
from shared.interrupt import Interrupt
from shared.logs import Logs, configure
from shared.loop_watch import LoopWatch
from shared.settings import Settings, SettingsError, load_settings
from shared.signals import Signals, StoppedEarly
from shared.state import StateError
from shared.systemd import READY, STOPPING, Notifier
from shared.tls import TlsError


class Deployable(Protocol):
    """What serves: it can read its settings again, and let running answers finish."""

    def reload(self) -> None: ...
    async def drain(self) -> None: ...

    def blocked(self, seconds: float) -> None:
        """The event loop stood still for so long."""
        ...


# Starts the deployable, and closes it when the block is left.
Serve = Callable[[Settings, Logs], AbstractAsyncContextManager[Deployable]]


def run(name: str, serve: Serve, refusals: tuple[type[Exception], ...], settings: Settings | None = None) -> int:
    """Serve until SIGTERM or SIGINT; the exit status: 0 after a drain and for a SIGTERM before it served, 130 for a
    SIGINT then, 78 when something must be mended first (a wrong configuration is not worth a restart by a supervisor).
    ``refusals`` are the errors of ``serve`` that say in a sentence what that is, beside those that every deployable
    has."""
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
    except StoppedEarly as stopped:
        return os.EX_OK if stopped.number == signal.SIGTERM else 128 + stopped.number
    except KeyboardInterrupt:  # before there was a loop
        return 128 + signal.SIGINT
    finally:
        logs.close()
    return os.EX_OK


async def _run(serve: Serve, settings: Settings, logs: Logs) -> None:
    settle_garbage()
    raise_limit()
    notifier = Notifier(os.environ)
    async with contextlib.AsyncExitStack() as stack:
        signals = Signals((await stack.enter_async_context(Interrupt())).end_with)
        deployable = await stack.enter_async_context(serve(settings, logs))

        async def drain() -> None:
            notifier.tell(STOPPING)
            await deployable.drain()

        watch = asyncio.create_task(LoopWatch(deployable.blocked, notifier).run(), name="loop watch")
        notifier.tell(READY)
        try:
            await signals.serve(drain, deployable.reload)
        finally:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)
