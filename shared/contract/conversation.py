"""Body of ``POST /api/chat``: one message, in a conversation that the node remembers."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, AliasChoices, Field

from shared.contract.chat import OwnBody

# A page may number its conversations, or use ids of its own database.
_ID = r"^[A-Za-z0-9._:-]{1,64}$"
# What else may stand at the end of /api/conversations/ID, or is taken out of an address by clients.
_TAKEN = frozenset({"export", ".", ".."})


def _readable(id: str) -> str:
    if id in _TAKEN:
        raise ValueError(f"may be none of {', '.join(sorted(_TAKEN))}: those could not be asked for")
    return id


class ConversationBody(OwnBody):
    """``message`` is the next thing that the user says; the node puts what was said before in front of it. Without a
    ``conversation_id`` a new conversation begins."""

    message: str = Field(min_length=1)
    conversation_id: Annotated[str, Field(pattern=_ID), AfterValidator(_readable)] | None = Field(
        default=None, validation_alias=AliasChoices("conversation_id", "conversationId")
    )

    @property
    def parts(self) -> int:
        return 1
