"""Models and chat types as both deployables list them: OpenAI's list shape, with what callers need beside it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from shared.contract.snapshot import ChatTypeInfo, ModelInfo


def model_object(model: ModelInfo) -> dict[str, Any]:
    """One entry of ``GET /v1/models``; ``context_length`` is in tokens."""
    return {
        "id": model.id,
        "object": "model",
        "created": model.created,
        "owned_by": model.owned_by,
        "context_length": model.context,
    }


def model_list(models: Iterable[ModelInfo]) -> dict[str, Any]:
    return {"object": "list", "data": [model_object(model) for model in models]}


def chat_type_list(kinds: Iterable[ChatTypeInfo]) -> dict[str, Any]:
    """``GET /v1/chat/types``."""
    rows = [{"name": kind.name, "description": kind.description, "max_tokens": kind.max_tokens} for kind in kinds]
    return {"object": "list", "data": rows}
