"""The conversations that the settings ask for."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from node.conversations.conversation import Bounds, Storage
from node.conversations.conversations import Conversations
from node.conversations.memory import MemoryStorage

if TYPE_CHECKING:
    from shared.settings import ConversationSettings

_FILE = "conversations.db"


@asynccontextmanager
async def opened(settings: ConversationSettings, folder: Path) -> AsyncIterator[Conversations | None]:
    """Conversations for as long as the block runs, in ``folder`` where they are to last; None where there are to be
    none. Raises StateError."""
    if settings.keep == "off":
        yield None
        return
    bounds = Bounds(settings.lifetime, settings.per_caller, settings.max_size, settings.max_total)
    storage: Storage
    if settings.keep == "sqlite":
        from node.conversations.sqlite import SQLiteStorage  # not for those who keep nothing

        storage = await SQLiteStorage.open(folder / _FILE, bounds)
    else:
        storage = MemoryStorage(bounds)
    try:
        yield Conversations(storage, settings.max_message)
    finally:
        await storage.close()
