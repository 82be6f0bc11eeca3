"""All settings of edge and node, from every place they are written, checked together.

``hearthlink.toml`` < systemd credentials < environment ``HEARTHLINK_EDGE__PUBLIC_URL`` < flags. Durations are seconds
and may be written "30s"; sizes are bytes and may be written "256KiB"; lists in credentials and environment are JSON or
separated by commas. Only ``__main__`` and ``app`` of a deployable see ``Settings``; everything below is given values.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, PrivateAttr, SecretStr, ValidationError, field_validator, model_validator

from shared import model_names, settings_schema
from shared.settings_edge import EdgeSettings, UpstreamSettings
from shared.settings_fields import named
from shared.settings_models import ConversationSettings, ModelSettings
from shared.settings_node import NodeSettings, RuntimeSettings
from shared.settings_sections import AuditSettings, LogSettings, PlanSettings, Section, TailscaleSettings, TlsSettings
from shared.settings_sources import (
    Entry,
    Key,
    Layers,
    SettingsError,
    find_file,
    home,
    read_credentials,
    read_environment,
    read_file,
)

__all__ = [
    "AuditSettings",
    "ConversationSettings",
    "EdgeSettings",
    "LogSettings",
    "ModelSettings",
    "NodeSettings",
    "PlanSettings",
    "RuntimeSettings",
    "Settings",
    "SettingsError",
    "TailscaleSettings",
    "TlsSettings",
    "UpstreamSettings",
    "load_settings",
]


class Settings(Section):
    """All settings, checked. ``state`` is the folder of databases, keys and downloaded models."""

    edge: EdgeSettings = Field(default_factory=EdgeSettings)
    node: NodeSettings = Field(default_factory=NodeSettings)
    tailscale: TailscaleSettings = Field(default_factory=TailscaleSettings)
    plans: dict[str, PlanSettings] = Field(default_factory=dict)
    logs: LogSettings = Field(default_factory=LogSettings)
    audit: AuditSettings = Field(default_factory=AuditSettings)
    _state: Path = PrivateAttr(default_factory=lambda: state_folder(os.environ)[0])
    _origins: dict[str, str] = PrivateAttr(default_factory=dict)
    _sources: tuple[Path | None, Mapping[str, Any], Mapping[str, str]] = PrivateAttr(default=(None, {}, {}))

    @field_validator("plans")
    @classmethod
    def _names(cls, plans: dict[str, PlanSettings]) -> dict[str, PlanSettings]:
        anonymous = plans.get("anonymous")
        if anonymous is not None and anonymous.seats is not None:
            raise ValueError(
                "give plan anonymous no seats: its callers have another name each day, and at 00:00 UTC those of"
                " yesterday would still have all of them. Use tokens_per_day_together"
            )
        return named(plans)

    @model_validator(mode="after")
    def _apart(self) -> Settings:
        if self.edge.listen == self.edge.ops_listen and not self.edge.listen.endswith(":0"):
            raise ValueError("edge.listen and edge.ops_listen are the same address: give each its own port")
        return self

    @property
    def state(self) -> Path:
        return self._state

    def reread(self) -> Settings:
        """The same sources read again, for a reload. Raises SettingsError; these settings stay as they are."""
        config, flags, environ = self._sources
        return load_settings(config=config, flags=flags, environ=environ)

    def changed(self, other: Settings) -> list[str]:
        """Dotted keys whose values differ, secrets by their content."""
        ours, theirs = self._flat(), other._flat()
        return sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))

    def _flat(self) -> dict[str, Any]:
        return dict(_values(self, ()))

    def origin(self, key: str) -> str:
        """Where the value of a dotted key came from: ``"default"``, ``"file PATH"``, ``"credential NAME"``,
        ``"env NAME"`` or ``"flag"``."""
        return self._origins.get(key, "default")

    def dump(self) -> list[tuple[str, Any, str]]:
        """Dotted key, JSON-compatible value and origin of every setting; a secret's value is ``"***"``."""
        rows = [(key, _shown(value), self.origin(key)) for key, value in _values(self, ())]
        return [("state", str(self.state), self.origin("state")), *rows]


def _values(section: BaseModel, prefix: Key) -> Iterator[tuple[str, Any]]:
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from _values(value, (*prefix, name))
        elif isinstance(value, dict):
            for member, inner in value.items():
                yield from _values(inner, (*prefix, name, member))
        else:
            yield ".".join((*prefix, name)), value


