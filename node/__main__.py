"""``python -m node``: run the node until SIGTERM or SIGINT."""

from __future__ import annotations

import sys

import uvloop
from loguru import logger

from node.app import run_node
from node.prompts import BrokenChatType
from shared.asgi.server import CannotListen, until_signalled
from shared.garbage import settle_garbage
from shared.logs import configure
from shared.settings import Settings, SettingsError, load_settings
from shared.state import StateError

# sysexits.h: a wrong configuration is not worth a restart by a supervisor.
EX_CONFIG = 78


async def _run(settings: Settings) -> None:
    settle_garbage()
    async with run_node(settings) as node:
        logger.info("node listens on {}", node.listener.url)
        await until_signalled(node.drain, node.reload)


def main(settings: Settings | None = None) -> int:
    """The exit status: 0 after a drain, 78 when something must be mended first."""
    try:
        settings = settings or load_settings()
        logs = configure(settings.logs.level, settings.logs.format)
    except SettingsError as error:
        print(f"hearthlink node: {error}", file=sys.stderr)
        return EX_CONFIG
    try:
        uvloop.run(_run(settings))
    except (CannotListen, BrokenChatType, StateError) as error:
        logger.error("the node cannot start: {}", error)
        return EX_CONFIG
    finally:
        logs.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
