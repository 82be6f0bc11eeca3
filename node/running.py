"""The answers that run here now, by chat id, so that their owner can stop them from another connection."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from shared.interrupt import Interrupt


class Stopped(Exception):
    """The owner asked to end the answer: what was said so far stands, and the stream ends cleanly."""


class Running:
    def __init__(self) -> None:
        self._chats: dict[str, tuple[str, Interrupt]] = {}

    def __len__(self) -> int:
        return len(self._chats)

    @contextmanager
    def entry(self, chat_id: str, principal: str, interrupt: Interrupt) -> Iterator[None]:
        self._chats[chat_id] = (principal, interrupt)
        try:
            yield
        finally:
            self._chats.pop(chat_id, None)

    def stop(self, chat_id: str, principal: str) -> bool:
        """End a chat early; False when it does not run here or is somebody else's, which look alike on purpose."""
        owner, interrupt = self._chats.get(chat_id, (None, None))
        if interrupt is None or owner != principal:
            return False
        interrupt.end_with(Stopped())
        return True
