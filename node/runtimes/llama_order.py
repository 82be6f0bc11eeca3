"""From what was asked for a model to what its process is told: whose word counts, and what cannot be had."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from node.runtime import DEFAULT_SLOTS, LoadConfig, Loaded
from node.runtimes import cpu
from node.runtimes.gguf import Header
from node.runtimes.llama_child import Order
from node.runtimes.model_folder import ModelFile
from shared.settings_models import ModelSettings

# Tokens per slot where nobody chose: what a chat needs, and 4 slots of it take some 2 GiB with an 8 B model.
DEFAULT_CONTEXT = 4096


@dataclass(frozen=True, slots=True)
class Habits:
    """What the settings say of all models, and of some: ``models`` by id. ``context`` is in tokens per slot;
    ``gpu_layers`` -1 puts on the GPU what fits; ``threads`` default to what ``cpu.inference_threads`` says."""

    context: int | None = None
    slots: int | None = None
    gpu_layers: int = -1
    threads: int | None = None
    models: Mapping[str, ModelSettings] = field(default_factory=lambda: MappingProxyType({}))

    def of(self, model: str) -> ModelSettings:
        return self.models.get(model) or ModelSettings()

    def slots_of(self, model: str) -> int:
        return self.of(model).slots or self.slots or DEFAULT_SLOTS

    def context_of(self, file: ModelFile) -> int:
        """What it gets when it is loaded as the settings say. llama.cpp gives no slot more than the training context,
        whatever is done to the positions."""
        wanted = self.of(file.id).context or self.context or DEFAULT_CONTEXT
        return min(wanted, file.header.context or wanted)

    def order(self, file: ModelFile, key: str, config: LoadConfig) -> Order:
        """``config`` counts first, then the model's own settings, then those of all. ``key`` is what the process will
        ask its callers for."""
        own, header = self.of(file.id), file.header
        context = self.context_of(file)
        if config.context_length is not None:
            context = min(config.context_length, header.context or config.context_length)
        return Order(
            model=str(file.path),
            alias=file.id,
            slots=self.slots_of(file.id),
            context=context,
            threads=config.cpu_threads or own.threads or self.threads or cpu.inference_threads(),
            gpu_layers=self._gpu_layers(own, config, header),
            parameters=header.active_parameters,
            key=key,
            pooling=own.pooling or header.pooling or "",
            projector=str(file.projector or ""),
            rope_base=config.rope_frequency_base or own.rope_frequency_base or 0.0,
            rope_scale=config.rope_frequency_scale or own.rope_frequency_scale or 0.0,
        )

    def _gpu_layers(self, own: ModelSettings, config: LoadConfig, header: Header) -> int:
        for layers, ratio in ((config.gpu_layers, config.gpu_ratio), (own.gpu_layers, own.gpu_ratio)):
            if layers is not None:
                return layers
            if ratio is not None:
                return round(ratio * (header.layers + 1))  # the output counts as one more layer
        return self.gpu_layers


def outcome(config: LoadConfig, order: Order, *, gpu: bool) -> Loaded:
    """What became of ``config`` in a process that runs with ``order``; ``gpu``: it uses one."""
    ignored: list[str] = []
    workflow: list[str] = []
    if config.context_length is not None and order.context < config.context_length:
        ignored.append("context_length")
        workflow.append(
            f"The model was trained for {order.context} tokens, and has these; for more, load one that was trained for"
            " longer texts."
        )
    if config.gpu_ratio is not None and config.gpu_layers is not None:
        ignored.append("gpu_ratio")
        workflow.append("Both a ratio and a number of layers were given for the GPU, and the number counts.")
    if order.gpu_layers != 0 and not gpu:
        missing = [name for name in ("gpu_ratio", "gpu_layers") if name in config.given() and name not in ignored]
        if missing:
            ignored.extend(missing)
            workflow.append(
                "This llama.cpp sees no GPU, so the processor computes all layers: install the build of xllamacpp for"
                " the GPU and its driver, then restart the node, or use another runtime (node.runtime.url)."
            )
    return Loaded(tuple(name for name in config.given() if name not in ignored), tuple(ignored), tuple(workflow))
