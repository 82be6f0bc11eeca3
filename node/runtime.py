"""What the node needs from a model runtime, whichever it is.

    Runtime.start() ──> supervision or probing in the background, ``on_change()`` whenever ``status()`` changed
    Runtime.chat()  ──> one streamed answer, as the bytes the runtime sent; leaving the block stops the generation

No type of an HTTP client leaks past this seam.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol

from shared.contract.errors import ApiError
from shared.contract.snapshot import ModelInfo, RuntimeState

# What a runtime is assumed to answer at once when it does not say: llama.cpp and LM Studio both default to 4.
DEFAULT_SLOTS = 4


@dataclass(frozen=True, slots=True)
class Generation:
    """One answer to make: everything a runtime may be told, and nothing else. ``None`` leaves it to the runtime.

    ``messages`` are {"role", "content"} with special tokens already neutralised; ``model`` is an id of
    ``RuntimeStatus.models``; ``max_tokens`` counts the answer only.
    """

    messages: list[dict[str, str]]
    model: str
    max_tokens: int
    temperature: float | None = None
    top_p: float | None = None
    stop: list[str] | None = None
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class RuntimeStatus:
    """State of the runtime at one moment. ``reason`` is a sentence for people whenever ``state`` is not "ready".

    ``models`` may be answered with now (the default first); ``slots`` answers run at once.
    """

    state: RuntimeState
    reason: str = ""
    models: tuple[ModelInfo, ...] = field(default=())
    default_model: str = ""
    slots: int = DEFAULT_SLOTS

    def model(self, name: str) -> ModelInfo | None:
        return next((model for model in self.models if model.id == name), None)


def require_model(status: RuntimeStatus, name: str) -> ModelInfo:
    """The model ``name`` of a runtime that can answer now. Raises ApiError, without the reason: that is for the owner,
    and may hold a path or an address."""
    if status.state in ("starting", "loading"):
        raise ApiError("model_loading", "The model is still loading. Try again in a few seconds.")
    if status.state != "ready":
        raise ApiError(
            "node_unavailable", "The node's model runtime is not ready. The node's own status says why; try again soon."
        )
    if (model := status.model(name)) is None:
        raise ApiError(
            "model_not_found", "This node has no model of that name. GET /v1/models lists what there is.", param="model"
        )
    return model


class RuntimeStream(Protocol):
    """The SSE body of one answer. Owned by the ``chat()`` block it came from."""

    @property
    def content_type(self) -> str: ...

    @property
    def at_end(self) -> bool:
        """The body is over and read: the connection can serve the next request."""
        ...

    async def read_slowly(self, seconds: float) -> bytes:
        """Wait for the end of the body, ``seconds`` at most, then all that is there; b"" also when nothing came yet.
        For answers that nobody sees before their end: a read for many events. Raises as ``read``."""
        ...

    async def read(self) -> bytes:
        """Any non-empty slice of the body; b"" at its end. No deadline of its own: the caller watches the stall.
        Raises ApiError ``runtime_error`` when the connection breaks."""
        ...


class Runtime(Protocol):
    """One model runtime. ``close()`` belongs to whoever called ``start()``."""

    @property
    def kind(self) -> str:
        """What answers, for people and metrics: "embedded", "llama.cpp", "LM Studio", "Ollama", …"""
        ...

    @property
    def special_tokens(self) -> frozenset[str]:
        """Control tokens of the loaded model as far as the runtime tells; empty when it does not."""
        ...

    def status(self) -> RuntimeStatus:
        """What is known now; no I/O."""
        ...

    async def start(self, on_change: Callable[[], None]) -> None:
        """Begin supervising or probing in the background and return at once."""
        ...

    async def close(self) -> None:
        """Stop everything that ``start()`` began; idempotent. Running streams break."""
        ...

    def chat(self, generation: Generation, request_id: str) -> AbstractAsyncContextManager[RuntimeStream]:
        """Ask for one streamed answer.

        Entering awaits the head of the response; the caller owns the deadline. Raises ApiError: ``node_unavailable``,
        ``model_loading``, ``model_not_found``, ``context_length_exceeded``, ``overloaded``, ``invalid_request``,
        ``runtime_error``, ``upstream_invalid``. Leaving closes the socket at once unless the body was read to its end.
        """
        ...

    async def count_prompt(self, generation: Generation) -> int | None:
        """Tokens of the prompt that the runtime would make of ``generation``, as its own check of the context counts
        them; None when it does not tell. Needs no slot, and takes seconds at most."""
        ...
