"""The chats that run through this edge now: for stopping, for the drain, and for the clock."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from shared.contract.errors import ApiError
from shared.interrupt import Interrupt
from shared.link.session import Session
from shared.link.streams import Reply

# An SSE comment: readers ignore it, proxies see traffic. With its blank line, because naive readers split on that.
HEARTBEAT = b":\n\n"
# Seconds after a chat's deadline at which the edge ends it itself: the node, which has the same deadline, says more.
_NODE_ENDS_FIRST = 3.0
# Seconds that streams have to write their final error. With the store's poll and two ticks it stays under the 5 in
# which a revocation and maintenance end them.
_ENDING_WITHIN = 2.0


@dataclass(slots=True)
class Chat:
    """One running chat. ``writing_since`` is loop time while a write waits for the caller, else None; ``heard_at`` is
    when the caller last got a byte; ``ending_since`` is when it was told to end. ``principal`` is the owner's id at the
    node. ``doubted`` is called once a second while the link is silent and no answer has begun. ``is_answer``:
    what is none is relayed like one, and no drain waits for it."""

    id: str
    principal: str
    session: Session
    reply: Reply
    interrupt: Interrupt
    streaming: bool
    revoked: Callable[[], bool]
    doubted: Callable[[Chat], None]
    drop: Callable[[], None]
    deadline: float
    heard_at: float
    writing_since: float | None = None
    ending_since: float | None = None
    started: bool = False
    is_answer: bool = True

    def end_with(self, error: ApiError) -> None:
        """The first error stays. ``Chats.tick`` drops a caller who does not read it."""
        if self.ending_since is None:
            self.ending_since = asyncio.get_running_loop().time()
        self.interrupt.end_with(error)


def _too_late(chat: Chat) -> ApiError:
    code = "upstream_stalled" if chat.started else "first_token_timeout"
    return ApiError(code, "The answer took longer than this edge allows. Ask for a shorter one.")


def _draining() -> ApiError:
    return ApiError("server_draining", "The server is restarting. Please ask again in a moment.")


class Chats:
    """``tick`` belongs in the process's ticker. Times in seconds."""

    def __init__(self, heartbeat: float, slow_reader: float) -> None:
        self._heartbeat = heartbeat
        self._slow_reader = slow_reader
        self._running: dict[str, Chat] = {}
        self._empty: asyncio.Event | None = None  # made when a drain begins to wait

    def __len__(self) -> int:
        return len(self._running)

    def add(self, chat: Chat) -> None:
        self._running[chat.id] = chat

    def remove(self, chat: Chat) -> None:
        self._running.pop(chat.id, None)
        if not self._running and self._empty is not None:
            self._empty.set()

    def get(self, chat_id: str, principal: str) -> Chat | None:
        """The chat when it runs here and is the caller's own."""
        chat = self._running.get(chat_id)
        return chat if chat is not None and chat.principal == principal else None

    def tick(self, now: float) -> None:
        """End what is late or was started with a revoked credential, whether its caller reads or not; drop readers that
        are stuck; keep silent streams alive."""
        for chat in list(self._running.values()):
            if chat.ending_since is not None:
                if now - chat.ending_since >= _ENDING_WITHIN:
                    chat.drop()
            elif now > chat.deadline + _NODE_ENDS_FIRST:
                chat.end_with(_too_late(chat))
            elif chat.revoked():
                chat.end_with(ApiError("token_revoked", "The credential was revoked."))
            elif chat.writing_since is not None:
                if now - chat.writing_since > self._slow_reader:
                    chat.end_with(ApiError("slow_consumer", "The answer was not read; the connection was dropped."))
                    chat.drop()
            elif not chat.reply.has_head and chat.session.suspect:
                chat.doubted(chat)
            elif chat.streaming and chat.started and now - chat.heard_at >= self._heartbeat:
                chat.reply.inject(HEARTBEAT)

    def end(self, error: Callable[[], ApiError], *, answers_only: bool = False) -> None:
        """End all of them, each with an ``error()`` of its own, but for those that end already."""
        for chat in list(self._running.values()):
            if chat.is_answer or not answers_only:
                chat.end_with(error())

    async def drain(self, seconds: float) -> None:
        """Let the running chats finish for ``seconds``, then, or when cancelled, end them with ``server_draining``."""
        for chat in list(self._running.values()):
            if not chat.is_answer:
                chat.end_with(_draining())
        try:
            if await self._empty_within(seconds):
                return
        finally:
            self.end(_draining)
        await self._empty_within(_ENDING_WITHIN)

    async def _empty_within(self, seconds: float) -> bool:
        self._empty = asyncio.Event()
        if not self._running:
            return True
        try:
            async with asyncio.timeout(seconds):
                await self._empty.wait()
        except TimeoutError:
            return False
        return True
