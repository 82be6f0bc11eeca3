"""What the embedded runtime says of itself: of each model, of all together, and why there is none."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType

from node.runtime import Api
from node.runtimes.llama_instance import LOOKED_FOR, FileProblem, LlamaInstance, read_header
from node.runtimes.llama_order import Habits
from node.runtimes.model_folder import ModelFile, ModelFolder, model_id
from shared.contract.errors import ApiError
from shared.contract.snapshot import ModelInfo, ModelKind, ModelState, RuntimeState
from shared.model_names import ENDING

TEXT: frozenset[Api] = frozenset({"chat", "completions", "responses", "messages"})
# What a model of a kind can be asked. One that makes embeddings may end the process when it is asked for text.
APIS: Mapping[ModelKind, frozenset[Api]] = MappingProxyType(
    {"chat": TEXT, "embedding": frozenset[Api]({"embeddings"}), "rerank": frozenset[Api]({"rerank"})}
)
_PURPOSES: Mapping[ModelKind, str] = MappingProxyType(
    {"chat": "writes text", "embedding": "makes embeddings", "rerank": "ranks documents"}
)


def require_api(model: ModelInfo, api: Api) -> None:
    """Raises ApiError when a model of this kind cannot be asked that."""
    if api not in APIS[model.kind]:
        raise ApiError(
            "not_supported",
            f"This model {_PURPOSES[model.kind]}, and nothing else. GET /v1/models lists the others.",
            param="model",
            should_retry=False,
        )


def kind_of(file: ModelFile, habits: Habits) -> ModelKind:
    pooling = habits.of(file.id).pooling or file.header.pooling
    if pooling is None:
        return "chat"
    return "rerank" if pooling == "rank" else "embedding"


def info_of(file: ModelFile, instance: LlamaInstance | None, habits: Habits) -> ModelInfo:
    """One that failed is "available", tried again when it is named; or "loading", where it comes back by itself."""
    state: ModelState = "available"
    if instance is not None and not instance.ended:
        state = "loading" if instance.state == "failed" else instance.state
    return ModelInfo(
        file.id,
        instance.context if instance is not None and state == "loaded" else habits.context_of(file),
        created=int(file.changed),
        state=state,
        kind=kind_of(file, habits),
        slots=habits.slots_of(file.id),
        vision=file.projector is not None,
        max_context=file.header.context,
        size=file.header.size,
    )


def state_of(instances: Mapping[str, LlamaInstance], models: Collection[str], problem: str) -> tuple[RuntimeState, str]:
    """State and reason. Ready while any of ``models`` is in memory, or can be loaded while no other is on its way. One
    that comes back from the dead, or is not there yet (``problem``), is no reason to send requests here."""
    running = {name: instance for name, instance in instances.items() if not instance.ended}
    if any(instance.state == "loaded" for instance in running.values()):
        return "ready", ""
    coming = [instance for instance in running.values() if instance.state == "loading"]
    if reasons := [instance.reason for instance in coming if not instance.ailing]:
        return "loading", reasons[0]
    if not problem and any(name not in running for name in models):
        return "ready", ""
    if reasons := [instance.reason for instance in coming]:
        return "loading", reasons[0]
    if reasons := [instance.reason for instance in running.values()]:
        return "unavailable", reasons[0]
    return ("unavailable", problem) if problem else ("ready", "")


def what_is_missing(folder: ModelFolder, files: Mapping[str, ModelFile]) -> str:
    """Why the model that was set, or any, cannot be loaded; "" when it can. Blocking."""
    if folder.first is not None:
        found = files.get(model_id(folder.first))
        if found is not None and found.path == folder.first:
            return ""
        try:
            kind = read_header(folder.first).kind
        except FileProblem as error:
            return str(error) + LOOKED_FOR
        return f"{folder.first} is no model by itself ({kind}). Name a model with --model PATH (node.runtime.model)."
    if files:
        return ""
    return (
        f"No model is set, and {_why_empty(folder)}. Name a GGUF file with --model PATH (node.runtime.model), or a"
        " runtime with --runtime URL (node.runtime.url)."
    )


def _why_empty(folder: ModelFolder) -> str:
    if folder.folder is None:
        return "this installation brings none"
    if not folder.folder.is_dir():
        return f"there is no folder {folder.folder}"
    if not folder.unfit:
        return f"no GGUF file lies in {folder.folder}"
    name, why = next(iter(folder.unfit.items()))
    rest = f", and {len(folder.unfit) - 1} more are none either" if len(folder.unfit) > 1 else ""
    return f"no file in {folder.folder} is a whole model ({name}{ENDING} {why}{rest})"
