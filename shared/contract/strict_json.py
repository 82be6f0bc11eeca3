"""JSON read one way only: what two parsers could read differently is refused here, before anybody acts on it."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

from shared.contract.errors import ApiError

# Schemas of tools, the deepest that callers send, stay under 20; whatever walks a value later has room to spare.
MAX_DEPTH = 64


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
    beyond a double or over 4,300 digits (CPython's limit), over ``MAX_DEPTH`` levels, invalid UTF-8, and U+0000 or
    lone surrogates in any string (a runtime could not encode them).
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
        raise _too_deep() from None
    except ValueError:
        raise ApiError("invalid_json", "The body holds a number with too many digits.") from None
    if not isinstance(value, dict):
        raise ApiError("invalid_json", "The body must be a JSON object.")
    if text.count("{") + text.count("[") > MAX_DEPTH:  # fewer cannot be nested deeper
        _check_depth(value)
    if "\\u" in text:  # only an escape can bring in what UTF-8 text cannot hold
        _check_text(value)
    return value


def _check_depth(top: dict[str, Any]) -> None:
    """Level by level: the value may be as deep as the parser's stack allowed."""
    level: list[Any] = [top]
    for _ in range(MAX_DEPTH):
        parts = (value.values() if type(value) is dict else value for value in level)
        level = [child for part in parts for child in part if type(child) is dict or type(child) is list]
        if not level:
            return
    raise _too_deep()


def _too_deep() -> ApiError:
    return ApiError("invalid_json", f"The body is nested over {MAX_DEPTH} levels deep. Send a flatter one.")


def _check_text(top: dict[str, Any]) -> None:
    """Every string, keys too; without recursion."""
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
