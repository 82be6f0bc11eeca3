"""The error shapes of all runtimes become our codes, and never carry their text."""

from __future__ import annotations

import pytest

from node.runtimes import upstream_errors
from node.runtimes.server import ServerRuntime
from shared.contract.errors import ApiError
from tests.fake_runtime import FakeRuntime
from tests.runtime_support import ask, is_ready, read_all, running


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("loading", "model_loading"),
        ("llamacpp_context", "context_length_exceeded"),
        ("llamacpp_invalid", "invalid_request"),
        ("llamacpp_missing_role", "invalid_request"),
        ("llamacpp_unknown_model", "model_not_found"),
        ("llamacpp_unauthorized", "runtime_error"),
        ("lmstudio_unknown_model", "model_not_found"),
        ("lmstudio_context", "context_length_exceeded"),
        ("lmstudio_unauthorized", "runtime_error"),
        ("lmstudio_unknown_path", "runtime_error"),
        ("vllm_unknown_model", "model_not_found"),
        ("vllm_context", "context_length_exceeded"),
        ("vllm_busy", "overloaded"),
        ("vllm_unauthorized", "runtime_error"),
        ("ollama_unknown_model", "model_not_found"),
        ("ollama_busy", "overloaded"),
        ("sglang_context", "context_length_exceeded"),
        ("sglang_busy", "overloaded"),
        ("bad_gateway", "node_unavailable"),
        ("html", "upstream_invalid"),
        ("json_instead_of_stream", "upstream_invalid"),
        ("huge_header", "upstream_invalid"),
        ("garbage", "upstream_invalid"),
        ("reset_before_headers", "runtime_error"),
    ],
)
async def test_a_refusal_becomes_our_code(script: str, code: str) -> None:
    async with FakeRuntime(script) as fake, running(runtime := ServerRuntime(fake.url)) as until:
        await until(is_ready)
        with pytest.raises(ApiError) as refused:
            await read_all(runtime, ask(content="a very private prompt"))
        assert refused.value.code == code
        assert "private" not in str(refused.value) and refused.value.message.endswith(".")
        await fake.idle()


async def test_retry_after_is_passed_on() -> None:
    async with FakeRuntime("vllm_busy") as fake, running(runtime := ServerRuntime(fake.url)) as until:
        await until(is_ready)
        with pytest.raises(ApiError) as refused:
            await read_all(runtime, ask())
        assert refused.value.retry_after == 3


@pytest.mark.parametrize("script", ["reset_mid_stream", "cut_mid_stream"])
async def test_a_broken_connection_is_never_a_clean_end(script: str) -> None:
    async with FakeRuntime(script) as fake, running(runtime := ServerRuntime(fake.url)) as until:
        await until(is_ready)
        with pytest.raises(ApiError) as broken:
            await read_all(runtime, ask())
        assert broken.value.code == "runtime_error"


async def test_a_model_nobody_has_is_refused_without_asking() -> None:
    async with FakeRuntime() as fake, running(runtime := ServerRuntime(fake.url)) as until:
        await until(is_ready)
        with pytest.raises(ApiError) as refused:
            await read_all(runtime, ask("other"))
        assert refused.value.code == "model_not_found" and not fake.chats


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        ({"error": {"message": "boom"}, "message": "boom"}, "runtime_error"),
        ({"error": "llama runner process has terminated"}, "runtime_error"),
        ({"error": {"message": "the prompt exceeds the context length", "code": None}}, "context_length_exceeded"),
        ({"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}, "model_loading"),
        ({"object": "error", "message": "queue is full", "code": 503}, "overloaded"),
        ({"error": {"message": "x", "code": 10**9}}, "runtime_error"),
        ("text", "runtime_error"),
    ],
)
def test_errors_inside_a_stream(payload: object, code: str) -> None:
    assert upstream_errors.from_event(payload).code == code


@pytest.mark.parametrize(
    ("status", "payload", "path", "code"),
    [
        (404, {"error": {"message": "File Not Found", "type": "not_found_error"}}, "/v1/embeddings", "not_supported"),
        (404, {"detail": "Not Found"}, "/v1/responses", "not_supported"),
        (404, {"detail": "Not Found"}, "/v1/chat/completions", "runtime_error"),
        (404, "404 page not found", "/v1/rerank", "not_supported"),
        (200, {"error": "Unexpected endpoint or method. (POST /v1/rerank)"}, "/v1/rerank", "not_supported"),
        (501, {"error": {"message": "This server does not support embeddings."}}, "/v1/embeddings", "not_supported"),
        (400, {"error": {"message": "The model does not support Embeddings API"}}, "/v1/embeddings", "not_supported"),
        (404, {"error": {"message": "The model `x` does not exist."}}, "/v1/embeddings", "model_not_found"),
        (422, {"detail": [{"loc": ["body", "top_p"], "msg": "too big"}]}, "/v1/completions", "invalid_request"),
    ],
)
def test_what_a_runtime_has_no_way_for(status: int, payload: object, path: str, code: str) -> None:
    assert upstream_errors.from_response(404 if status == 200 else status, payload, path=path).code == code


@pytest.mark.parametrize(
    ("status", "message", "code"),
    [
        (400, "Extra inputs are not permitted: content = 'what is the context length of GPT?'", "invalid_request"),
        (400, "Value error in 'the model I bought was not found in the shop'", "invalid_request"),
        (500, 'error rendering template with content: "is my model still loading model', "runtime_error"),
        (400, "'max_tokens' is too large. This model's maximum context length is 9 tokens.", "context_length_exceeded"),
        (400, 'model "x" not found, try pulling it first', "model_not_found"),
    ],
)
def test_what_a_message_quotes_says_nothing(status: int, message: str, code: str) -> None:
    """It is mostly what the caller wrote."""
    assert upstream_errors.from_response(status, {"error": {"message": message}}).code == code


def test_a_runtimes_own_text_is_never_passed_on() -> None:
    secret = "my private prompt"
    for status in (400, 401, 404, 422, 429, 500, 503):
        for payload in ({"error": {"message": f"bad input: {secret}", "param": secret}}, {"error": secret}, secret):
            error = upstream_errors.from_response(status, payload)
            assert secret not in f"{error.message} {error.param}"
