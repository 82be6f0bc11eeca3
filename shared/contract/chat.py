"""Request bodies of the chat surfaces, typed and bounded, and the usage they end in.

Unknown fields are an error on our own route and dropped (and named to the caller) on the OpenAI one, because SDKs and
front ends send parameters of their own there.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from shared.contract.errors import ApiError
from shared.contract.strict_json import loads_object

# A conversation longer than this is a transcript, not a chat; contexts end long before.
MAX_MESSAGES = 512
MAX_METADATA_BYTES = 4096  # design §3.3
MAX_STOP = 4  # as OpenAI
# For estimates only: English has about four, three is on the safe side for other languages.
BYTES_PER_TOKEN = 3
_CLIENT_ID = r"^[A-Za-z0-9._-]{1,64}$"
_MODEL = r"^[^\s\x00-\x1f]{1,256}$"


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one answer."""

    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def to_wire(self) -> dict[str, int]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.total_tokens,
        }


def _text_of(content: Any) -> Any:
    """OpenAI allows a list of parts; text parts are joined, other kinds are refused by name."""
    if not isinstance(content, list):
        return content
    texts: list[str] = []
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise ValueError("only text parts are supported here")
        texts.append(part["text"])
    return "".join(texts)


def _stop_list(stop: Any) -> Any:
    return [stop] if isinstance(stop, str) else stop


StopStrings = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=64)]], BeforeValidator(_stop_list), Field(max_length=MAX_STOP)
]


class Message(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    role: Literal["user", "assistant"]
    content: str


class OpenAIMessage(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_text_of)]


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    include_usage: bool = False


class _Sampling(BaseModel):
    """What both surfaces share. ``None`` means the chat type's or the runtime's own value."""

    stream: bool | None = None
    max_tokens: int | None = Field(default=None, ge=1, le=1_000_000)
    temperature: float | None = Field(default=None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(default=None, gt=0, le=1, allow_inf_nan=False)
    stop: StopStrings | None = None
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)


class ChatBody(_Sampling):
    """``POST /v1/chat``."""

    model_config = ConfigDict(extra="forbid", strict=True, populate_by_name=True)

    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    chat_type: str = Field(default="home", validation_alias=AliasChoices("chat_type", "chatType"), max_length=64)
    metadata: dict[str, Any] | None = None
    client_id: str | None = Field(
        default=None, validation_alias=AliasChoices("client_id", "clientId"), pattern=_CLIENT_ID
    )
    model: str | None = Field(default=None, pattern=_MODEL)

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
    def dropped(self) -> list[str]:
        return []


class CompletionBody(_Sampling):
    """``POST /v1/chat/completions``, the part of OpenAI's body that this version answers."""

    model_config = ConfigDict(extra="allow", strict=True)

    messages: list[OpenAIMessage] = Field(min_length=1, max_length=MAX_MESSAGES)
    model: str = Field(default="default", pattern=_MODEL)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=1_000_000)
    n: Literal[1] | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None

    metadata: dict[str, Any] | None = None

    @property
    def chat_type(self) -> str | None:
        """The chat type that ``model: "chat:<type>"`` names, or None for a raw model."""
        return self.model.removeprefix("chat:") if self.model.startswith("chat:") else None

    @property
    def client_id(self) -> str | None:
        return None

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def dropped(self) -> list[str]:
        """Names of parameters that had no effect, for the ``Hearthlink-Dropped-Params`` header."""
        return [name for name in (self.model_extra or {}) if name.isidentifier() and name.isascii()][:32]


AnyChatBody = ChatBody | CompletionBody
Body = TypeVar("Body", bound=BaseModel)


def parse_body(kind: type[Body], raw: bytes | bytearray) -> Body:
    """Read ``raw`` as ``kind``. Raises ApiError ``invalid_json`` or ``invalid_request`` naming the first wrong field;
    the message never quotes what the caller wrote."""
    fields = loads_object(raw)
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise _refusal(kind, error) from None


def _refusal(kind: type[BaseModel], error: ValidationError) -> ApiError:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(str(part) for part in first["loc"] if not str(part).startswith("function-"))
    if first["type"] == "extra_forbidden":
        known = sorted(field for field in kind.model_fields if len(first["loc"]) == 1)
        hint = f" Known: {', '.join(known)}." if known else ""
        return ApiError("invalid_request", f"Unknown field {place[:80]!r}.{hint}", param=place[:80])
    if place.endswith("role") and kind is ChatBody:
        message = (
            "A role is 'user' or 'assistant': the system prompt belongs to the chat type, which lives on the node."
        )
        return ApiError("invalid_request", f"{place}: {message}", param=place[:80])
    return ApiError("invalid_request", f"{place[:80] or 'body'}: {first['msg']}.", param=place[:80] or None)
