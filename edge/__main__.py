"""``python -m edge``: run the edge until SIGTERM or SIGINT."""

from __future__ import annotations

import sys

import uvloop
from loguru import logger

from edge.app import AuditSink, run_edge
from edge.store.database import StoreError
from shared.asgi.server import CannotListen, until_signalled
from shared.garbage import settle_garbage
from shared.logs import configure
from shared.settings import Settings, SettingsError, load_settings
from shared.state import StateError

# sysexits.h: a wrong configuration is not worth a restart by a supervisor.
EX_CONFIG = 78


async def _run(settings: Settings, audit_sink: AuditSink) -> None:
    settle_garbage()
    async with run_edge(settings, audit_sink) as edge:
        logger.info("edge listens on {}, operations on {}", edge.public.url, edge.ops.url)
        await until_signalled(edge.drain, edge.reload)


def main(settings: Settings | None = None) -> int:
    """The exit status: 0 after a drain, 78 when something must be mended first."""
    try:
        settings = settings or load_settings()
        logs = configure(settings.logs.level, settings.logs.format)
    except SettingsError as error:
        print(f"hearthlink edge: {error}", file=sys.stderr)
        return EX_CONFIG
    try:
        uvloop.run(_run(settings, logs.audit))
    except (CannotListen, StateError, StoreError) as error:
        logger.error("the edge cannot start: {}", error)
        return EX_CONFIG
    finally:
        logs.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
