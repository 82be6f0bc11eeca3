"""Body of ``POST /v1/messages``: Anthropic's API, as far as a runtime of one's own can carry it out."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator

from shared.contract.body import MAX_MESSAGES, ForeignBody, StopStrings, Temperature, Tokens, TopP
from shared.contract.images import MAX_IMAGES, check_image
from shared.contract.parts import few_parts
from shared.contract.schema import Schema, check_together
from shared.contract.tools import MAX_TOOLS, NAME, CallId

MAX_TOP_K = 10_000


class _Known(BaseModel):
    """A part of a body; what it does not know, such as ``cache_control``, is ignored."""

    model_config = ConfigDict(extra="ignore", strict=True)


class TextBlock(_Known):
    type: Literal["text"]
    text: str


def _inside(kind: str) -> str:
    if kind != "base64":
        raise ValueError("an image stands in the request itself, as base64: the node fetches nothing for its callers")
    return kind


class ImageSource(_Known):
    """The image itself; ``data`` is its base64."""

    type: Annotated[str, AfterValidator(_inside)]
    media_type: Literal["image/jpeg", "image/png", "image/gif", "image/webp"]
    data: str

    @model_validator(mode="after")
    def _image(self) -> ImageSource:
        check_image(f"data:{self.media_type};base64,{self.data}")
        return self


class ImageBlock(_Known):
    type: Literal["image"]
    source: ImageSource


class ToolUseBlock(_Known):
    """A tool that the model used."""

    type: Literal["tool_use"]
    id: CallId
    name: str = Field(pattern=NAME)
    input: dict[str, Any]


class ThinkingBlock(_Known):
    """What the model thought. ``redacted_thinking`` is another model's, and unreadable."""

    type: Literal["thinking", "redacted_thinking"]
    thinking: str = ""


def _kind(block: Any) -> str | None:
    kind = block.get("type") if isinstance(block, dict) else None
    if kind == "redacted_thinking":
        return "thinking"
    return kind if isinstance(kind, str) else None


def _blocks(content: Any) -> Any:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


ResultPart = Annotated[
    Annotated[TextBlock, Tag("text")] | Annotated[ImageBlock, Tag("image")],
    Discriminator(_kind, custom_error_type="block", custom_error_message="a tool's result is text or image here"),
]
Texts = Annotated[list[TextBlock], BeforeValidator(_blocks), Field(max_length=MAX_MESSAGES)]


class ToolResultBlock(_Known):
    """What a tool gave. ``content`` may be written as one string, or left out."""

    type: Literal["tool_result"]
    tool_use_id: CallId
    content: Annotated[list[ResultPart], BeforeValidator(_blocks), Field(max_length=MAX_MESSAGES)] = []


Block = Annotated[
    Annotated[TextBlock, Tag("text")]
    | Annotated[ImageBlock, Tag("image")]
    | Annotated[ToolUseBlock, Tag("tool_use")]
    | Annotated[ToolResultBlock, Tag("tool_result")]
    | Annotated[ThinkingBlock, Tag("thinking")],
    Discriminator(
        _kind,
        custom_error_type="block",
        custom_error_message="a block is text, image, tool_use, tool_result or thinking here",
    ),
]


class AnthropicMessage(_Known):
    """``content`` may be written as one string."""

    role: Literal["user", "assistant"]
    content: Annotated[list[Block], BeforeValidator(_blocks), Field(max_length=MAX_MESSAGES)]


class Tool(_Known):
    """A tool of the caller's own. ``input_schema`` is a JSON schema."""

    type: Literal["custom"] | None = None
    name: str = Field(pattern=NAME)
    description: str | None = None
    input_schema: Schema


def _own(tools: Any) -> Any:
    kinds = [tool.get("type") for tool in tools if isinstance(tool, dict)] if isinstance(tools, list) else []
    if any(kind not in (None, "custom") for kind in kinds):
        raise ValueError("every tool is the caller's own here; tools with a type of Anthropic's do not run at the node")
    return tools


def _together(tools: list[Tool]) -> list[Tool]:
    check_together(tool.input_schema for tool in tools)
    return tools


class ToolChoice(_Known):
    """``name`` goes with ``tool``."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = Field(default=None, pattern=NAME)
    disable_parallel_tool_use: bool | None = None


class Thinking(_Known):
    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Tokens | None = None


class MessagesBody(ForeignBody):
    """``system`` and every ``content`` may be written as one string. Anthropic wants ``max_tokens``; here it may be
    missing, as the node has a longest answer of its own."""

    ROLES: ClassVar[str] = "A role is 'user' or 'assistant'; the system prompt stands in 'system'."

    messages: Annotated[
        list[AnthropicMessage], BeforeValidator(few_parts), Field(min_length=1, max_length=MAX_MESSAGES)
    ]
    system: Texts | None = None
    max_tokens: Tokens | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: Annotated[int, Field(ge=0, le=MAX_TOP_K)] | None = None
    stop_sequences: StopStrings | None = None
    tools: (
        Annotated[list[Tool], BeforeValidator(_own), Field(max_length=MAX_TOOLS), AfterValidator(_together)] | None
    ) = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    metadata: dict[str, Any] | None = None

    @property
    def asked_tokens(self) -> int | None:
        return self.max_tokens

    @property
    def parts(self) -> int:
        return len(self.messages)

    @model_validator(mode="after")
    def _few_images(self) -> MessagesBody:
        if self.images > MAX_IMAGES:
            raise ValueError(f"at most {MAX_IMAGES} images")
        return self

    def _images(self) -> list[str]:
        blocks: list[Any] = [block for message in self.messages for block in message.content]
        blocks += [part for block in blocks if isinstance(block, ToolResultBlock) for part in block.content]
        return [block.source.data for block in blocks if isinstance(block, ImageBlock)]
