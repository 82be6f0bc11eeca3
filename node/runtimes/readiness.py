"""From what a look at a server found to what the node says of it: ready with which model, or why not and what to do."""

from __future__ import annotations

from dataclasses import replace

from node.runtime import RuntimeStatus
from node.runtimes import upstream_errors
from node.runtimes.dialect import Dialect, Survey, names_of
from node.runtimes.transport import Reply
from shared.contract.snapshot import ModelInfo, RuntimeState


def problem_of(reply: Reply, base: str) -> str:
    """Why this answer to GET /models means that no request would work: a sentence, "loading", or "". Not of one that
    ``is_unwell``."""
    if reply.status in (401, 403):
        return f"The runtime at {base} asks for a key, or refused the one it got. Set node.runtime.key to its API key."
    if _is_loading(reply):
        return "loading"
    if not is_foreign(reply):
        return ""
    return (
        f"What answers at {base} (HTTP {reply.status}) is no OpenAI-compatible server: it has no list of models. "
        "Set node.runtime.url to the runtime's address and port, for example http://127.0.0.1:1234."
    )


def is_unwell(reply: Reply) -> bool:
    """A runtime that is there and cannot answer just now: it counts requests, is busy, or its proxy finds nobody."""
    return reply.status == 429 or (reply.status >= 500 and reply.status != 501 and not _is_loading(reply))


def is_foreign(reply: Reply) -> bool:
    """Whether what said this when it was asked for its models is no runtime."""
    if reply.status in (401, 403) or is_unwell(reply) or _is_loading(reply):
        return False
    listed = reply.payload.get("data", "") if reply.status == 200 and isinstance(reply.payload, dict) else ""
    return not isinstance(listed, list | None)  # null: Ollama without models


def _is_loading(reply: Reply) -> bool:
    return reply.status == 503 and upstream_errors.from_response(503, reply.payload).code == "model_loading"


def choose_status(
    survey: Survey,
    dialect: Dialect,
    base: str,
    *,
    wanted: str | None = None,
    previous: str = "",
    earlier: str = "",
    slots: int | None = None,
) -> RuntimeStatus:
    """The status that follows from ``survey`` of the server at ``base``.

    The default model is ``wanted`` (the setting), else ``previous`` while it is still there (runtimes unload what
    idles, and load it again when it is named), else one that is in memory, else ``earlier``, which was the default
    before a restart. A model that nobody chose is never loaded by us, except where the dialect says so. One that writes
    no text is the default only where none does. ``slots`` (the setting) replaces what the server says, for each model
    where each has its own.
    """
    models = tuple(replace(model, slots=slots) if slots and model.slots else model for model in survey.models)

    def status(state: RuntimeState, reason: str, models: tuple[ModelInfo, ...], default: str) -> RuntimeStatus:
        return RuntimeStatus(
            state, reason, models, default, slots or survey.slots, survey.apis, frozenset(dialect.parameters)
        )

    if survey.problem == "loading":
        return status("loading", f"{dialect.name} at {base} is loading its model.", (), previous)
    if survey.problem:
        return status("unavailable", survey.problem, (), previous)
    names = {model.id for model in survey.models}
    if wanted is not None:
        default = _known_name(wanted, names)
        if default is None:
            return status("unavailable", _not_listed(survey, dialect, base, wanted), (), previous)
    elif previous in names:
        default = previous
    else:
        fitting = [model.id for model in survey.models if model.kind == "chat"] or [model.id for model in survey.models]
        default = next((name for name in fitting if name in survey.loaded), earlier if earlier in names else "")
        if not default and dialect.loads_unasked and fitting:
            default = fitting[0]
        if not default:
            reason = f"{dialect.name} answers at {base}, but has no model{dialect.how_to_load(survey)}"
            return status("unavailable", reason, models, previous)  # one of them may be loaded by its owner
    return status("ready", "", _default_first(models, default), default)


def _known_name(wanted: str, names: set[str]) -> str | None:
    """Ollama lists ``llama3.2:latest`` for what people call ``llama3.2``."""
    return next((name for name in (wanted, f"{wanted}:latest") if name in names), None)


def _default_first(models: tuple[ModelInfo, ...], default: str) -> tuple[ModelInfo, ...]:
    return tuple(sorted(models, key=lambda model: model.id != default))


def _not_listed(survey: Survey, dialect: Dialect, base: str, wanted: str) -> str:
    listed = names_of(tuple(model.id for model in survey.models)) or "none"
    return (
        f"node.runtime.default_model is {wanted!r}, but {dialect.name} at {base} lists: {listed}. "
        f"{dialect.how_to_get(wanted)}."
    )
