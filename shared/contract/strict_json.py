"""JSON read one way only: what two parsers could read differently is refused here, before anybody acts on it."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

from shared.contract.errors import ApiError


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ApiError("invalid_json", f"The key {twice[:64]!r} stands twice in one object. Send each key once.")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ApiError("invalid_json", f"{name} is not JSON. Send a finite number or null.")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ApiError("invalid_json", f"The number {text[:32]} is too large. Send a finite number.")
    return number


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite)


def loads_object(raw: bytes | bytearray) -> dict[str, Any]:
    """Parse ``raw`` (UTF-8) as one JSON object.

    Raises ApiError ``invalid_json`` for anything else: other top level, duplicate keys, NaN and Infinity, numbers
    beyond a double or over 4,300 digits (CPython's limit), nesting deeper than the interpreter's stack, invalid
    UTF-8, and U+0000 or lone surrogates in any string (a runtime could not encode them).
    """
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ApiError("invalid_json", f"The body is not UTF-8 (byte {error.start}). Send UTF-8.") from None
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise ApiError("invalid_json", f"The body is not JSON: {error.msg} at character {error.pos}.") from None
    except RecursionError:
        raise ApiError("invalid_json", "The body is nested too deeply.") from None
    except ValueError:
        raise ApiError("invalid_json", "The body holds a number with too many digits.") from None
    if not isinstance(value, dict):
        raise ApiError("invalid_json", "The body must be a JSON object.")
    if "\\u" in text:  # only an escape can bring in what UTF-8 text cannot hold
        _check_text(value)
    return value


def _check_text(top: dict[str, Any]) -> None:
    """Walk without recursion: the value may be as deep as the parser allowed."""
    waiting: list[Any] = [top]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            if "\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value):
                raise ApiError("invalid_json", "A string holds U+0000 or half a surrogate pair. Remove it.")
        elif isinstance(value, dict):
            waiting.extend(value)
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)
