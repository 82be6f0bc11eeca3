"""May this caller ask this: chat types, models and tokens, against the plan and the credential's own locks."""

from __future__ import annotations

from dataclasses import dataclass

from edge.api.caller import Caller
from shared.contract.body import BYTES_PER_TOKEN, AnyBody
from shared.contract.errors import ApiError
from shared.contract.snapshot import NodeSnapshot, default_model
from shared.contract.surface import Surface

# Tokens of a chat template around one message; ChatML needs four or five.
_PER_MESSAGE = 6
# Tokens of one image; models differ from some hundred to some thousand.
_PER_IMAGE = 1024


@dataclass(frozen=True, slots=True)
class Permit:
    """``reserve`` tokens cover prompt and longest answer; ``max_tokens`` is the cap the node must keep."""

    reserve: int
    prompt_estimate: int
    max_tokens: int
    chat_type: str | None


def permit(
    surface: Surface, body: AnyBody, size: int, caller: Caller, node: NodeSnapshot | None, anonymous_raw: bool
) -> Permit:
    """``size`` is the body's in bytes. Raises ApiError ``not_supported``, ``quota_exceeded`` where no answer is allowed
    at all, ``chat_type_not_found``, ``chat_type_not_allowed``, ``model_not_found`` or ``model_not_allowed``. Without a
    snapshot the node itself will say what it lacks."""
    principal, plan = caller.principal, caller.plan
    if node is not None and node.ready and surface.name not in node.surfaces:
        raise surface.lacking()
    if plan.tokens_per_request == 0:
        whose = plan.by("tokens_per_request")
        text = f"The longest answer you may have {whose} is 0 tokens. Ask the edge's owner for more."
        raise ApiError("quota_exceeded", text, should_retry=False)
    prompt = (size - body.image_bytes) // BYTES_PER_TOKEN + _PER_MESSAGE * body.parts + _PER_IMAGE * body.images
    cap = min(limit for limit in (plan.tokens_per_request, principal.max_tokens, _node_cap(node)) if limit is not None)
    if body.chat_type is not None:
        locked_out = principal.chat_types is not None and body.chat_type not in principal.chat_types
        if locked_out or not plan.allows_chat_type(body.chat_type):
            text = "Your plan or token does not include this chat type. GET /v1/chat/types lists those it does."
            raise ApiError("chat_type_not_allowed", text, param="chat_type")
        if node is not None:
            kind = node.chat_type(body.chat_type)
            if kind is None:
                names = ", ".join(item.name for item in node.chat_types)
                text = f"There is no chat type {body.chat_type!r}. There are: {names}."
                raise ApiError("chat_type_not_found", text, param="chat_type")
            prompt += kind.prompt_tokens
            cap = min(cap, kind.max_tokens)
    elif principal.chat_types is not None:
        text = 'Your token is for chat types alone: send one, such as model "chat:home". GET /v1/chat/types lists them.'
        raise ApiError("chat_type_not_allowed", text, param="model")
    _check_model(surface, body, caller, node, anonymous_raw)
    asked = body.asked_tokens
    answer = cap if asked is None else min(asked, cap)
    return Permit(prompt + answer, prompt, cap, body.chat_type)


def _node_cap(node: NodeSnapshot | None) -> int:
    return node.max_tokens if node is not None else NodeSnapshot("", "").max_tokens


def _check_model(
    surface: Surface, body: AnyBody, caller: Caller, node: NodeSnapshot | None, anonymous_raw: bool
) -> None:
    """A chat type brings its model; naming one, or using none of the chat types, needs a plan that lists it."""
    named = body.model
    if body.chat_type is not None and (named is None or named == "default" or named.startswith("chat:")):
        return
    if caller.principal.chat_types is not None:
        text = "Your token is for chat types alone, and each of them has its own model: send no other one."
        raise ApiError("model_not_allowed", text, param="model")
    model = named or "default"
    if node is not None and model == "default":
        model = default_model(node.models, node.default_model, surface.kind)
    anonymous = caller.principal.kind == "anonymous"
    names = next((item.names for item in node.models if item.id == model), (model,)) if node is not None else (model,)
    if not any(map(caller.plan.allows_model, names)) and not (anonymous and anonymous_raw):
        text = 'Your plan does not include this model; use a chat type, such as model "chat:home".'
        raise ApiError("model_not_allowed", text, param="model")
    if node is not None and model and node.models and all(item.id != model for item in node.models):
        known = ", ".join(item.id for item in node.models[:20])
        raise ApiError("model_not_found", f"There is no model {model[:100]!r} here. There are: {known}.", param="model")
