"""What the owner wants of each model: by the settings, and by what was decided while the node runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from node.models.defaults import DefaultInference, Defaults, load_config, sampling, stripped
from node.models.kept import Kept
from node.runtime import LoadConfig, RuntimeStatus
from shared.contract.snapshot import ModelInfo
from shared.settings_models import ModelSettings

NO_SETTINGS: Mapping[str, ModelSettings] = MappingProxyType({})
_NO_DEFAULTS = Defaults()


class Wishes:
    """``settings`` are ``[node.models.NAME]``, ``idle_unload`` is in seconds; ``kept`` is replaced as a whole."""

    def __init__(self, settings: Mapping[str, ModelSettings], idle_unload: float | None) -> None:
        self.settings = settings
        self._idle_unload = idle_unload
        self._aliases = {alias: name for name, model in settings.items() for alias in model.aliases}
        self.take(Kept())

    def take(self, kept: Kept) -> None:
        """Take what is kept from now on."""
        self.kept = kept
        self._defaults = {name: self._defaults_of(name) for name in (*self.settings, kept.active)}

    def default(self, status: RuntimeStatus) -> str:
        """The model that answers who names none."""
        active = self.kept.active
        return active if active and (status.model(active) is not None or not status.models) else status.default_model

    def named(self, name: str | None, status: RuntimeStatus) -> str:
        """The id of the model that ``name`` means: an alias, ``default``, None, or an id itself."""
        if name is None or name == "default":
            return self.default(status)
        target = self._aliases.get(name)
        return name if target is None or status.model(name) is not None else target

    def listed(self, status: RuntimeStatus) -> tuple[ModelInfo, ...]:
        """The models as callers may know them: the default first, each followed by its aliases."""
        default = self.default(status)
        found: list[ModelInfo] = []
        for model in sorted(status.models, key=lambda model: model.id != default):
            settings = self.settings.get(model.id)
            if not model.in_memory and (context := self.config(model.id).context_length):
                most = model.max_context or context
                model = replace(model, context=min(context, most))  # what it is going to be
            found.append(model)
            for alias in settings.aliases if settings is not None else ():
                if status.model(alias) is None:
                    found.append(replace(model, id=alias, alias_of=model.id))
        return tuple(found)

    def defaults(self, model: str) -> Defaults:
        """For requests that go to the model with this id."""
        return self._defaults.get(model, _NO_DEFAULTS)

    def config(self, model: str) -> LoadConfig:
        """How ``model`` is loaded: as the owner last did, else as the settings say."""
        settings = self.settings.get(model)
        own = self.kept.configs.get(model, {})
        return replace(load_config(settings) if settings is not None else LoadConfig(), **own)

    def together(self, one: str, other: str) -> bool:
        """Whether both may be in memory: one sentence in the settings of either says so for both."""
        settings = self.settings
        return (one in settings and other in settings[one].together) or (
            other in settings and one in settings[other].together
        )

    def idle_limit(self, model: str) -> float | None:
        """Seconds after which it is unloaded when nobody uses it; None: never."""
        settings = self.settings.get(model)
        own = settings.idle_unload if settings is not None else None
        return own if own is not None else self._idle_unload

    def _defaults_of(self, model: str) -> Defaults:
        settings = self.settings.get(model)
        added = sampling(settings) if settings is not None else {}
        stream = None
        if model == self.kept.active:
            inference = DefaultInference.model_validate(self.kept.inference)
            added, stream = {**added, **inference.parameters()}, inference.stream
        if settings is None:
            return Defaults(added=added, stream=stream)
        return Defaults(added, sampling(settings.force), stripped(settings.strip), stream)
