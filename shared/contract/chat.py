"""Bodies of the routes of our own, typed and bounded."""

from __future__ import annotations

import json
from typing import Any, ClassVar, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, field_validator

from shared.contract.body import (
    MAX_MESSAGES,
    MODEL,
    Seed,
    StopStrings,
    Temperature,
    Tokens,
    TopP,
)

MAX_METADATA_BYTES = 4096  # design §3.3
_CLIENT_ID = r"^[A-Za-z0-9._-]{1,64}$"


class Message(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    role: Literal["user", "assistant"]
    content: str


class OwnBody(BaseModel):
    """What the routes of our own share. ``None`` means the chat type's own value."""

    # What somebody is told who sends another role.
    ROLES: ClassVar[str] = (
        "A role is 'user' or 'assistant': the system prompt belongs to the chat type, which lives on the node."
    )
    model_config = ConfigDict(extra="forbid", strict=True, populate_by_name=True)

    chat_type: str = Field(default="home", validation_alias=AliasChoices("chat_type", "chatType"), max_length=64)
    metadata: dict[str, Any] | None = None
    client_id: str | None = Field(
        default=None, validation_alias=AliasChoices("client_id", "clientId"), pattern=_CLIENT_ID
    )
    model: str | None = Field(default=None, pattern=MODEL)
    stream: bool | None = None
    max_tokens: Tokens | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    stop: StopStrings | None = None
    seed: Seed | None = None

    @field_validator("metadata")
    @classmethod
    def _small(cls, metadata: dict[str, Any] | None) -> dict[str, Any] | None:
        if metadata is not None and len(json.dumps(metadata, ensure_ascii=False).encode()) > MAX_METADATA_BYTES:
            raise ValueError(f"at most {MAX_METADATA_BYTES} bytes of JSON")
        return metadata

    @property
    def include_usage(self) -> bool:
        return True

    @property
    def asked_tokens(self) -> int | None:
        return self.max_tokens

    @property
    def images(self) -> int:
        return 0

    @property
    def image_bytes(self) -> int:
        return 0

    @property
    def dropped(self) -> list[str]:
        return []


class ChatBody(OwnBody):
    """``POST /v1/chat``."""

    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)

    @property
    def parts(self) -> int:
        return len(self.messages)
