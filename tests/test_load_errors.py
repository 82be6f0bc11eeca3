"""What servers say when they cannot load a model becomes our codes, and never carries their text."""

from __future__ import annotations

from typing import Any

import pytest

from node.runtimes import upstream_errors
from node.runtimes.load_errors import from_load

_LM_STUDIO_FULL = {"error": {"message": "Model loading was stopped due to insufficient system resources"}}
_OLLAMA_BROKEN = {"error": "llama runner process has terminated: error loading model: key not found in model: secret"}


@pytest.mark.parametrize(
    ("status", "payload", "code", "says"),
    [
        (500, _LM_STUDIO_FULL, "runtime_error", "no room in memory"),
        (500, {"error": "model requires more system memory (9 GiB) than is available"}, "runtime_error", "no room"),
        (500, _OLLAMA_BROKEN, "runtime_error", "could not load"),
        (400, {"error": {"message": "bad value for context_length"}}, "runtime_error", "could not load"),
        (404, {"error": "model 'secret' not found"}, "model_not_found", "no such model"),
        (400, {"error": {"message": "Model secret not found", "param": "model"}}, "model_not_found", "no such model"),
        (404, {"error": "Unexpected endpoint or method. (POST /api/v1/models/load)"}, "not_supported", "does not do"),
        (401, {"error": {"message": "no token"}}, "runtime_error", "node.runtime.key"),
        (503, {"error": "server busy, please try again.  maximum pending requests exceeded"}, "overloaded", "busy"),
    ],
)
def test_refusals_of_loads(status: int, payload: Any, code: str, says: str) -> None:
    error = from_load(status, payload)
    assert error.code == code and says in error.message and "secret" not in error.message


def test_a_model_that_cannot_be_loaded_is_not_said_to_be_loading() -> None:
    """Ollama loads what a chat names, and says so when it fails."""
    assert upstream_errors.from_response(500, {"error": "error loading model: bad magic"}).code == "runtime_error"
