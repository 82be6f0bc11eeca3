"""``python -m edge``: run the edge until SIGTERM or SIGINT."""

from __future__ import annotations

import functools
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from loguru import logger

from edge.app import Edge, run_edge
from edge.doubts import doubts
from edge.site import SiteError
from edge.store.errors import StoreError
from shared import process
from shared.audit_sink import AuditError
from shared.logs import Logs
from shared.settings import Settings


@asynccontextmanager
async def _serve(settings: Settings, logs: Logs, *, patient: bool) -> AsyncIterator[Edge]:
    for sentence in doubts(settings):
        logger.warning(sentence)
    async with run_edge(settings, logs.audit, patient=patient) as edge:
        edge.services.metrics.gauge("log_lines_dropped", "Log lines lost since the start", lambda: logs.dropped)
        logger.info("edge listens on {}, operations on {}", edge.public.url, edge.ops.url)
        yield edge


def main(settings: Settings | None = None, *, patient: bool = True) -> int:
    """The exit status, as ``shared.process.run`` gives it; ``patient`` as for ``run_edge``."""
    serve = functools.partial(_serve, patient=patient)
    return process.run("edge", serve, (AuditError, SiteError, StoreError), settings)


if __name__ == "__main__":
    sys.exit(main())
