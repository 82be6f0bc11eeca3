"""Body of ``POST /v1/chat/completions``: OpenAI's, as far as a local model can do it, typed and bounded."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, ValidationError, model_validator

from shared.contract.body import (
    MAX_MESSAGES,
    ForeignBody,
    Seed,
    StopStrings,
    Temperature,
    Tokens,
    TopP,
)
from shared.contract.images import MAX_IMAGES, check_image
from shared.contract.parts import few_parts
from shared.contract.tools import MAX_CALLS, CallId, ChosenTool, ResponseFormat, ToolCall, Tools

Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
_TOKEN_ID = re.compile(r"[0-9]{1,9}")
_MAX_BIASES = 1024


def _biases(given: Any) -> dict[str, float] | None:
    """By hand, as pydantic would name the caller's own keys."""
    if given is None:
        return None
    if not isinstance(given, dict) or len(given) > _MAX_BIASES:
        raise ValueError(f"an object of at most {_MAX_BIASES} token ids")
    for token, bias in given.items():
        if not _TOKEN_ID.fullmatch(token) or type(bias) not in (int, float) or not -100 <= bias <= 100:
            raise ValueError("each key is a token id, each value a number from -100 to 100")
    return given


def _tool_choice(given: Any) -> str | dict[str, Any] | None:
    if given is None or (isinstance(given, str) and given in ("none", "auto", "required")):
        return given
    try:
        return ChosenTool.model_validate(given).wire()
    except ValidationError:
        text = "'none', 'auto', 'required' or an object {type: 'function', function: {name}}"
        raise ValueError(text) from None


def _content(content: Any) -> str | list[dict[str, Any]] | None:
    """Text, or the parts of one message in which there is an image. OpenAI allows a list of parts for text too; those
    are joined. Other kinds are refused by name."""
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ValueError("content is text, or a list of parts")
    parts = [_part(part) for part in content]
    if all(part["type"] == "text" for part in parts):
        return "".join(part["text"] for part in parts)
    return parts


def _part(part: Any) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    image = part.get("image_url") if kind == "image_url" else None
    if isinstance(image, dict) and isinstance(image.get("url"), str):
        return {"type": "image_url", "image_url": {"url": check_image(image["url"])}}
    raise ValueError("only text parts are supported here, and images as image_url with a data: URL")


class OpenAIMessage(BaseModel):
    """``content`` is text, or the parts {"type": "text" | "image_url", …} of a message with images."""

    model_config = ConfigDict(extra="ignore", strict=True)

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[Any, PlainValidator(_content)] = None
    tool_calls: list[ToolCall] | None = Field(default=None, max_length=MAX_CALLS)
    tool_call_id: CallId | None = None

    @model_validator(mode="after")
    def _fits_its_role(self) -> Self:
        if self.tool_calls and self.role != "assistant":
            raise ValueError("tool_calls belong to messages of the assistant")
        if self.content is None and not self.tool_calls:
            raise ValueError("content is missing")
        if self.role == "tool" and self.tool_call_id is None:
            raise ValueError("a message of role tool needs the tool_call_id that it answers")
        if isinstance(self.content, list) and self.role != "user":
            raise ValueError("only messages of the user may hold images")
        return self


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    include_usage: bool = False


class SampledBody(ForeignBody):
    """What ``/v1/chat/completions`` and ``/v1/completions`` have in common. ``top_k``, ``min_p`` and ``repeat_penalty``
    are not OpenAI's; most local runtimes have them."""

    max_tokens: Tokens | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: int | None = Field(default=None, ge=0, le=100_000)
    min_p: float | None = Field(default=None, ge=0, le=1, allow_inf_nan=False)
    repeat_penalty: float | None = Field(default=None, gt=0, le=10, allow_inf_nan=False)
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: Annotated[dict[str, float] | None, PlainValidator(_biases)] = None
    stop: StopStrings | None = None
    seed: Seed | None = None
    n: Literal[1] | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def asked_tokens(self) -> int | None:
        return self.max_tokens


class ChatCompletionBody(SampledBody):
    """``POST /v1/chat/completions``."""

    messages: Annotated[list[OpenAIMessage], BeforeValidator(few_parts), Field(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: Tokens | None = None
    metadata: dict[str, Any] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    response_format: ResponseFormat | None = None
    tools: Tools | None = None
    tool_choice: Annotated[str | dict[str, Any] | None, PlainValidator(_tool_choice)] = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        if self.images > MAX_IMAGES:
            raise ValueError(f"at most {MAX_IMAGES} images")
        return self

    @property
    def asked_tokens(self) -> int | None:
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    @property
    def parts(self) -> int:
        return len(self.messages)

    def _images(self) -> list[str]:
        contents = [message.content for message in self.messages if isinstance(message.content, list)]
        return [part["image_url"]["url"] for parts in contents for part in parts if part["type"] == "image_url"]
