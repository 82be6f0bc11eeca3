"""Conversations as the node keeps them, and what a place that keeps them has to do."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

# Bytes that a message takes besides its text: else a million empty ones would count for nothing.
PER_MESSAGE = 64


@dataclass(frozen=True, slots=True)
class Message:
    """``at`` in Unix seconds."""

    role: Literal["user", "assistant"]
    content: str
    at: float

    @property
    def size(self) -> int:
        """Bytes that it counts for."""
        return len(self.content.encode()) + PER_MESSAGE

    def to_wire(self) -> dict[str, Any]:
        return {"role": self.role, "content": self.content, "at": round(self.at, 3)}


@dataclass(frozen=True, slots=True)
class Heading:
    """A conversation without what was said. Times in Unix seconds."""

    id: str
    chat_type: str
    created_at: float
    updated_at: float
    messages: int

    def to_wire(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "conversation",
            "chat_type": self.chat_type,
            "created_at": round(self.created_at, 3),
            "updated_at": round(self.updated_at, 3),
            "messages": self.messages,
        }


@dataclass(frozen=True, slots=True)
class Conversation:
    """``messages`` alternate, beginning with the user's."""

    heading: Heading
    messages: tuple[Message, ...]

    def to_wire(self) -> dict[str, Any]:
        return {**self.heading.to_wire(), "messages": [message.to_wire() for message in self.messages]}


@dataclass(frozen=True, slots=True)
class Bounds:
    """``lifetime`` is in seconds from the last message. ``per_caller`` conversations of one principal; ``size`` of one
    and ``total`` of all, in bytes as ``Message.size`` counts: what was longest unused is forgotten beyond them."""

    lifetime: float
    per_caller: int
    size: int
    total: int


class Storage(Protocol):
    """A place for conversations. Whoever made it closes it. What is past its lifetime is not there for anybody, also
    before ``sweep`` has removed it. Raises ApiError ``internal_error`` when the place cannot be used."""

    async def read(self, principal: str, id: str) -> Conversation | None: ...

    async def add(self, principal: str, id: str, chat_type: str, exchange: tuple[Message, Message]) -> None:
        """A question and its answer, at the end; makes the conversation where there is none, and room within the
        bounds: oldest turns first, then the conversations that were longest unused."""
        ...

    async def headings(self, principal: str) -> list[Heading]:
        """The newest first."""
        ...

    def every(self, principal: str) -> AsyncIterator[Conversation]:
        """The newest first, one at a time."""
        ...

    async def forget(self, principal: str, id: str) -> bool:
        """False when there was none."""
        ...

    async def forget_all(self, principal: str) -> int:
        """How many there were."""
        ...

    async def sweep(self) -> None:
        """Remove what is past its lifetime."""
        ...

    async def close(self) -> None: ...
