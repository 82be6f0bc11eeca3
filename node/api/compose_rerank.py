"""Ranking: what is asked of the runtime, and what becomes of its scores."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from node.api.compose_completion import refuse_chat_type
from node.api.cost import cost_of
from node.api.way import Asking, Prompt, Reply
from node.runtime import Inference
from shared.contract.errors import ApiError
from shared.contract.rerank import RerankBody


def write_rerank(body: RerankBody, asking: Asking) -> Prompt:
    """``POST /v1/rerank``. All documents are ranked; how many are wanted is for ``shape_rerank``."""
    refuse_chat_type(asking)
    return Prompt(
        {"query": asking.clean(body.query), "documents": [asking.clean(document) for document in body.documents]}
    )


def shape_rerank(answer: Mapping[str, Any], body: RerankBody, inference: Inference) -> Reply:
    """Jina's list, the best first. Raises ApiError ``upstream_invalid``."""
    results = answer.get("results")
    if not isinstance(results, list) or len(results) != len(body.documents):
        raise _invalid()
    scores = dict(map(_score, results))
    if scores.keys() != set(range(len(body.documents))):
        raise _invalid()
    best = sorted(scores.items(), key=lambda score: (-score[1], score[0]))[: body.top_n]
    usage = cost_of(answer.get("usage"), [body.query * len(body.documents), *body.documents])
    if usage is None:
        raise _invalid()
    fields = {
        "object": "list",
        "model": inference.model,
        "results": [_result(index, score, body) for index, score in best],
        "usage": {"prompt_tokens": usage.prompt_tokens, "total_tokens": usage.total_tokens},
    }
    return Reply(json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode(), usage)


def _score(result: Any) -> tuple[int, float]:
    index = result.get("index") if isinstance(result, dict) else None
    score = result.get("relevance_score") if isinstance(result, dict) else None
    if type(index) is not int or not isinstance(score, int | float) or not math.isfinite(score):
        raise _invalid()
    return index, score


def _result(index: int, score: float, body: RerankBody) -> dict[str, Any]:
    result: dict[str, Any] = {"index": index, "relevance_score": score}
    if body.return_documents:
        result["document"] = {"text": body.documents[index]}
    return result


def _invalid() -> ApiError:
    return ApiError("upstream_invalid", "The model runtime sent something that is no ranking.")