def _shown(value: Any) -> Any:
    if isinstance(value, list):
        return [_shown(part) for part in value]
    if isinstance(value, SecretStr):
        return "***"
    return str(value) if isinstance(value, Path) else value


def state_folder(environ: Mapping[str, str]) -> tuple[Path, str]:
    """The state folder and where it was named: ``HEARTHLINK_STATE``, systemd's ``STATE_DIRECTORY``, else XDG's."""
    for name in ("HEARTHLINK_STATE", "STATE_DIRECTORY"):
        if named := environ.get(name, "").partition(":" if name == "STATE_DIRECTORY" else "\0")[0]:
            return Path(named).expanduser().absolute(), f"env {name}"
    if os.path.isabs(base := environ.get("XDG_STATE_HOME", "")):
        return Path(base) / "hearthlink", "env XDG_STATE_HOME"
    return home(environ) / ".local" / "state" / "hearthlink", "default"


def load_settings(
    *,
    config: Path | None = None,
    flags: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """Read all sources and check them together. ``flags`` have dotted keys; a flag that is None was not given.

    Raises SettingsError naming, for everything that is wrong at once, place, key and the key that was meant.
    """
    environ = os.environ if environ is None else environ
    layers = _gather(config, flags or {}, environ)
    try:
        settings = Settings.model_validate(layers.tree())
    except ValidationError as error:
        raise SettingsError(*settings_schema.problems(Settings, error, layers)) from None
    state, state_origin = state_folder(environ)
    settings._state = state
    settings._sources = (config, dict(flags or {}), environ)
    settings._origins.update({".".join(key): entry.origin for key, entry in layers.entries.items()})
    settings._origins["state"] = state_origin
    return settings


def _gather(config: Path | None, flags: Mapping[str, Any], environ: Mapping[str, str]) -> Layers:
    layers = Layers()
    if file := find_file(config, environ):
        layers.put((), read_file(file), f"file {file}")
    known = {".".join(key) for key, _ in settings_schema.leaves(Settings)}
    if folder := environ.get("CREDENTIALS_DIRECTORY"):
        for key, text, origin in read_credentials(folder, known, Settings.model_fields):
            # Where a setting names a file, the credential is that file, such as node.tls.key.
            of_file = settings_schema.is_path(settings_schema.annotation_of(Settings, key))
            layers.put(key, str(Path(folder, origin.removeprefix("credential "))) if of_file else text, origin)
    for key, text, origin in read_environment(environ):
        layers.put(key, text, origin)
    for dotted, value in flags.items():
        if value is not None:
            layers.put(tuple(dotted.split(".")), value, "flag")
    if url := environ.get("LM_STUDIO_BASE_URL"):
        _lm_studio(layers, url)
    _resolve_paths(layers, file)
    return layers


def _resolve_paths(layers: Layers, file: Path | None) -> None:
    """A path in the file is relative to the file, so that it means the same from everywhere. What may be a name too is
    a path only when that file is there."""
    for key, entry in layers.entries.items():
        annotation = settings_schema.annotation_of(Settings, key)
        if not isinstance(entry.value, str) or not entry.value.strip() or not settings_schema.is_path(annotation):
            continue
        folder = file.parent if file and entry.origin == f"file {file}" else Path()
        path = (folder / os.path.expanduser(entry.value)).absolute()
        may_be_name = settings_schema.mentions(annotation, str) and model_names.is_name(entry.value)
        if not may_be_name or os.path.isfile(path):  # Path.is_file raises on a name that is too long
            layers.entries[key] = entry._replace(value=str(path))


def _lm_studio(layers: Layers, url: str) -> None:
    """LM Studio's own variable stands in for ``node.runtime.kind`` and ``url`` where nobody set them."""
    kind, place = ("node", "runtime", "kind"), ("node", "runtime", "url")
    wanted = layers.entries.get(kind, Entry("openai", ""))
    if wanted.value in ("openai", "lm-studio") and place not in layers.entries:
        layers.put(kind, wanted.value, wanted.origin or "env LM_STUDIO_BASE_URL")
        layers.put(place, url, "env LM_STUDIO_BASE_URL")
