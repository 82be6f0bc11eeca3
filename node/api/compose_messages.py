"""What ``POST /v1/messages`` asks of the runtime."""

from __future__ import annotations

from typing import Any

from node.api.compose_chat import given, require_vision
from node.api.said import clean_said
from node.api.system import system_prompt
from node.api.tool_choice import offered
from node.api.way import Asking, Prompt
from shared.contract.messages import (
    AnthropicMessage,
    Block,
    ImageBlock,
    MessagesBody,
    TextBlock,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
)

# Anthropic's API has a word for these and no more.
OF_MESSAGES = frozenset({"temperature", "top_p", "top_k", "stop", "tools", "tool_choice"})


def write_messages(body: MessagesBody, asking: Asking) -> Prompt:
    """``POST /v1/messages``."""
    if body.images:
        require_vision(asking)
    parameters = given(body, ("temperature", "top_p", "top_k")) | _tools(body, asking)
    if body.stop_sequences:
        parameters["stop"] = body.stop_sequences
    messages = [_message(message, asking) for message in body.messages]
    clean_said(messages, asking)
    used = any(isinstance(block, ToolUseBlock | ToolResultBlock) for each in body.messages for block in each.content)
    system = system_prompt(
        asking, body.metadata, own=body.system is not None, offers="tools" in parameters, called=used
    )
    if system is None and body.system is not None:
        system = asking.clean("".join(block.text for block in body.system))
    content: dict[str, Any] = {"messages": messages}
    if system is not None:
        content["system"] = system
    if body.thinking is not None and not asking.strips("reasoning_effort"):
        content["thinking"] = body.thinking.model_dump(exclude_none=True)
    return Prompt(content, parameters)


def _message(message: AnthropicMessage, asking: Asking) -> dict[str, Any]:
    blocks = [_block(block, asking) for block in message.content if not _unreadable(block)]
    return {"role": message.role, "content": blocks}


def _unreadable(block: Block) -> bool:
    return isinstance(block, ThinkingBlock) and block.type == "redacted_thinking"


def _block(block: Block, asking: Asking) -> dict[str, Any]:
    """What is said in it is not yet cleaned."""
    if isinstance(block, TextBlock | ImageBlock):
        return block.model_dump()
    if isinstance(block, ThinkingBlock):
        return {"type": "thinking", "thinking": block.thinking, "signature": ""}
    if isinstance(block, ToolUseBlock):
        arguments = asking.clean_all(block.input)
        return {"type": "tool_use", "id": asking.clean(block.id), "name": block.name, "input": arguments}
    result = [part.model_dump() for part in block.content]
    return {"type": "tool_result", "tool_use_id": asking.clean(block.tool_use_id), "content": result}


def _tools(body: MessagesBody, asking: Asking) -> dict[str, Any]:
    """Where no tool may be used none is offered: llama.cpp does not read that from ``tool_choice``."""
    choice = body.tool_choice
    if choice is not None and choice.type == "none":
        return {}
    named = choice.name or "" if choice is not None and choice.type == "tool" else None
    tools = offered(body.tools, named, lambda tool: tool.name)
    if not tools:
        return {}
    found: dict[str, Any] = {
        "tools": [asking.clean_all(tool.model_dump(exclude_none=True, exclude={"type"})) for tool in tools]
    }
    if choice is not None:
        found["tool_choice"] = choice.model_dump(exclude_none=True)
    return found
