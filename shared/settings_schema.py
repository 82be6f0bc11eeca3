"""What a tree of settings models knows: its keys, which of them are secret or paths, and, when validation fails, the
sentence that names place and key and suggests the key that was meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, SecretStr, ValidationError

from shared.contract.secrets import API_KEY, INVITE, NODE_TOKEN, TOKEN
from shared.quantities import size, size_text
from shared.settings_sources import PREFIX, Key, Layers

# Below this likeness a suggestion confuses more than it helps (difflib's own default).
_LIKENESS = 0.6
_MAX_SHOWN = 80
# A secret that was written at the wrong key is not shown either.
_SECRET_LOOKING = re.compile(rf"({API_KEY}|{TOKEN}|{INVITE}|{NODE_TOKEN}|sk-|//[^/]*@)\S*")


def member_model(annotation: Any) -> tuple[type[BaseModel], bool] | None:
    """The model behind a field's annotation and whether it is a mapping to such models by name; None for a value."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, False
    arguments = get_args(annotation)
    if getattr(annotation, "__origin__", None) is dict and isinstance(arguments[1], type):
        return arguments[1], True
    return None


def mentions(annotation: Any, kind: type) -> bool:
    """Whether ``kind`` stands anywhere in ``annotation``."""
    return annotation is kind or any(mentions(argument, kind) for argument in get_args(annotation))


def leaves(model: type[BaseModel], prefix: Key = ()) -> Iterator[tuple[Key, Any]]:
    """Every key and annotation below ``model``; ``*`` stands for the names of a mapping."""
    for name, field in model.model_fields.items():
        if found := member_model(field.annotation):
            yield from leaves(found[0], (*prefix, name, "*") if found[1] else (*prefix, name))
        else:
            yield (*prefix, name), field.annotation


def annotation_of(model: type[BaseModel], key: Key) -> Any:
    """The annotation at ``key``, a model class for a section, None when there is no such key."""
    annotation: Any = model
    rest = list(key)
    while rest:
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return None
        field = annotation.model_fields.get(rest.pop(0))
        if field is None:
            return None
        found = member_model(field.annotation)
        annotation = found[0] if found and found[1] and rest else field.annotation
        if found and found[1] and rest:
            rest.pop(0)
    return annotation


def problems(model: type[BaseModel], error: ValidationError, layers: Layers) -> list[str]:
    """One sentence for each thing that is wrong, naming place and key."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    return list(dict.fromkeys(_problem(model, item["type"], item["loc"], item["msg"], layers) for item in found))


def _problem(model: type[BaseModel], kind: str, loc: tuple[int | str, ...], message: str, layers: Layers) -> str:
    place = tuple(str(part) for part in loc)
    if not place:
        return message.removeprefix("Value error, ") + "."
    written = layers.entry(place)
    if kind == "extra_forbidden":
        return _unknown(model, place, written[1].origin if written else "")
    message = message.removeprefix("Value error, ")
    if kind in ("greater_than_equal", "less_than_equal") and _is_size(model, place):
        message = re.sub(r"\d+$", lambda bound: size_text(int(bound[0])), message)
    if kind == "missing":
        beside = layers.entry(place[:-1])
        where = f" ({beside[1].origin})" if beside else ""
        return f"{'.'.join(place)} is missing{where}: {_section(place[:-1])} needs it."
    if written is None:
        return f"{'.'.join(place)} {_sentence(kind, message)}."
    key, entry = written
    if len(key) > len(place):  # of a section as a whole; any of its keys tells where it is written
        return f"{'.'.join(place)} ({entry.origin}) {_sentence(kind, message)}."
    value = entry.value
    if isinstance(value, list) and isinstance(loc[-1], int) and loc[-1] < len(value):
        value = value[loc[-1]]
    return f"{'.'.join(key)}{_shown(model, key, value)} ({entry.origin}) {_sentence(kind, message)}."


def _is_size(model: type[BaseModel], place: Key) -> bool:
    section = annotation_of(model, place[:-1])
    fields = section.model_fields if isinstance(section, type) and issubclass(section, BaseModel) else {}
    field = fields.get(place[-1])
    return field is not None and any(getattr(check, "func", None) is size for check in field.metadata)


def _sentence(kind: str, message: str) -> str:
    """Our own checks speak of the value; pydantic's of an "input"."""
    return message if kind == "value_error" else f"cannot be used: {message.replace('Input', 'it')}"


def _shown(model: type[BaseModel], key: Key, value: Any) -> str:
    """`` = value``, or nothing where a secret could be shown."""
    annotation = annotation_of(model, key)
    if annotation is None or member_model(annotation) or mentions(annotation, SecretStr):
        return ""
    if not isinstance(value, str | int | float | list):
        return ""
    text = repr(value)
    return "" if _SECRET_LOOKING.search(text) else f" = {text[:_MAX_SHOWN]}"


def _unknown(model: type[BaseModel], place: Key, origin: str) -> str:
    siblings = annotation_of(model, place[:-1])
    names = list(siblings.model_fields) if isinstance(siblings, type) and issubclass(siblings, BaseModel) else []
    near = difflib.get_close_matches(place[-1], names, 1, _LIKENESS)
    meant = ".".join((*place[:-1], near[0])) if near else _elsewhere(model, place)
    name, suggestion = f"{'.'.join(place)} ({origin})", meant
    if origin.startswith("env "):
        name = f"{origin.removeprefix('env ')} in the environment"
        suggestion = PREFIX + meant.upper().replace(".", "__") if meant else ""
    hint = f"Did you mean {suggestion}?" if suggestion else f"{_section(place[:-1])} has: {', '.join(names)}."
    return f"{name} is not a setting. {hint}"


def _elsewhere(model: type[BaseModel], place: Key) -> str:
    """The key of another section that was meant: the same name, or the likeliest whole key."""
    known = [".".join(key) for key, _ in leaves(model)]
    same = [key for key in known if key.rpartition(".")[2] == place[-1]]
    near = difflib.get_close_matches(".".join(place), known, 1, _LIKENESS)
    return (near or same or [""])[0]


def _section(key: Key) -> str:
    return f"[{'.'.join(key)}]" if key else "The file"


def is_path(annotation: Any) -> bool:
    """Whether values of ``annotation`` are paths, which a file gives relative to its own folder."""
    return mentions(annotation, Path)
