"""What ``POST /v1/responses`` asks of the runtime: its items as every runtime reads them, in front the chat type's
prompt."""

from __future__ import annotations

from typing import Any

from node.api.compose_chat import SAMPLING, given, require_vision
from node.api.said import clean_said
from node.api.system import system_prompt
from node.api.tool_choice import in_openais_words, offered
from node.api.way import Asking, Prompt
from shared.contract.errors import ApiError
from shared.contract.responses import (
    FunctionCallItem,
    FunctionOutputItem,
    ImagePart,
    Item,
    MessageItem,
    NamedTool,
    Part,
    ReasoningItem,
    RefusalPart,
    ResponsesBody,
)


def write_responses(body: ResponsesBody, asking: Asking) -> Prompt:
    """``POST /v1/responses``. What the model thought earlier is left out: it is not asked again, and llama.cpp b11549
    refuses it empty, as it stands in OpenAI's own answers."""
    if body.images:
        require_vision(asking)
    items = [_item(item, asking) for item in body.input if not isinstance(item, ReasoningItem)]
    clean_said(items, asking)
    if not items:
        raise ApiError("invalid_request", "input: there is nothing in it that a model could answer.", param="input")
    parameters = given(body, SAMPLING) | _tools(body, asking)
    if body.text is not None and body.text.format is not None and body.text.format.type != "text":
        parameters["response_format"] = asking.clean_all(body.text.format.as_of_chat())
    if body.reasoning is not None and body.reasoning.effort is not None:
        parameters["reasoning_effort"] = body.reasoning.effort
    instructions = system_prompt(
        asking,
        body.metadata,
        own=body.instructions is not None or any(item.get("role") == "system" for item in items),
        offers="tools" in parameters,
        called=any("call_id" in item for item in items),
    )
    if instructions is None and body.instructions is not None:
        instructions = asking.clean(body.instructions)
    content: dict[str, Any] = {"input": items}
    if instructions is not None:
        content["instructions"] = instructions
    return Prompt(content, parameters)


def _item(item: Item, asking: Asking) -> dict[str, Any]:
    """With its ``type``, which callers may leave out and llama.cpp does not. What is said in a message is not yet
    cleaned."""
    if isinstance(item, MessageItem):
        role = "system" if item.role == "developer" else item.role  # templates know only the older name
        parts = [_part(part, role) for part in item.content]
        return {"type": "message", "role": role, "content": parts}
    if isinstance(item, FunctionCallItem):
        arguments = asking.clean(item.arguments)
        return {"type": item.type, "call_id": asking.clean(item.call_id), "name": item.name, "arguments": arguments}
    assert isinstance(item, FunctionOutputItem), "what the model thought is left out"
    output = "".join(part.text for part in item.output)
    return {"type": item.type, "call_id": asking.clean(item.call_id), "output": asking.clean(output)}


def _part(part: Part, role: str) -> dict[str, Any]:
    if isinstance(part, ImagePart):
        return {"type": "input_image", "image_url": part.image_url}
    text = part.refusal if isinstance(part, RefusalPart) else part.text
    if role == "assistant":
        return {"type": "output_text", "text": text, "annotations": []}
    return {"type": "input_text", "text": text}


def _tools(body: ResponsesBody, asking: Asking) -> dict[str, Any]:
    choice = body.tool_choice
    named = choice.name if isinstance(choice, NamedTool) else None
    tools = offered(body.tools, named, lambda tool: tool.name)
    word = "required" if named is not None else choice
    return in_openais_words([tool.wire() for tool in tools], word, body.parallel_tool_calls, asking)
