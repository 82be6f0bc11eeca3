"""Scripts of the fake runtime by name, with defaults that suit a test of a second or less.

Error presets are called after the runtime that sends the shape; ``error_*`` are errors in a stream that began well.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.fake_scripts import (
    DONE,
    Script,
    body,
    chunk,
    completion,
    endless_line,
    eof_without_done,
    error_in_stream,
    event,
    half_characters,
    huge_header,
    in_slices,
    normal,
    progress,
    progress_forever,
    raw,
    reasoning,
    refuse,
    reset_mid_stream,
    rewritten,
    stall_before_headers,
    stall_mid_stream,
    with_extras,
)


def _error(kind: str, message: str, code: Any = None, **extra: Any) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "code": code, "param": None, **extra}}


def _flat(status: int, message: str) -> dict[str, Any]:
    return {"object": "error", "message": message, "type": "BadRequest", "param": None, "code": status}


_TOO_LONG = "the request exceeds the available context size, try increasing it"
_LM_STUDIO_TOO_LONG = "The number of tokens to keep is greater than the context length (4096) of the loaded model."
_GENERATION_FAILED = _error("server_error", "decode failed: no room in the KV cache", 500)
_EVENT_ERROR = event({"error": {"message": _LM_STUDIO_TOO_LONG}, "message": _LM_STUDIO_TOO_LONG})
_HTML = b"<!doctype html><html><head><title>Welcome</title></head><body><h1>It works!</h1></body></html>"
_MIXED = bytes(range(256)) * 8

PRESETS: Mapping[str, Script] = {
    "normal": normal(),
    "slow": normal(20, 0.05),
    "split_every_byte": in_slices(1),
    "half_characters": half_characters(),
    "crlf": rewritten(lambda piece: piece.replace(b"\n", b"\r\n")),
    "cr": rewritten(lambda piece: piece.replace(b"\n", b"\r")),
    "no_space": rewritten(lambda piece: piece.replace(b"data: ", b"data:")),
    "comments": rewritten(lambda piece: b": ping\n\n" + piece),
    "bom": with_extras(first=b"\xef\xbb\xbf"),
    "reasoning_content": with_extras(before=reasoning("reasoning_content")),
    "reasoning": with_extras(before=reasoning("reasoning")),
    "progress": with_extras(before=progress()),
    "after_done": with_extras(after=[chunk({"content": "too late"})]),
    "usage_missing": normal(usage="missing"),
    "usage_negative": normal(usage={"prompt_tokens": -5, "completion_tokens": -1, "total_tokens": -6}),
    "usage_absurd": normal(usage={"prompt_tokens": 10**12, "completion_tokens": 10**12, "total_tokens": 2 * 10**12}),
    "usage_not_numbers": normal(usage={"prompt_tokens": "many", "completion_tokens": None}),
    "stall_before_headers": stall_before_headers(),
    "stall_mid_stream": stall_mid_stream(),
    "progress_forever": progress_forever(),
    "endless_line": endless_line(),
    "huge_header": huge_header(),
    "garbage": raw(_MIXED),
    "garbage_body": body(_MIXED),
    "garbage_json": body(b'data: {"choices":[{"delta":\n\ndata: not json at all\n\n' + DONE),
    "html": body(_HTML, "text/html; charset=utf-8"),
    "json_instead_of_stream": refuse(200, completion(5)),
    "empty_stream": body(b""),
    "reset_before_headers": raw(b"", reset=True),
    "reset_mid_stream": reset_mid_stream(),
    "eof_without_done": eof_without_done(),
    "eof_after_finish": eof_without_done(finish="stop"),
    "cut_mid_stream": eof_without_done(framed=False),
    # Status and body, runtimes by name; shapes as the servers send them.
    "loading": refuse(503, _error("unavailable_error", "Loading model", 503)),
    "llamacpp_context": refuse(
        400, _error("exceed_context_size_error", _TOO_LONG, 400, n_prompt_tokens=9000, n_ctx=4096)
    ),
    "llamacpp_invalid": refuse(400, _error("invalid_request_error", "'messages' must be an array", 400)),
    "llamacpp_missing_role": refuse(500, _error("server_error", "Missing 'role' in message", 500)),
    "llamacpp_unknown_model": refuse(400, _error("invalid_request_error", "model not found", 400)),
    "llamacpp_unauthorized": refuse(401, _error("authentication_error", "Invalid API Key", 401)),
    "lmstudio_unknown_model": refuse(
        404, _error("invalid_request_error", "No models loaded. Load one.", param="model")
    ),
    "lmstudio_context": refuse(400, {"error": _LM_STUDIO_TOO_LONG}),
    "lmstudio_unauthorized": refuse(
        401, _error("invalid_request", "A valid LM Studio API token is required", "invalid_api_key")
    ),
    "lmstudio_unknown_path": refuse(200, {"error": "Unexpected endpoint or method. (POST /v1/chat/completions)"}),
    "lmstudio_context_in_stream": error_in_stream(b"event: error\n" + _EVENT_ERROR, 0),
    "lmstudio_no_text": body(DONE),
    "vllm_unknown_model": refuse(404, _error("NotFoundError", "The model `x` does not exist.", 404)),
    "vllm_context": refuse(400, _error("BadRequestError", "This model's maximum context length is 4096 tokens.", 400)),
    "vllm_busy": refuse(503, _error("ServiceUnavailable", "The server is overloaded", 503), [("Retry-After", "3")]),
    "vllm_unauthorized": refuse(401, {"error": "Unauthorized"}),
    "ollama_unknown_model": refuse(404, _error("not_found_error", 'model "x" not found, try pulling it first')),
    "ollama_busy": refuse(503, _error("api_error", "server busy, please try again. maximum pending requests exceeded")),
    "ollama_midstream": eof_without_done(finish=None),
    "sglang_context": refuse(
        400, _flat(400, "The input (9000 tokens) is longer than the model's context length (4096).")
    ),
    "sglang_busy": refuse(503, _flat(503, "The request queue is full.")),
    "bad_gateway": body(_HTML, "text/html", 502),
    # Errors in a stream that began well.
    "error_data": error_in_stream(event(_GENERATION_FAILED)),
    "error_data_then_done": error_in_stream(event(_GENERATION_FAILED), done=True),
    "error_data_text": error_in_stream(event({"error": "llama runner process has terminated"})),
    "error_event": error_in_stream(b"event: error\n" + event({"error": {"message": "boom"}, "message": "boom"})),
    "error_field": error_in_stream(event(_GENERATION_FAILED).replace(b"data: ", b"error: ", 1)),
    "error_flat": error_in_stream(event(_flat(500, "the scheduler died"))),
}
