"""What is added to requests: the seven parameters of ``defaultInference``, the load configuration, and how both are
named on the wire, in the settings and towards a runtime."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from node.runtime import LoadConfig
from shared.contract.body import StopStrings, Temperature, Tokens, TopP
from shared.settings_models import ModelSettings, SamplingSettings

# Of a model or chat type; more is a mistake.
_Name = Annotated[str, Field(min_length=1, max_length=256)]

# Our own names for what a caller of /admin/models writes.
_PARAMETERS: Mapping[str, str] = MappingProxyType({"stop_strings": "stop"})
# Names of LoadConfig as callers write them.
_LOAD_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "context_length": "contextLength",
        "gpu_ratio": "gpu.ratio",
        "gpu_layers": "gpu.layers",
        "cpu_threads": "cpuThreads",
        "rope_frequency_base": "ropeFrequencyBase",
        "rope_frequency_scale": "ropeFrequencyScale",
    }
)


class _Wire(BaseModel):
    model_config = ConfigDict(
        extra="forbid", strict=True, alias_generator=to_camel, populate_by_name=True, protected_namespaces=()
    )


class DefaultInference(_Wire):
    """``defaultInference``: what requests for the active model get when they say nothing themselves."""

    temperature: Temperature | None = None
    max_tokens: Tokens | None = None
    top_p: TopP | None = None
    top_k: Annotated[int, Field(ge=0, le=100_000)] | None = None
    repeat_penalty: Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)] | None = None
    stop_strings: StopStrings | None = None
    stream: bool | None = None

    def parameters(self) -> dict[str, Any]:
        """In names of ``PARAMETERS`` and ``max_tokens``; without ``stream``."""
        given = self.model_dump(exclude_none=True, exclude={"stream"})
        return {_PARAMETERS.get(name, name): value for name, value in given.items()}


class Gpu(_Wire):
    """``ratio`` is 0 to 1 of the layers; ``layers`` a number of them, -1 for all that fit."""

    ratio: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    layers: Annotated[int, Field(ge=-1, le=100_000)] | None = None


class LoadWish(_Wire):
    """``loadConfig``."""

    context_length: Annotated[int, Field(ge=128, le=16_777_216)] | None = None
    gpu: Gpu = Field(default_factory=Gpu)
    cpu_threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    rope_frequency_base: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    rope_frequency_scale: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None

    def config(self) -> LoadConfig:
        return LoadConfig(
            context_length=self.context_length,
            gpu_ratio=self.gpu.ratio,
            gpu_layers=self.gpu.layers,
            cpu_threads=self.cpu_threads,
            rope_frequency_base=self.rope_frequency_base,
            rope_frequency_scale=self.rope_frequency_scale,
        )


class Activation(_Wire):
    """Body of ``POST /admin/models/activate``."""

    model_key: _Name
    default_inference: DefaultInference | None = None


class LoadOrder(_Wire):
    """Body of ``POST /admin/models/load``."""

    model_key: _Name
    load_config: LoadWish = Field(default_factory=LoadWish)
    activate: bool | None = None
    default_inference: DefaultInference | None = None

    @property
    def activates(self) -> bool:
        """Defaults are those of the active model, so whoever gives some means it."""
        return self.activate if self.activate is not None else self.default_inference is not None


class Unloading(_Wire):
    """Body of ``POST /admin/models/unload``."""

    model_key: _Name


class Nothing(_Wire):
    """Body of what takes none; ``{}``."""


@dataclass(frozen=True, slots=True)
class Defaults:
    """What a model's owner wants of requests for it, in names of ``PARAMETERS`` and ``max_tokens``: ``added`` where a
    request says nothing, ``forced`` whatever it says; what is in ``stripped`` is taken out of it."""

    added: Mapping[str, Any] = field(default_factory=dict)
    forced: Mapping[str, Any] = field(default_factory=dict)
    stripped: frozenset[str] = frozenset()
    stream: bool | None = None  # for callers who do not say whether they want one


def sampling(settings: SamplingSettings) -> dict[str, Any]:
    """What is set of ``settings``, in names of ``PARAMETERS`` and ``max_tokens``."""
    names = SamplingSettings.model_fields
    return {name: value for name in names if (value := getattr(settings, name)) is not None}


def stripped(names: Iterable[str]) -> frozenset[str]:
    """Parameters as an owner writes them, ours or those of ``defaultInference``, in our names."""
    known = {to_camel(name): _PARAMETERS.get(name, name) for name in DefaultInference.model_fields}
    return frozenset(known.get(name, name) for name in names)


def load_config(settings: ModelSettings) -> LoadConfig:
    """What the settings of a model say about how it is loaded."""
    return LoadConfig(
        context_length=settings.context,
        gpu_ratio=settings.gpu_ratio,
        gpu_layers=settings.gpu_layers,
        cpu_threads=settings.threads,
        rope_frequency_base=settings.rope_frequency_base,
        rope_frequency_scale=settings.rope_frequency_scale,
    )


def wire_names(names: Iterable[str]) -> list[str]:
    """Names of LoadConfig as callers write them."""
    return [_LOAD_NAMES.get(name, name) for name in names]
