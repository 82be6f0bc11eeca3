"""Body of ``POST /v1/responses``: OpenAI's newer API, without what would have to be kept between requests."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator

from shared.contract.body import MAX_MESSAGES, Tokens
from shared.contract.chat_completions import SampledBody
from shared.contract.images import MAX_IMAGES, check_image
from shared.contract.parts import few_parts
from shared.contract.schema import Schema, check_together
from shared.contract.tools import MAX_TOOLS, NAME, Arguments, CallId, Function


def _kept(value: Any) -> None:
    if value:
        raise ValueError(
            "nothing is kept here between two requests, and none runs after its caller has left. "
            "Send the whole conversation in 'input', without this field"
        )


# What would need an answer, a conversation or a prompt that was kept, and has no meaning without it.
Kept = Annotated[Any, AfterValidator(_kept)]


class _Known(BaseModel):
    """A part of a body; what it does not know is ignored."""

    model_config = ConfigDict(extra="ignore", strict=True)


class TextPart(_Known):
    """``output_text`` is what the model said earlier."""

    type: Literal["input_text", "output_text", "text"]
    text: str


class RefusalPart(_Known):
    type: Literal["refusal"]
    refusal: str


class ImagePart(_Known):
    type: Literal["input_image"]
    image_url: Annotated[str, AfterValidator(check_image)]


def _kind(part: Any) -> str | None:
    kind = part.get("type") if isinstance(part, dict) else None
    return "text" if kind in ("input_text", "output_text", "text") else kind if isinstance(kind, str) else None


def _parts(content: Any) -> Any:
    return [{"type": "input_text", "text": content}] if isinstance(content, str) else content


Part = Annotated[
    Annotated[TextPart, Tag("text")]
    | Annotated[RefusalPart, Tag("refusal")]
    | Annotated[ImagePart, Tag("input_image")],
    Discriminator(
        _kind, custom_error_type="part", custom_error_message="a part is input_text, output_text or input_image here"
    ),
]


class MessageItem(_Known):
    """Something that was said. ``content`` may be written as one string."""

    role: Literal["user", "assistant", "system", "developer"]
    content: Annotated[list[Part], BeforeValidator(_parts), Field(max_length=MAX_MESSAGES)]


class FunctionCallItem(_Known):
    """A function that the model called."""

    type: Literal["function_call"]
    call_id: CallId
    name: str = Field(pattern=NAME)
    arguments: Arguments


class FunctionOutputItem(_Known):
    """What the function gave. ``output`` may be written as one string."""

    type: Literal["function_call_output"]
    call_id: CallId
    output: Annotated[list[TextPart], BeforeValidator(_parts), Field(max_length=MAX_MESSAGES)]


class ReasoningItem(_Known):
    """What the model thought. Clients send it back with the rest of an answer; it is not asked again."""

    type: Literal["reasoning"]


def _item_kind(item: Any) -> str | None:
    """OpenAI lets ``type`` away from what is a message by its role."""
    if not isinstance(item, dict):
        return None
    kind = item.get("type", "message")
    return kind if isinstance(kind, str) else None


Item = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[FunctionCallItem, Tag("function_call")]
    | Annotated[FunctionOutputItem, Tag("function_call_output")]
    | Annotated[ReasoningItem, Tag("reasoning")],
    Discriminator(
        _item_kind,
        custom_error_type="item",
        custom_error_message="an item is a message, function_call, function_call_output or reasoning here",
    ),
]


class FunctionTool(Function):
    """A function that the model may call."""

    type: Literal["function"]


def _functions(tools: Any) -> Any:
    if isinstance(tools, list) and any(isinstance(tool, dict) and tool.get("type") != "function" for tool in tools):
        raise ValueError("every tool is of type function here; tools that run at OpenAI do not run at the node")
    return tools


def _together(tools: list[FunctionTool]) -> list[FunctionTool]:
    check_together(tool.parameters for tool in tools)
    return tools


class NamedTool(_Known):
    type: Literal["function"]
    name: str = Field(pattern=NAME)


class Reasoning(_Known):
    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None


class TextFormat(_Known):
    """The shape that the whole answer must have; what a chat puts into ``json_schema`` stands beside ``type`` here."""

    type: Literal["text", "json_object", "json_schema"]
    name: str = "answer"
    description: str | None = None
    schema_: Schema | None = Field(default=None, alias="schema")
    strict: bool | None = None

    @model_validator(mode="after")
    def _whole(self) -> TextFormat:
        if self.type == "json_schema" and self.schema_ is None:
            raise ValueError("json_schema needs a schema")
        return self

    def as_of_chat(self) -> dict[str, Any]:
        """The ``response_format`` of a chat."""
        if self.type != "json_schema":
            return {"type": self.type}
        inner = self.model_dump(exclude_none=True, by_alias=True, exclude={"type"})
        return {"type": self.type, "json_schema": inner}


class TextSettings(_Known):
    format: TextFormat | None = None


def _items(value: Any) -> Any:
    return [{"role": "user", "content": value}] if isinstance(value, str) else value


class ResponsesBody(SampledBody):
    """``input`` may be written as one string. ``store: true``, OpenAI's own default, is dropped: nothing is stored.
    What OpenAI takes of sampling for chats alone is taken here, too, as local runtimes do."""

    ROLES: ClassVar[str] = "A role is 'user', 'assistant', 'system' or 'developer'."

    input: Annotated[
        list[Item], BeforeValidator(_items), BeforeValidator(few_parts), Field(min_length=1, max_length=MAX_MESSAGES)
    ]
    instructions: str | None = None
    max_output_tokens: Tokens | None = None
    tools: (
        Annotated[
            list[FunctionTool], BeforeValidator(_functions), Field(max_length=MAX_TOOLS), AfterValidator(_together)
        ]
        | None
    ) = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    text: TextSettings | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    previous_response_id: Kept = None
    conversation: Kept = None
    prompt: Kept = None
    background: Kept = None

    @property
    def include_usage(self) -> bool:
        return True

    @property
    def asked_tokens(self) -> int | None:
        return self.max_output_tokens if self.max_output_tokens is not None else self.max_tokens

    @property
    def parts(self) -> int:
        return len(self.input)

    @property
    def dropped(self) -> list[str]:
        return [*super().dropped, "store"] if self.store else super().dropped

    @model_validator(mode="after")
    def _few_images(self) -> ResponsesBody:
        if self.images > MAX_IMAGES:
            raise ValueError(f"at most {MAX_IMAGES} images")
        return self

    def _images(self) -> list[str]:
        messages = [item for item in self.input if isinstance(item, MessageItem)]
        return [part.image_url for item in messages for part in item.content if isinstance(part, ImagePart)]
