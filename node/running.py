"""The answers that run here now, by chat id, so that their owner can stop them from another connection."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from shared.interrupt import Interrupt


class Stopped(Exception):
    """The owner asked to end the answer: what was said so far stands, and the stream ends cleanly."""


class Running:
    def __init__(self) -> None:
        self._chats: dict[str, tuple[str, Interrupt, Callable[[], bool]]] = {}

    def __len__(self) -> int:
        return len(self._chats)

    @contextmanager
    def entry(self, chat_id: str, principal: str, interrupt: Interrupt, begun: Callable[[], bool]) -> Iterator[None]:
        """``begun`` says whether anything of the answer has left."""
        self._chats[chat_id] = (principal, interrupt, begun)
        try:
            yield
        finally:
            self._chats.pop(chat_id, None)

    def stop(self, chat_id: str, principal: str) -> bool:
        """End a chat early; False when it does not run here or is somebody else's, which look alike on purpose."""
        owner, interrupt, _ = self._chats.get(chat_id, (None, None, None))
        if interrupt is None or owner != principal:
            return False
        interrupt.end_with(Stopped())
        return True

    def end_all(self, error: Callable[[bool], Exception]) -> None:
        """End every chat, each with an error of its own; ``error`` hears whether anything of the answer has left."""
        for _, interrupt, begun in list(self._chats.values()):
            interrupt.end_with(error(begun()))
