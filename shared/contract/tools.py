"""Tools in OpenAI's words: what a caller offers, what a model called, and which shape of answer is wanted."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from shared.contract.errors import ApiError
from shared.contract.schema import Schema, check_together
from shared.contract.strict_json import loads_object

MAX_TOOLS = 128  # as OpenAI
MAX_CALLS = 128
# Names of OpenAI's, and the dots, colons and slashes of tool servers.
NAME = r"^[A-Za-z0-9_.:/-]{1,128}$"
_SCHEMA_NAME = r"^[A-Za-z0-9_-]{1,64}$"


def _arguments(text: str) -> str:
    """As a model wrote them: the JSON of an object, or nothing for a function that takes none. It is written anew,
    without escapes: templates read them, and a control token could be hidden in some."""
    if not text.strip():
        return "{}"
    try:
        value = loads_object(text.encode())
    except ApiError:
        raise ValueError("arguments are the text of one JSON object") from None
    return json.dumps(value, ensure_ascii=False)


Arguments = Annotated[str, AfterValidator(_arguments)]
CallId = Annotated[str, Field(min_length=1, max_length=256)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    def wire(self) -> dict[str, Any]:
        """As it is sent, without what nobody set."""
        return self.model_dump(exclude_none=True, by_alias=True)


class Function(_Part):
    name: str = Field(pattern=NAME)
    description: str | None = Field(default=None, max_length=16 << 10)
    parameters: Schema | None = None
    strict: bool | None = None


class Tool(_Part):
    type: Literal["function"]
    function: Function


def _together(tools: list[Tool]) -> list[Tool]:
    check_together(tool.function.parameters for tool in tools)
    return tools


Tools = Annotated[list[Tool], Field(max_length=MAX_TOOLS), AfterValidator(_together)]


class CalledFunction(_Part):
    name: str = Field(pattern=NAME)
    arguments: Arguments


class ToolCall(_Part):
    """What the model called before, told back to it."""

    id: CallId
    type: Literal["function"] = "function"
    function: CalledFunction


class _Named(_Part):
    name: str = Field(pattern=NAME)


class ChosenTool(_Part):
    type: Literal["function"]
    function: _Named


class JsonSchema(_Part):
    name: str = Field(pattern=_SCHEMA_NAME)
    description: str | None = Field(default=None, max_length=16 << 10)
    schema_: Schema | None = Field(default=None, alias="schema")
    strict: bool | None = None


class ResponseFormat(_Part):
    """The shape that the whole answer must have."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None
