"""Names that were written down for models and that no model has: a mistake which nothing else would show."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from shared.contract.snapshot import ModelInfo
from shared.settings_models import ModelSettings

_SHOWN = 10  # names in one line of the log


def doubts(
    settings: Mapping[str, ModelSettings], wanted: Iterable[str], models: Collection[ModelInfo], default: str
) -> list[str]:
    """A sentence for the log about ``[node.models.NAME]``, and one about the models that their owner ``wanted`` before
    a restart, each where ``models`` lack some of them. ``default`` answers those who name none."""
    names = {model.id for model in models}
    told: list[str] = []
    if misspelt := list(_in_settings(settings, names)):
        there = listed(model.id for model in models if not model.alias_of)
        told.append(f"the settings name models that are not there: {listed(misspelt)}. There are: {there}")
    if gone := [name for name in dict.fromkeys(wanted) if name not in names]:
        told.append(
            f"models that were activated or loaded are not there any more: {listed(gone)}. Who names no model gets"
            f" {default or 'none'}"
        )
    return told


def listed(names: Iterable[str]) -> str:
    """The first of them."""
    several = list(names)
    rest = [f"and {len(several) - _SHOWN} more"] if len(several) > _SHOWN else []
    return ", ".join([*several[:_SHOWN], *rest])


def _in_settings(settings: Mapping[str, ModelSettings], names: Collection[str]) -> Iterable[str]:
    for name, model in settings.items():
        if name not in names:
            yield f"[node.models.{name}]"
        yield from (f"{other} (together of {name})" for other in model.together if other not in names)
