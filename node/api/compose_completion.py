"""What the older completions ask of the runtime: one text to go on with, and no roles."""

from __future__ import annotations

from node.api.compose_chat import SAMPLING, given
from node.api.way import Asking, Prompt
from shared.contract.completions import CompletionBody
from shared.contract.errors import ApiError


def write_completion(body: CompletionBody, asking: Asking) -> Prompt:
    """``POST /v1/completions``."""
    refuse_chat_type(asking)
    parameters = given(body, (*SAMPLING, "logprobs", "echo"))
    if body.suffix is not None:
        parameters["suffix"] = asking.clean(body.suffix)
    return Prompt({"prompt": asking.clean(body.prompt)}, parameters)


def refuse_chat_type(asking: Asking) -> None:
    """Raises ApiError ``invalid_request`` where a chat type is named: its prompt has no place on this surface."""
    if asking.chat_type is not None:
        text = f"A chat type is a chat's: there is none on {asking.path}. Name a model, or none for the default."
        raise ApiError("invalid_request", text, param="model")
