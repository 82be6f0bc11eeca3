"""What a server's refusal to load a model means; its own text is only matched, as in ``upstream_errors``."""

from __future__ import annotations

import json
import re

from node.runtimes import upstream_errors
from shared.contract.errors import ApiError

_MEMORY = re.compile(
    r"out of memory|more system memory|insufficient (system )?(resources|memory)|not enough memory|overload|"
    r"unable to allocate|failed to allocate|guardrail",
    re.I,
)
_TOLD = frozenset({401, 403, 404, 429, 502, 503, 504})  # statuses that say what is wrong


def from_load(status: int, payload: object) -> ApiError:
    """The error that an answer to a load, or an unload, stands for. ``payload`` is its JSON, or its text."""
    if _MEMORY.search(json.dumps(payload)):
        return ApiError(
            "runtime_error",
            "There is no room in memory for the model as it was asked for. Unload another one, or load it with a "
            "smaller contextLength or gpu.ratio.",
            should_retry=False,
        )
    error = upstream_errors.from_response(status, payload, path="/load")
    # A failure of the server's own quotes the file it read, in words that mean something else in an answer to a chat.
    if status in _TOLD or (status == 400 and error.code == "model_not_found"):
        return error
    return ApiError(
        "runtime_error",
        f"The model runtime could not load the model (HTTP {status}). Its own log says why: often the file is damaged, "
        "or of an architecture that this version does not know.",
        should_retry=False,
    )


def gone() -> ApiError:
    """Nobody answers any more."""
    return ApiError("node_unavailable", "The model runtime cannot be reached just now. Try again in a moment.")
