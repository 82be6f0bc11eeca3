"""Model runtimes: one file each, all behind ``base.Runtime``."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from node.runtimes.base import Runtime

if TYPE_CHECKING:
    from shared.settings import RuntimeSettings


def create(settings: RuntimeSettings, *, slots: int | None = None, own_ports: Collection[int] = ()) -> Runtime:
    """The runtime that ``[node.runtime]`` asks for, not started.

    ``slots`` (answers at once) replaces what the runtime says. ``own_ports`` are the ports that edge and node listen
    on: ``auto`` never takes one of them for a runtime. A URL alone means ``openai``, a model file that somebody named
    means ``embedded``; only without both does ``auto`` look around. Raises SettingsError for a model that is given by
    name.
    """
    # Imported here, so that the embedded runtime's child process, which is a module of this package, starts light.
    from node.runtimes.detect import AutoRuntime
    from node.runtimes.embedded import EmbeddedRuntime
    from node.runtimes.openai import OpenAIRuntime
    from shared.settings import SettingsError

    def embedded() -> Runtime:
        if isinstance(settings.model, str):
            raise SettingsError(_unresolved(settings.model))
        return EmbeddedRuntime(
            settings.model,
            context=settings.context,
            slots=slots,
            gpu_layers=settings.gpu_layers,
            threads=settings.threads,
        )

    def server(url: str) -> Runtime:
        key = settings.key.get_secret_value() if settings.key is not None else None
        return OpenAIRuntime(url, key=key, default_model=settings.default_model, slots=slots)

    if settings.embedded:
        return embedded()
    if settings.url is not None:
        return server(settings.url)
    return AutoRuntime(
        lambda url: OpenAIRuntime(url, default_model=settings.default_model, slots=slots), embedded, own_ports
    )


def _unresolved(model: str) -> str:
    return (
        f"node.runtime.model = {model!r} is the name of a model and no file, and only the command line knows where that"
        f" is. Start the node with `hearthlink node`, which pulls it when it is missing; or run `hearthlink model pull"
        f" {model}` and set node.runtime.model to the path that it prints."
    )
