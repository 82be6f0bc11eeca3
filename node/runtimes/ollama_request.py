"""Requests in Ollama's own words, which can say what its OpenAI-compatible routes cannot: the context, top_k, a repeat
penalty, how long the model stays."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from node.runtime import Inference
from node.runtimes.fields import number, rows, table, text
from shared.contract.errors import ApiError

# Parameters that are options of a request, with Ollama's name for each. The others are built by hand below.
OPTIONS: Mapping[str, str] = MappingProxyType(
    {
        name: name
        for name in (
            "temperature", "top_p", "top_k", "min_p", "repeat_penalty", "presence_penalty", "frequency_penalty", "seed"
        )
    }
)  # fmt: skip
PARAMETERS: Mapping[str, str] = MappingProxyType(
    {
        **OPTIONS,
        **{
            name: name
            for name in (
                "stop", "logprobs", "top_logprobs", "response_format", "tools", "tool_choice", "reasoning_effort",
                "suffix",
            )
        },
    }
)  # fmt: skip
# The only family that takes a degree of reasoning; the others know on and off.
_DEGREES = ("gptoss", "gpt-oss")
_NO_REASONING = ("none", "minimal")
_IMAGE = "data:image/"


@dataclass(frozen=True, slots=True)
class Facts:
    """What /api/show tells of a model. ``layers`` counts those that may be on the GPU, 0 when it does not tell;
    ``stops`` end its answers, and would be forgotten in favour of a request's own. ``weights`` are the files that are
    in memory for it, the same for models that differ in their words only."""

    capabilities: frozenset[str] = frozenset()
    max_context: int = 0
    layers: int = 0
    families: tuple[str, ...] = ()
    stops: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()

    @classmethod
    def read(cls, shown: Mapping[str, Any]) -> Facts:
        info, details = table(shown, "model_info"), table(shown, "details")
        kind = text(info, "general.architecture")
        blocks = number(info, f"{kind}.block_count")
        return cls(
            frozenset(_strings(shown.get("capabilities"))),
            number(info, f"{kind}.context_length"),
            blocks + 1 if blocks else 0,
            tuple(_strings(details.get("families"))) or tuple(_strings([details.get("family")])),
            tuple(_stops(text(shown, "parameters"))),
            tuple(line for line in text(shown, "modelfile").splitlines() if line.startswith(("FROM ", "ADAPTER "))),
        )

    def lacks(self, capability: str) -> bool:
        """It is known that the model has no ``capability``; an old Ollama lists none."""
        return bool(self.capabilities) and capability not in self.capabilities


def chat_body(inference: Inference, facts: Facts) -> dict[str, Any]:
    """Body of POST /api/chat but for the options of the runner. Raises ApiError ``invalid_request``."""
    given = inference.parameters
    body: dict[str, Any] = {
        "model": inference.model,
        "messages": _messages(inference.messages),
        "stream": True,
        # Ollama would leave out the oldest messages, or forget the beginning of its answer, and say nothing. Versions
        # before these fields ignore them.
        "truncate": False,
        "shift": False,
        "options": _options(inference, facts),
    }
    if (tools := given.get("tools")) and _may_call(given.get("tool_choice")):
        if facts.lacks("tools"):
            raise ApiError("invalid_request", "This model has no way to call tools. Leave them out.", param="tools")
        body["tools"] = tools
    if (form := _format(given.get("response_format"))) is not None:
        body["format"] = form
    if (thinking := _thinking(given.get("reasoning_effort"), facts)) is not None:
        body["think"] = thinking
    for name in ("logprobs", "top_logprobs"):
        if given.get(name):
            body[name] = given[name]
    return body


def completion_body(inference: Inference, facts: Facts) -> dict[str, Any]:
    """Body of POST /api/generate but for the options of the runner: the prompt as it is, without a template, unless
    there is a suffix, which only the template knows how to put. Raises ApiError ``invalid_request``."""
    prompt = inference.content.get("prompt")
    if not isinstance(prompt, str):
        raise ApiError("invalid_request", "Ollama takes one prompt at a time, and only as text.", param="prompt")
    body: dict[str, Any] = {
        "model": inference.model,
        "prompt": prompt,
        "stream": True,
        "truncate": False,
        "shift": False,
        "options": _options(inference, facts),
    }
    if suffix := inference.parameters.get("suffix"):
        if facts.lacks("insert"):
            raise ApiError(
                "invalid_request", "This model cannot fill in before a suffix. Leave it out.", param="suffix"
            )
        body["suffix"] = suffix
    else:
        body["raw"] = True
    return body


def text_of(inference: Inference) -> list[str]:
    """The text of a prompt, message by message."""
    texts = [_content(message.get("content"))[0] for message in inference.messages]
    if isinstance(prompt := inference.content.get("prompt"), str):
        texts.append(prompt)
    return texts


def _options(inference: Inference, facts: Facts) -> dict[str, Any]:
    options = {wire: inference.parameters[name] for name, wire in OPTIONS.items() if name in inference.parameters}
    options["num_predict"] = inference.max_tokens
    if stop := inference.parameters.get("stop"):
        own = facts.stops if inference.api == "chat" else ()
        options["stop"] = list(dict.fromkeys([*([stop] if isinstance(stop, str) else stop), *own]))
    return options


def _may_call(choice: Any) -> bool:
    if choice in (None, "auto"):
        return True
    if choice == "none":
        return False
    raise ApiError(
        "invalid_request",
        'Ollama cannot be told to call a tool. Leave tool_choice out, or say "auto" or "none".',
        param="tool_choice",
    )


def _format(wanted: Any) -> Any:
    kind = text(wanted, "type")
    if kind == "json_object":
        return "json"
    return table(table(wanted, "json_schema"), "schema") or "json" if kind == "json_schema" else None


def _thinking(effort: Any, facts: Facts) -> bool | str | None:
    """None leaves it out, as a model without reasoning refuses the field. Without a wish one with reasoning is told to
    reason, since only then is it kept apart from the answer."""
    if "thinking" not in facts.capabilities:
        return None
    if any(family in _DEGREES for family in facts.families):
        return effort if effort in ("low", "medium", "high") else True
    return effort not in _NO_REASONING


def _messages(messages: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    names: dict[str, str] = {}  # of the tools that were called, by the call's id
    found = []
    for message in messages:
        role = message["role"]
        words, images = _content(message.get("content"))
        own: dict[str, Any] = {"role": "system" if role == "developer" else role, "content": words}
        if images:
            own["images"] = images
        if calls := rows(message, "tool_calls"):
            names.update((text(call, "id"), text(table(call, "function"), "name")) for call in calls)
            own["tool_calls"] = [_call(call) for call in calls]
        if role == "tool":
            identity = text(message, "tool_call_id")
            own["tool_call_id"] = identity
            own["tool_name"] = text(message, "name") or names.get(identity, "")
        found.append(own)
    return found


def _content(content: Any) -> tuple[str, list[str]]:
    """Text, and images in base64 without the head of their data URLs."""
    if isinstance(content, str):
        return content, []
    words, images = [], []
    for part in content or ():
        if text(part, "type") == "image_url":
            head, _, data = text(table(part, "image_url"), "url").partition(",")
            if not head.startswith(_IMAGE):
                raise ApiError("invalid_request", "An image must be a data: URL in base64.", param="messages")
            images.append(data)
        else:
            words.append(text(part, "text"))
    return "\n".join(words), images


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = table(call, "function")
    try:
        arguments = json.loads(text(function, "arguments") or "{}")
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise ApiError(
            "invalid_request", "The arguments of a tool call must be a JSON object, as text.", param="messages"
        )
    return {"id": text(call, "id"), "function": {"name": text(function, "name"), "arguments": arguments}}


def _stops(parameters: str) -> Iterable[str]:
    """``stop`` lines of what /api/show prints: a name, spaces, and the text as Go quotes it."""
    for line in parameters.splitlines():
        name, _, value = line.partition(" ")
        if name == "stop":
            try:
                stop = json.loads(value.strip())
            except ValueError:
                continue
            if isinstance(stop, str) and stop:
                yield stop


def _strings(value: Any) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []
