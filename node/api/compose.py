"""From a caller's body to what the runtime is asked: which model, which chat type, every value bounded. The same for
all surfaces; what differs stands in their rows (``node.api.way``)."""

from __future__ import annotations

from dataclasses import dataclass

from node.api.parameters import Settled, settle
from node.api.way import Asking, Prompt, Way
from node.prompts import ChatType
from node.runtime import Inference, RuntimeStatus, require_model
from node.services import Services
from shared.contract.body import AnyBody
from shared.contract.errors import ApiError
from shared.contract.snapshot import ModelInfo, default_model
from shared.contract.surface import Surface
from shared.link.call import Call

_LACKS = {"chat": "does not write text", "embedding": "makes no embeddings", "rerank": "ranks no documents"}


@dataclass(slots=True)
class Composed:
    """What was made of a request. ``dropped`` are names that the caller is told."""

    inference: Inference
    model: ModelInfo
    prompt: Prompt
    chat_type: str | None
    settled: Settled
    dropped: list[str]


def compose(body: AnyBody, call: Call, way: Way, node: Services, held: object = None) -> Composed:
    """``held`` is what the row's ``before`` gave. Raises ApiError ``chat_type_not_found``, ``model_not_found``,
    ``model_loading``, ``node_unavailable``, ``not_supported`` or ``invalid_request``."""
    node.models.refuse_away()
    kind = node.chat_types.get(body.chat_type) if body.chat_type is not None else None
    status = node.models.status()
    model = _model(body, kind, call, way, node, status)
    cap = min(node.max_tokens, call.max_tokens or node.max_tokens)
    if kind is not None:
        cap = min(cap, kind.max_tokens)
    prompt = way.write(body, Asking(call, node, kind, model, cap, held))
    known = status.parameters & way.parameters
    settled = settle(prompt.parameters, body.asked_tokens, kind, node.models.defaults(model.id), known)
    longest = cap if settled.asked is None else min(settled.asked, cap)
    inference = Inference(way.api, model.id, prompt.content, longest, settled.parameters)
    dropped = [*body.dropped, *settled.dropped]
    return Composed(inference, model, prompt, body.chat_type, settled, dropped)


def _model(
    body: AnyBody, kind: ChatType | None, call: Call, way: Way, node: Services, status: RuntimeStatus
) -> ModelInfo:
    """The model that is named, else the chat type's, else the default of what the surface needs."""
    wanted = body.model
    if wanted is None or wanted == "default" or wanted.startswith("chat:"):
        wanted = kind.model if kind is not None else None
    name = node.models.named(wanted)
    surface = call.surface
    assert isinstance(surface, Surface), "an operation is no answer"
    if wanted is None:
        name = default_model(status.models, name, surface.kind)
    model = require_model(status, name)
    if way.api not in status.apis:
        raise surface.lacking()
    if model.kind != surface.kind and (surface.kind == "chat" or _in_vain(model, surface, node, status)):
        text = f"That model {_LACKS[surface.kind]} ({model.kind}). GET /v1/models lists those there are."
        raise ApiError("not_supported", text, param="model", should_retry=False)
    return model


def _in_vain(model: ModelInfo, surface: Surface, node: Services, status: RuntimeStatus) -> bool:
    """Whether another model would leave memory for one that, as far as is known, can only refuse. One that writes text
    may make embeddings, too, where the runtime lists none for them."""
    makes_room = not model.in_memory and not node.runtime.evicts
    return makes_room and any(other.kind == surface.kind for other in status.models)
