"""JSON schemas of callers. Runtimes make a grammar of one before a token is computed, and a grammar costs more than its
schema: one of a few kilobytes can keep llama.cpp b11549 busy for minutes, one of a hundred bytes can end it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import AfterValidator

_MAX_PARTS = 1000  # values of any kind, however deep
_MAX_ENUM = 500
# Of one object: what may be left out in any order costs with the square of their number.
_MAX_PROPERTIES = 100
_MAX_ALL_PROPERTIES = 500
_MAX_TOOL_PROPERTIES = 2000  # of all tools of a request together: more than a second of grammar
# A $ref that leads to another. llama.cpp follows a circle of them until it has no stack left.
_MAX_STEPS = 8


def check_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """``schema`` itself, when it refers to nothing outside and is a grammar in little time. Raises ValueError with a
    sentence that quotes nothing."""
    count_properties(schema)
    return schema


Schema = Annotated[dict[str, Any], AfterValidator(check_schema)]


def check_together(schemas: Iterable[dict[str, Any] | None]) -> None:
    """For the tools of one request, each of them checked before. Raises ValueError."""
    if sum(count_properties(schema) for schema in schemas if schema) > _MAX_TOOL_PROPERTIES:
        raise ValueError(f"the tools of a request have at most {_MAX_TOOL_PROPERTIES} properties together")


def count_properties(schema: dict[str, Any]) -> int:
    """Those of all its objects; one that is put together by ``allOf`` counts again. Raises ValueError."""
    waiting: list[Any] = [schema]
    seen = properties = 0
    while waiting:
        value = waiting.pop()
        seen += 1
        if seen > _MAX_PARTS:
            raise ValueError(f"a JSON schema has at most {_MAX_PARTS} parts")
        if isinstance(value, dict):
            properties += _check_object(value, schema)
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)
    if properties > _MAX_ALL_PROPERTIES:
        raise ValueError(f"a JSON schema has at most {_MAX_ALL_PROPERTIES} properties")
    return properties


def _check_object(value: dict[str, Any], schema: dict[str, Any]) -> int:
    """The properties of one grammar rule."""
    _follow(value, schema)
    if len(_list(value.get("enum"))) > _MAX_ENUM:
        raise ValueError(f"an enum of a JSON schema has at most {_MAX_ENUM} values")
    count = len(_object(value.get("properties")))
    for branch in _list(value.get("allOf")):
        for component in _list(_object(branch).get("anyOf")) or [branch]:
            count += len(_object(_follow(component, schema).get("properties")))
    if count > _MAX_PROPERTIES:
        raise ValueError(f"an object of a JSON schema has at most {_MAX_PROPERTIES} properties")
    return count


def _follow(value: Any, schema: dict[str, Any]) -> dict[str, Any]:
    """The object that ``value`` is, or that its $ref leads to in ``schema``; {} for what is none."""
    for _ in range(_MAX_STEPS + 1):
        value = _object(value)
        reference = value.get("$ref")
        if not isinstance(reference, str):
            return value
        value = _at(reference, schema)
    raise ValueError(f"a $ref of a JSON schema leads to itself, or over more than {_MAX_STEPS} others")


def _at(reference: str, schema: dict[str, Any]) -> Any:
    """As llama.cpp reads it: no part of a path is escaped."""
    if reference != "#" and not reference.startswith("#/"):
        raise ValueError("a JSON schema refers only to itself: begin each $ref with #/")
    place: Any = schema
    for name in reference[2:].split("/") if reference != "#" else ():
        if isinstance(place, dict) and name in place:
            place = place[name]
        elif isinstance(place, list) and name.isdecimal() and len(name) < 10 and int(name) < len(place):
            place = place[int(name)]
        else:
            raise ValueError("a $ref of a JSON schema names a place that is not in it")
    return place


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
