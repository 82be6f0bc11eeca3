"""``python -m node``: run the node until SIGTERM or SIGINT."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from node.app import Node, run_node
from node.prompts import BrokenChatType
from shared import process
from shared.logs import Logs
from shared.settings import Settings
from shared.tls import TlsError


@asynccontextmanager
async def _serve(settings: Settings, logs: Logs) -> AsyncIterator[Node]:
    async with run_node(settings) as node:
        yield node


def main(settings: Settings | None = None) -> int:
    """The exit status, as ``shared.process.run`` gives it."""
    return process.run("node", _serve, (BrokenChatType, TlsError), settings)


if __name__ == "__main__":
    sys.exit(main())
