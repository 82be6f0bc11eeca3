"""What the node needs from a model runtime, whichever it is: the words that its parts share.

    Runtime.start()  ──> supervision or probing in the background, ``on_change()`` whenever ``status()`` changed
    Runtime.stream() ──> one streamed answer, as the bytes the runtime sent; leaving the block stops the generation
    Runtime.load()   ──> a model into memory, where the runtime has a way

No type of an HTTP client leaks past this seam.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from shared.contract.errors import ApiError
from shared.contract.snapshot import ModelInfo, RuntimeState

# What a runtime is assumed to answer at once when it does not say: llama.cpp and LM Studio both default to 4.
DEFAULT_SLOTS = 4

# The runtime's own routes that an inference may go to; the first three speak OpenAI, ``messages`` Anthropic.
Api = Literal["chat", "completions", "embeddings", "responses", "messages", "rerank"]

# What a request may set, in the names of this project, which are OpenAI's where OpenAI has the parameter. A runtime
# maps them to its own; one that it has no way for is left out, and the caller is told.
PARAMETERS = (
    "temperature", "top_p", "top_k", "min_p", "repeat_penalty", "presence_penalty", "frequency_penalty", "stop", "seed",
    "logit_bias", "logprobs", "top_logprobs", "response_format", "tools", "tool_choice", "parallel_tool_calls",
    "reasoning_effort", "echo", "suffix",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Inference:
    """One thing to compute: everything a runtime may be told, and nothing else.

    ``content`` is what it is asked, in the words of ``api`` ({"messages": [...]}, {"prompt": "..."}, {"input": [...]}),
    special tokens already neutralised. ``parameters`` has names of ``PARAMETERS`` and no None: what is not there is
    left to the runtime. ``model`` is an id of ``RuntimeStatus.models``. ``max_tokens`` counts the answer only, 0 where
    there is none to count. ``slot`` is the runtime's slot that holds this caller's prefix, where one can be chosen.
    """

    api: Api
    model: str
    content: Mapping[str, Any]
    max_tokens: int = 0
    parameters: Mapping[str, Any] = field(default_factory=dict)
    slot: int | None = None

    @property
    def messages(self) -> list[dict[str, Any]]:
        """Of a chat; [] for what has none."""
        return self.content.get("messages", [])

    def at(self, slot: int) -> Inference:
        """The same, for that slot of the runtime."""
        return Inference(self.api, self.model, self.content, self.max_tokens, self.parameters, slot)


@dataclass(frozen=True, slots=True)
class LoadConfig:
    """How a model is to be loaded; None leaves it to the runtime. ``context_length`` in tokens; ``gpu_ratio`` 0 to 1
    of the layers, ``gpu_layers`` a number of them."""

    context_length: int | None = None
    gpu_ratio: float | None = None
    gpu_layers: int | None = None
    cpu_threads: int | None = None
    rope_frequency_base: float | None = None
    rope_frequency_scale: float | None = None

    def given(self) -> dict[str, float]:
        """What is not None, by name."""
        return {name: value for name in self.__slots__ if (value := getattr(self, name)) is not None}


@dataclass(frozen=True, slots=True)
class Loaded:
    """What became of a load. ``applied`` and ``ignored`` are names of ``LoadConfig`` that were given; ``workflow`` says
    how a person does what is in ``ignored``, one sentence per step, [] when nothing is."""

    applied: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    workflow: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RuntimeStatus:
    """State of the runtime at one moment. ``reason`` is a sentence for people whenever ``state`` is not "ready".

    ``models`` may be named in a request now, the default first, whatever their own ``state``: naming one that is not in
    memory has it loaded. ``slots`` inferences run at once, of all models that have no ``slots`` of their own. ``apis``
    are the routes that the runtime has, ``parameters`` those of ``PARAMETERS`` that have an effect.
    """

    state: RuntimeState
    reason: str = ""
    models: tuple[ModelInfo, ...] = field(default=())
    default_model: str = ""
    slots: int = DEFAULT_SLOTS
    apis: frozenset[Api] = frozenset({"chat"})
    parameters: frozenset[str] = frozenset(PARAMETERS)

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
    """The SSE body of one answer. Owned by the ``stream()`` block it came from."""

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
        """Control tokens of the loaded models as far as the runtime tells; empty when it does not."""
        ...

    @property
    def can_load(self) -> bool:
        """Whether ``load`` and ``unload`` do anything: a model that is not in memory is loaded by naming it."""
        ...

    @property
    def evicts(self) -> bool:
        """Whether the runtime itself makes room for a model that is loaded; else whoever loads unloads first."""
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

    def stream(self, inference: Inference, request_id: str) -> AbstractAsyncContextManager[RuntimeStream]:
        """Ask for one streamed answer (chat, completions, responses, messages).

        Entering awaits the head of the response; the caller owns the deadline. Raises ApiError: ``node_unavailable``,
        ``model_loading``, ``model_not_found``, ``context_length_exceeded``, ``overloaded``, ``invalid_request``,
        ``runtime_error``, ``upstream_invalid``, ``not_supported``. Leaving closes the socket at once unless the body
        was read to its end.
        """
        ...

    async def ask(self, inference: Inference, request_id: str) -> dict[str, Any]:
        """Ask for what comes as one JSON object (embeddings, rerank), as the runtime gave it. Cancelling closes the
        socket. Raises ApiError as ``stream``."""
        ...

    async def count_prompt(self, inference: Inference) -> int | None:
        """Tokens of the prompt that the runtime would make of a chat, as its own check of the context counts them;
        None when it does not tell. Needs no slot, and takes seconds at most."""
        ...

    async def check(self, model: str) -> None:
        """Look whether ``model`` could be loaded, as far as that shows without loading it: asked before anything makes
        room for it, and of a name that ``status()`` does not have, which it may have afterwards. Raises ApiError
        ``model_not_found``, ``runtime_error``."""
        ...

    async def load(self, model: str, config: LoadConfig, tell: Callable[[float | None], None]) -> Loaded:
        """Get ``model`` (an id of ``status().models``) into memory; one that is there with this configuration stays as
        it is, and there is never a second instance. ``tell`` hears the progress, 0 to 1, None while it is not known.

        Whoever calls it takes care that no other load or unload runs and, unless ``evicts``, that there is room.
        Cancelling gives up waiting. Raises ApiError ``model_not_found``, ``not_supported``, ``runtime_error``,
        ``node_unavailable``; what was in memory before is still there then, or again.
        """
        ...

    async def unload(self, model: str) -> None:
        """Take ``model`` out of memory; one that is not there is no mistake. Its streams break. Raises as ``load``."""
        ...

    def stand_down(self) -> None:
        """Load nothing any more that nobody asks for, such as the model of the start that is not there yet."""
        ...
