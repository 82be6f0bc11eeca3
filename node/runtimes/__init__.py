"""Model runtimes: one file each, all behind ``node.runtime.Runtime``."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from node.runtime import Runtime

if TYPE_CHECKING:
    from shared.settings import RuntimeSettings
    from shared.settings_models import ModelSettings


def create(
    settings: RuntimeSettings,
    *,
    slots: int | None = None,
    own_ports: Collection[int] = (),
    models: Mapping[str, ModelSettings] = MappingProxyType({}),
    pulled: Path | None = None,
    at_start: Collection[str] | None = None,
    earlier: str = "",
) -> Runtime:
    """The runtime that ``[node.runtime]`` asks for, not started.

    ``slots`` (answers at once) replaces what the runtime says. ``own_ports`` are the ports that edge and node listen
    on: ``auto`` never takes one of them for a runtime. A server's name without a URL means where that server is found
    by default. A URL alone has the server there asked what it is, a model file that somebody named means ``embedded``;
    only without both does ``auto`` look around. ``models`` are settings of single ones, ``pulled`` is the folder of the
    models that were pulled. Of ``embedded``, those of ``at_start`` (ids) are loaded at the start, else the default
    model; of a server with nothing in memory ``earlier`` is the default, where it is not set. Raises SettingsError for
    a model that is given by name.
    """
    # Imported here, so that the embedded runtime's child process, which is a module of this package, starts light.
    from node.runtimes.detect import AutoRuntime
    from node.runtimes.dialects import dialect_of
    from node.runtimes.embedded import EmbeddedRuntime
    from node.runtimes.llama_order import Habits
    from node.runtimes.server import ServerRuntime
    from shared.settings import SettingsError

    def embedded() -> Runtime:
        if isinstance(settings.own_model, str):
            raise SettingsError(_unresolved(settings.own_model))
        return EmbeddedRuntime(
            settings.own_model,
            folder=settings.models or pulled,
            default_model=settings.default_model if settings.embedded else None,
            at_start=at_start,
            habits=Habits(settings.context, slots, settings.gpu_layers, settings.threads, models),
        )

    dialect = dialect_of(settings.kind)
    key = settings.key.get_secret_value() if settings.key is not None else None

    def server(url: str | Sequence[str], key: str | None = None) -> Runtime:
        return ServerRuntime(
            url, key=key, default_model=settings.default_model, earlier=earlier, slots=slots, dialect=dialect
        )

    if settings.embedded:
        return embedded()
    if settings.url is not None:
        return server(settings.url, key)
    if dialect is not None:
        return server(dialect.places, key)
    return AutoRuntime(server, embedded, own_ports)


def _unresolved(model: str) -> str:
    return (
        f"node.runtime.model = {model!r} is the name of a model and no file, and only the command line knows where that"
        f" is. Start the node with `hearthlink node`, which pulls it when it is missing; or run `hearthlink model pull"
        f" {model}` and set node.runtime.model to the path that it prints."
    )
