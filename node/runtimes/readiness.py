"""From what a look at a server found to what the node says of it: ready with which model, or why not and what to do."""

from __future__ import annotations

from node.runtimes.base import RuntimeStatus
from node.runtimes.servers import Survey
from shared.contract.snapshot import ModelInfo

_SHOWN = 5  # names in a sentence; a public API lists hundreds


def choose_status(
    survey: Survey, base: str, *, wanted: str | None = None, previous: str = "", slots: int | None = None
) -> RuntimeStatus:
    """The status that follows from ``survey`` of the server at ``base``.

    The default model is ``wanted`` (the setting), else ``previous`` while it is still there (runtimes unload what
    idles, and load it again when it is named), else one that is in memory. A model that nobody chose is never loaded
    by us, except from Ollama, which loads whatever is named.
    """
    count = slots or survey.slots

    def unavailable(reason: str) -> RuntimeStatus:
        return RuntimeStatus("unavailable", reason, default_model=previous, slots=count)

    if survey.problem == "loading":
        reason = f"{survey.server} at {base} is loading its model."
        return RuntimeStatus("loading", reason, default_model=previous, slots=count)
    if survey.problem:
        return unavailable(survey.problem)
    names = {model.id for model in survey.models}
    if wanted is not None:
        default = _known_name(wanted, names)
        if default is None:
            return unavailable(_not_listed(survey, base, wanted))
    elif previous in names:
        default = previous
    else:
        default = next((model.id for model in survey.models if model.id in survey.loaded), "")
        if not default and survey.server == "Ollama" and survey.models:
            default = survey.models[0].id
        if not default:
            return unavailable(_nothing_loaded(survey, base))
    return RuntimeStatus("ready", "", _default_first(survey.models, default), default, count)


def _known_name(wanted: str, names: set[str]) -> str | None:
    """Ollama lists ``llama3.2:latest`` for what people call ``llama3.2``."""
    return next((name for name in (wanted, f"{wanted}:latest") if name in names), None)


def _default_first(models: tuple[ModelInfo, ...], default: str) -> tuple[ModelInfo, ...]:
    return tuple(sorted(models, key=lambda model: model.id != default))


def _not_listed(survey: Survey, base: str, wanted: str) -> str:
    listed = _names(tuple(model.id for model in survey.models)) or "none"
    if survey.server == "LM Studio":
        advice = f"Run `lms load {wanted}`, or switch on just-in-time loading in LM Studio, or correct the name"
    elif survey.server == "Ollama":
        advice = f"Run `ollama pull {wanted}`, or correct the name"
    else:
        advice = "Load it there, or correct the name"
    return f"node.runtime.default_model is {wanted!r}, but {survey.server} at {base} lists: {listed}. {advice}."


def _nothing_loaded(survey: Survey, base: str) -> str:
    found = f"{survey.server} answers at {base}, but has no model"
    if survey.server == "Ollama":
        return f"{found}. Run `ollama pull` with the name of one, for example `ollama pull llama3.2`."
    if survey.server == "LM Studio":
        if not survey.downloaded:
            return f"{found}. Download and load one in the app, or with `lms get` and `lms load`."
        return (
            f"{found} loaded. Load one in its Developer tab or with `lms load {survey.downloaded[0]}` "
            f"(downloaded: {_names(survey.downloaded)}), or name one in node.runtime.default_model."
        )
    if survey.downloaded:
        return f"{found} loaded. Load one of {_names(survey.downloaded)}, or name it in node.runtime.default_model."
    return f"{found}. Start it with a model, or load one there."


def _names(names: tuple[str, ...]) -> str:
    more = ", …" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
