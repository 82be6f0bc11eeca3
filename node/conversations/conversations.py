"""The conversations of a node: one answer at a time in each, and forgotten when nobody goes on with them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from node.conversations.conversation import Conversation, Message, Storage
from shared.contract.errors import ApiError

# Seconds between two looks for what is past its lifetime. Nobody sees it meanwhile, it only takes room.
_SWEEP_EVERY = 60.0


@dataclass(slots=True)
class Exchange:
    """One question in a conversation, while it is answered. ``before`` is None in a new one. ``forgotten``: the caller
    has the conversation forgotten meanwhile."""

    principal: str
    id: str
    before: Conversation | None
    storage: Storage
    forgotten: bool = False

    @property
    def history(self) -> tuple[Message, ...]:
        return self.before.messages if self.before is not None else ()

    async def keep(self, chat_type: str, asked_at: float, question: str, answer: str) -> None:
        """Both, or neither; neither of what is forgotten. Raises ApiError."""
        if self.forgotten:
            return
        exchange = (Message("user", question, asked_at), Message("assistant", answer, time.time()))
        await self.storage.add(self.principal, self.id, chat_type, exchange)


class Conversations:
    """``storage`` stays its maker's; ``run`` sweeps it until cancelled. ``max_message`` is in bytes."""

    def __init__(self, storage: Storage, max_message: int) -> None:
        self.storage = storage
        self.max_message = max_message
        self._answered: dict[tuple[str, str], Exchange] = {}

    @asynccontextmanager
    async def exchange(self, principal: str, id: str) -> AsyncIterator[Exchange]:
        """The next question in conversation ``id`` of ``principal``. Raises ApiError ``concurrency_limited`` while
        another one is being answered: neither would know of the other."""
        key = (principal, id)
        if key in self._answered:
            raise ApiError(
                "concurrency_limited",
                "A question in this conversation is being answered. Wait for its end, or begin another conversation.",
                param="conversation_id",
                retry_after=1.0,
            )
        exchange = self._answered[key] = Exchange(principal, id, None, self.storage)
        try:
            exchange.before = await self.storage.read(principal, id)
            yield exchange
        finally:
            del self._answered[key]

    async def forget(self, principal: str, id: str) -> bool:
        """Also what is being said in it now. False when there was none. Raises ApiError."""
        answered = self._answered.get((principal, id))
        if answered is not None:
            answered.forgotten = True
        return await self.storage.forget(principal, id) or answered is not None

    async def forget_all(self, principal: str) -> int:
        """How many there were; also what is being said in them now. Raises ApiError."""
        for exchange in self._answered.values():
            exchange.forgotten = exchange.forgotten or exchange.principal == principal
        return await self.storage.forget_all(principal)

    async def run(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_EVERY)
            with suppress(ApiError):  # it is in the log, and the next look may go well
                await self.storage.sweep()
