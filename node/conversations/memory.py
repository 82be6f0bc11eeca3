"""Conversations in memory: gone with the process."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from node.conversations.conversation import Bounds, Conversation, Heading, Message

_Key = tuple[str, str]


@dataclass(slots=True)
class _Kept:
    chat_type: str
    created_at: float
    updated_at: float
    messages: list[Message] = field(default_factory=list)
    size: int = 0


class MemoryStorage:
    """A ``Storage``. Ordered by last use, so that what goes first stands first."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._kept: OrderedDict[_Key, _Kept] = OrderedDict()
        self._by_principal: dict[str, OrderedDict[str, None]] = {}
        self._size = 0

    async def read(self, principal: str, id: str) -> Conversation | None:
        kept = self._living((principal, id))
        return None if kept is None else Conversation(_heading(id, kept), tuple(kept.messages))

    async def add(self, principal: str, id: str, chat_type: str, exchange: tuple[Message, Message]) -> None:
        key, now = (principal, id), time.time()
        kept = self._living(key)
        if kept is None:
            kept = self._kept[key] = _Kept(chat_type, now, now)
        kept.chat_type, kept.updated_at = chat_type, now
        kept.messages += exchange
        self._grow(kept, sum(message.size for message in exchange))
        while kept.size > self._bounds.size and len(kept.messages) > len(exchange):
            self._grow(kept, -sum(message.size for message in kept.messages[:2]))
            del kept.messages[:2]
        self._kept.move_to_end(key)
        own = self._by_principal.setdefault(principal, OrderedDict())
        own[id] = None
        own.move_to_end(id)
        if len(own) > self._bounds.per_caller:
            self._remove((principal, next(iter(own))))
        while self._size > self._bounds.total and len(self._kept) > 1:
            self._remove(next(iter(self._kept)))

    async def headings(self, principal: str) -> list[Heading]:
        return [conversation.heading async for conversation in self.every(principal)]

    async def every(self, principal: str) -> AsyncIterator[Conversation]:
        for id in reversed(list(self._by_principal.get(principal, ()))):
            if (conversation := await self.read(principal, id)) is not None:
                yield conversation

    async def forget(self, principal: str, id: str) -> bool:
        there = self._living((principal, id)) is not None
        if there:
            self._remove((principal, id))
        return there

    async def forget_all(self, principal: str) -> int:
        await self.sweep()
        ids = list(self._by_principal.get(principal, ()))
        for id in ids:
            self._remove((principal, id))
        return len(ids)

    async def sweep(self) -> None:
        oldest = time.time() - self._bounds.lifetime
        while self._kept and next(iter(self._kept.values())).updated_at < oldest:
            self._remove(next(iter(self._kept)))

    async def close(self) -> None:
        self._kept.clear()
        self._by_principal.clear()
        self._size = 0

    def _living(self, key: _Key) -> _Kept | None:
        kept = self._kept.get(key)
        if kept is not None and kept.updated_at < time.time() - self._bounds.lifetime:
            self._remove(key)
            return None
        return kept

    def _grow(self, kept: _Kept, size: int) -> None:
        kept.size += size
        self._size += size

    def _remove(self, key: _Key) -> None:
        principal, id = key
        self._size -= self._kept.pop(key).size
        own = self._by_principal[principal]
        del own[id]
        if not own:
            del self._by_principal[principal]


def _heading(id: str, kept: _Kept) -> Heading:
    return Heading(id, kept.chat_type, kept.created_at, kept.updated_at, len(kept.messages))
