"""What a runtime's refusal means to our caller: one table for the error shapes of all runtimes.

Runtimes quote what they were sent (pydantic prints the input, templates print the message), so their text is only
matched here, never passed on; what may be said comes from numbers and from us.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from shared.contract.errors import ApiError

_CONTEXT = re.compile(r"context[ _-]?(length|size|window)|maximum context|exceeds? the (available )?context", re.I)
_MODEL = re.compile(r"model.{0,300}(not found|does not exist|not loaded)|no models? (is |are )?loaded", re.I | re.S)
_LOADING = re.compile(r"(?<!error )(?<!failed )loading model|model is (still )?loading", re.I)
_NO_ROUTE = re.compile(r"file not found|unexpected endpoint|page not found|^not found$|cannot post", re.I)
_NOT_DONE = re.compile(r"does not support (the )?[\w ]{1,40} API", re.I)  # vLLM, of a model of another kind
_CHAT = "/chat/completions"
_ROLES = re.compile(
    r"missing 'role'|roles? must alternate|only user|role not supported|first message|no user query", re.I
)
# What a message quotes is mostly what the caller wrote, and says nothing of what went wrong. An apostrophe is no quote.
_QUOTED = re.compile(r"(?<!\w)(['\"]).*?(?:\1(?!\w)|\Z)", re.S)
_PARAM = re.compile(r"[a-z_]{1,32}")


def from_response(
    status: int, payload: object, *, retry_after: float | None = None, path: str = "/v1/chat/completions"
) -> ApiError:
    """The error that an HTTP answer stands for. ``payload`` is its JSON, or its text; ``retry_after`` in seconds;
    ``path`` is what was asked."""
    fields = _fields(payload)
    kind, said = fields.get("type"), str(fields.get("message") or "")
    text = _QUOTED.sub("", said)
    if status in (401, 403):
        return ApiError(
            "runtime_error",
            "The model runtime refused the node's key. The owner of the node sets it as node.runtime.key.",
            should_retry=False,
        )
    if kind == "exceed_context_size_error" or _CONTEXT.search(text):
        return context_exceeded(fields.get("n_prompt_tokens"), fields.get("n_ctx"))
    if _LOADING.search(text) or (status == 503 and kind == "unavailable_error"):
        return ApiError("model_loading", "The model is still loading. Try again in a few seconds.")
    no_route = status == 404 and bool(_NO_ROUTE.search(said.strip()))
    missing = no_route and not path.endswith(_CHAT)
    if status == 501 or missing or kind == "not_supported_error" or _NOT_DONE.search(text):
        return ApiError(
            "not_supported",
            "The node's runtime does not do this, or was not started for it: for embeddings and for ranking llama.cpp "
            "needs a flag. The owner of the node may start it with that.",
        )
    if no_route:
        return ApiError(
            "runtime_error",
            "What answers at node.runtime.url has no /v1/chat/completions. The owner of the node corrects the URL.",
            should_retry=False,
        )
    if status == 404 or fields.get("param") == "model" or _MODEL.search(text):
        return ApiError(
            "model_not_found",
            "The runtime has no such model (any more). GET /v1/models lists what there is.",
            param="model",
        )
    if status in (429, 503):
        return ApiError("overloaded", "The model runtime is busy. Try again in a moment.", retry_after=retry_after)
    if status in (502, 504):
        return ApiError("node_unavailable", "The model runtime cannot be reached just now. Try again in a moment.")
    if _ROLES.search(said):
        return ApiError(
            "invalid_request",
            "The model's chat template does not take this order of roles. "
            "Let user and assistant take turns, beginning with user.",
            param="messages",
        )
    if 400 <= status < 500:
        param = str(fields.get("param") or "")
        return ApiError(
            "invalid_request",
            f"The runtime refused a parameter of this request (HTTP {status}). Leave out optional ones to find which.",
            param=param if _PARAM.fullmatch(param) else None,
        )
    return ApiError("runtime_error", f"The model runtime failed (HTTP {status}). Its own log says why; try again.")


def from_event(payload: object) -> ApiError:
    """The error inside a stream: the value of an ``error`` key, a whole error object, or text, which may be JSON. A
    number in its ``code`` is read as the HTTP status it would have had."""
    if isinstance(payload, str) and payload.startswith("{"):
        with suppress(ValueError, RecursionError):
            payload = json.loads(payload)
    fields = _fields(payload)
    code = fields.get("code")
    status = code if isinstance(code, int) and 400 <= code <= 599 else 500
    return from_response(status, payload)


def context_exceeded(prompt: object = None, context: object = None) -> ApiError:
    """``prompt`` and ``context`` are tokens; anything but two numbers is left out."""
    sizes = f" ({prompt} tokens, the context holds {context})" if type(prompt) is type(context) is int else ""
    return ApiError(
        "context_length_exceeded",
        f"The conversation is longer than the model's context{sizes}. Send fewer or shorter messages.",
        param="messages",
        should_retry=False,
    )


def _fields(payload: object) -> Mapping[str, Any]:
    """The shapes in use: {"error": {...}}, {"error": "text"}, {"object": "error", "message": ...}, {"detail": "text"},
    plain text."""
    if isinstance(payload, Mapping):
        inner = payload.get("error", payload)
        if not isinstance(inner, Mapping):
            return {"message": str(inner)}
        return {"message": inner["detail"], **inner} if "detail" in inner else inner
    return {"message": str(payload)}
