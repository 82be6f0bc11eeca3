"""What a chat asks of the runtime: the chat type's prompt in front, images only where they are seen."""

from __future__ import annotations

from typing import Any

from node.api.said import clean_said
from node.api.system import system_prompt
from node.api.tool_choice import in_openais_words, offered
from node.api.way import Asking, Prompt
from shared.contract.chat import ChatBody
from shared.contract.chat_completions import ChatCompletionBody, OpenAIMessage
from shared.contract.errors import ApiError

# What OpenAI's bodies and PARAMETERS call alike, in chats and completions.
SAMPLING = (
    "temperature", "top_p", "top_k", "min_p", "repeat_penalty", "presence_penalty", "frequency_penalty", "logit_bias",
    "stop", "seed",
)  # fmt: skip
_OWN = ("temperature", "top_p", "stop", "seed")
_CHAT = (*SAMPLING, "logprobs", "top_logprobs", "reasoning_effort")


def write_chat(body: ChatBody, asking: Asking) -> Prompt:
    """``POST /v1/chat``."""
    messages: list[dict[str, Any]] = [{"role": message.role, "content": message.content} for message in body.messages]
    clean_said(messages, asking)
    system = system_prompt(asking, body.metadata, own=False)
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    return Prompt({"messages": messages}, given(body, _OWN))


def write_chat_completion(body: ChatCompletionBody, asking: Asking) -> Prompt:
    """``POST /v1/chat/completions``."""
    if body.images:
        require_vision(asking)
    messages = [_message(message, asking) for message in body.messages]
    clean_said(messages, asking)
    parameters = given(body, _CHAT)
    if body.response_format is not None:
        parameters["response_format"] = asking.clean_all(body.response_format.wire())
    if body.logprobs:
        # Without a number llama.cpp sends the twenty likeliest words with each one, and with 0 not even its own.
        parameters["top_logprobs"] = max(1, body.top_logprobs or 0)
    parameters |= _tools(body, asking)
    system = system_prompt(
        asking,
        body.metadata,
        own=any(message["role"] == "system" for message in messages),
        offers="tools" in parameters,
        called=any(message.tool_calls or message.role == "tool" for message in body.messages),
    )
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    return Prompt({"messages": messages}, parameters)


def require_vision(asking: Asking) -> None:
    """Raises ApiError ``invalid_request`` where the model sees no images."""
    if not asking.model.vision:
        text = "This model does not see images. Send text only, or name a model that does."
        raise ApiError("invalid_request", text, param="messages")


def given(body: object, names: tuple[str, ...]) -> dict[str, Any]:
    """Of the fields ``names`` of ``body`` those that are set."""
    return {name: value for name in names if (value := getattr(body, name)) is not None}


def _message(message: OpenAIMessage, asking: Asking) -> dict[str, Any]:
    """What is said in it is not yet cleaned."""
    content = message.content
    wire: dict[str, Any] = {"role": _role(message.role)}
    if content is not None:
        wire["content"] = content if isinstance(content, str) else [dict(part) for part in content]
    if message.tool_calls:
        wire["content"] = wire.get("content") or ""  # some templates cannot do without
        wire["tool_calls"] = [asking.clean_all(call.wire()) for call in message.tool_calls]
    if message.role == "tool":
        wire["tool_call_id"] = asking.clean(message.tool_call_id or "")
    return wire


def _tools(body: ChatCompletionBody, asking: Asking) -> dict[str, Any]:
    choice = body.tool_choice
    named = choice["function"]["name"] if isinstance(choice, dict) else None
    tools = offered(body.tools, named, lambda tool: tool.function.name)
    word = "required" if named is not None else choice
    return in_openais_words([tool.wire() for tool in tools], word, body.parallel_tool_calls, asking)


def _role(role: str) -> str:
    return "system" if role == "developer" else role  # OpenAI's newer name; templates know only the older
