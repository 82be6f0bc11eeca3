"""Embeddings: what is asked of the runtime, and what becomes of its vectors."""

from __future__ import annotations

import base64
import json
import math
import struct
from collections.abc import Mapping
from typing import Any

from node.api.compose_completion import refuse_chat_type
from node.api.cost import cost_of
from node.api.way import Asking, Prompt, Reply
from node.runtime import Inference
from shared.contract.embeddings import EmbeddingBody
from shared.contract.errors import ApiError

# No model has vectors near this.
_MAX_DIMENSIONS = 1 << 16


def write_embedding(body: EmbeddingBody, asking: Asking) -> Prompt:
    """``POST /v1/embeddings``."""
    refuse_chat_type(asking)
    return Prompt({"input": [asking.clean(text) for text in body.input]})


def shape_embedding(answer: Mapping[str, Any], body: EmbeddingBody, inference: Inference) -> Reply:
    """OpenAI's list, in the order of the inputs. Raises ApiError ``upstream_invalid``."""
    items = answer.get("data")
    usage = cost_of(answer.get("usage"), body.input)
    if not isinstance(items, list) or len(items) != len(body.input) or usage is None:
        raise _invalid()
    encode = _base64 if body.encoding_format == "base64" else _numbers
    data = ",".join(
        f'{{"object":"embedding","index":{index},"embedding":{encode(_vector(item))}}}'
        for index, item in enumerate(sorted(items, key=_index))
    )
    told = {"prompt_tokens": usage.prompt_tokens, "total_tokens": usage.total_tokens}
    head, tail = json.dumps(inference.model), json.dumps(told)
    return Reply(f'{{"object":"list","data":[{data}],"model":{head},"usage":{tail}}}'.encode(), usage)


def _index(item: Any) -> int:
    index = item.get("index") if isinstance(item, dict) else None
    if type(index) is not int:
        raise _invalid()
    return index


def _vector(item: Mapping[str, Any]) -> list[float]:
    """The numbers, checked by what is fast: there may be two million of them in one answer."""
    vector = item.get("embedding")
    if not isinstance(vector, list) or not 0 < len(vector) <= _MAX_DIMENSIONS:
        raise _invalid()
    try:
        whole = all(map(math.isfinite, vector))
    except (TypeError, OverflowError):
        raise _invalid() from None
    if not whole:
        raise _invalid()
    return vector


def _numbers(vector: list[float]) -> str:
    return json.dumps(vector, separators=(",", ":"))


def _base64(vector: list[float]) -> str:
    try:
        return f'"{base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()}"'
    except (struct.error, OverflowError):
        raise _invalid() from None


def _invalid() -> ApiError:
    return ApiError("upstream_invalid", "The model runtime sent something that is no list of embeddings.")
