"""Ends of chats on their way to the server: kept until it has them, however long it is away.

They go with the next admission, or together a moment later, so that most answers cost no call of their own. The server
goes by chat id: what is sent twice counts once.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from itertools import islice

from loguru import logger

from edge.store.redis.scripts import SETTLE
from edge.store.redis.server import NoAnswer, Server

# Another edge sees a place that is free this much later, and a crash leaves the last answers at their estimates.
_TOGETHER_SECONDS = 0.02
# A thousand times more than answers end while a server starts anew. What does not fit counts at its estimate, because
# nobody settles it.
_MOST = 100_000
# One script's work stays far below a millisecond.
_AT_ONCE = 100


class Settlements:
    """What this edge has to settle. ``run`` writes it; whoever calls another script may take some ``along``."""

    def __init__(self, server: Server, most: int = _MOST) -> None:
        self._server = server
        self._most = most
        self._waiting: dict[str, int | None] = {}
        self._some = asyncio.Event()

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, chat_id: str) -> bool:
        return chat_id in self._waiting

    def add(self, chat_id: str, tokens: int | None) -> None:
        """Count ``tokens`` for the chat, None for what was reserved, as soon as the server can be asked."""
        if len(self._waiting) >= self._most:
            logger.error("Too many answers wait to be settled: one is counted at its estimate")
            return
        self._waiting[chat_id] = tokens
        self._some.set()

    def along(self) -> tuple[Sequence[str], Sequence[str | int]]:
        """Some chat ids, and the arguments that settle them; ``written`` when the server has them."""
        chat_ids = list(islice(self._waiting, _AT_ONCE))
        counts = [(chat_id, self._waiting[chat_id]) for chat_id in chat_ids]
        return chat_ids, [part for chat_id, count in counts for part in (chat_id, "" if count is None else count)]

    def written(self, chat_ids: Sequence[str]) -> None:
        for chat_id in chat_ids:
            self._waiting.pop(chat_id, None)

    async def write(self, chat_id: str, tokens: int) -> bool:
        """Settle one now; whether the server knew it. Raises NoAnswer."""
        (known,) = await self._server.call(SETTLE, chat_id, tokens)
        self.written([chat_id])
        return bool(known)

    async def write_some(self) -> None:
        """Settle the oldest, in the one call that a request may cost. Raises NoAnswer, keeping them."""
        chat_ids, arguments = self.along()
        if chat_ids:
            await self._server.call(SETTLE, *arguments)
            self.written(chat_ids)

    async def write_all(self) -> None:
        """Settle what is here, however long that takes. Raises NoAnswer, keeping what is left."""
        while self._waiting:
            await self._write_patiently()

    async def run(self) -> None:
        """Settle what comes, for as long as the server answers; ``write_all`` after that."""
        while True:
            await self._some.wait()
            self._some.clear()
            await asyncio.sleep(_TOGETHER_SECONDS)
            with contextlib.suppress(NoAnswer):
                # As many as there are now: what comes meanwhile may still go with an admission.
                for _ in range(0, len(self._waiting), _AT_ONCE):
                    if self._server.answering:
                        await self._write_patiently()

    async def _write_patiently(self) -> None:
        chat_ids, arguments = self.along()
        if chat_ids:
            await self._server.probe(SETTLE, *arguments)
            self.written(chat_ids)
