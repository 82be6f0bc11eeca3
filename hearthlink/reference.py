"""Every setting as Markdown: ``docs/settings.md`` is what ``markdown()`` gives, and a test holds the two together.

What a setting does is said in its field's ``description``; type, bounds and default are the field's own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from edge import app as edge_app
from edge.plans import LIMITS, built_in
from node import app as node_app
from shared import settings_fields
from shared.quantities import duration, size
from shared.settings import Settings
from shared.settings_schema import member_model
from shared.settings_sources import PREFIX

_INTRO = """\
# Settings

This page is what `hearthlink config reference` prints. `hearthlink config show` prints the values of this machine and
where each came from, `hearthlink config check` says whether they can be used.

Settings are read from four places, a later one over an earlier one:

1. the file: `--config FILE`, `$HEARTHLINK_CONFIG`, `./hearthlink.toml`, `$XDG_CONFIG_HOME/hearthlink/hearthlink.toml`
   or `/etc/hearthlink/hearthlink.toml`, the first that is there;
2. systemd credentials: files of `$CREDENTIALS_DIRECTORY` that have a setting's name, such as `edge.signing_keys`;
3. the environment: `HEARTHLINK_`, then section and key in capitals with `__` between them (`NAME` below is a name of
   yours);
4. flags of the command line.

```toml
[edge]
listen = "127.0.0.1:8700"
public_url = "https://chat.example.org"
allowed_origins = ["https://app.example.org"]

[edge.upstreams.default]
url = "ws://127.0.0.1:8001/link"

[node]
queue = 16

[node.runtime]
kind = "openai"
url = "http://127.0.0.1:1234"

[plans.anonymous]
requests_per_minute = 10
tokens_per_day = 5000

[plans.family]
tokens_per_day = "unlimited"

[logs]
level = "INFO"
```

A key that is not known, or a value that cannot be used, ends the start with a sentence that names place and key. A
duration is a number of seconds, or text such as `"500ms"`, `"30s"`, `"10m"`, `"1h30m"` or `"7d"`. A size is a number
of bytes, or text such as `"256KiB"` (1024) or `"1MB"` (1000). In the environment and in credentials a list is JSON or
parts separated by commas. A path in the file is relative to the file.

SIGHUP makes edge and node read their settings again. What has "yes" under *reload* is applied at once, to new
requests; the rest needs a restart, and the log names it. When there is a mistake, all stays as it was. Chat types
need no signal: their files are looked at once a second.

Databases, keys and downloaded models are in the state folder: `$HEARTHLINK_STATE`, else `$STATE_DIRECTORY` (systemd
sets it), else `$XDG_STATE_HOME/hearthlink`, else `~/.local/state/hearthlink`.
"""

_PLANS = """\
What is not written stays as it is built in; in a plan of a new name it is what `member` has. A page's anonymous
tokens have the plan `anonymous`, an API key the one it was made with: `hearthlink key create NAME --plan member`.
"""

_KINDS = {
    settings_fields.Seconds: "duration",
    settings_fields.Bytes: "size",
    settings_fields.Listen: "`HOST:PORT`",
    settings_fields.Origin: "origin",
    settings_fields.Network: "network",
    settings_fields.Bearer: "secret",
    settings_fields.ApiKey: "secret",
    settings_fields.SigningKey: "secret",
    settings_fields.Limit: 'whole number or `"unlimited"`',
    settings_fields.Model: "path or model",
}
_BY_CHECK = {getattr(get_args(kind)[1], "func", None): words for kind, words in _KINDS.items()}
_PLAIN = {
    bool: "`true` or `false`",
    int: "whole number",
    float: "number",
    str: "text",
    Path: "path",
    SecretStr: "secret",
}
_SECONDS = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))
_BYTES = (("MiB", 1 << 20), ("KiB", 1 << 10))
_ROOT = Path(__file__).resolve().parent.parent
# Keys that a reload applies, or the beginnings of such keys.
_RELOADED = (*edge_app.RELOADABLE, *node_app.RELOADABLE)


def markdown() -> str:
    """The page, ending in a line feed."""
    return "\n".join([_INTRO, *_sections(Settings, ())])


def _sections(model: type[BaseModel], place: tuple[str, ...]) -> Iterator[str]:
    """Heading and table of ``model``, when it has values of its own, then the sections below it."""
    rows = list(_rows(model, place))
    if rows:
        yield _heading(model, place)
        if place[0] == "plans":
            yield _PLANS
            yield "\n".join(_plan_table()) + "\n"
        head = ["| setting, variable | type | default | reload | |", "|---|---|---|---|---|"]
        yield "\n".join([*head, *rows]) + "\n"
    for name, field in model.model_fields.items():
        if found := member_model(field.annotation):
            yield from _sections(found[0], (*place, name, "NAME") if found[1] else (*place, name))


def _heading(model: type[BaseModel], place: tuple[str, ...]) -> str:
    """The section as it stands in the file, and the first sentence of the model's docstring without its name."""
    said = re.sub(r"^``\[\S+\]``[:.] ?", "", " ".join((model.__doc__ or "").split())).partition(".")[0]
    return f"## [{'.'.join(place)}]\n" + (f"\n{said[:1].upper()}{said[1:]}.\n" if said else "")


def _rows(model: type[BaseModel], place: tuple[str, ...]) -> Iterator[str]:
    for name, field in model.model_fields.items():
        if member_model(field.annotation) is None:
            key = (*place, name)
            variable = PREFIX + "__".join(key).upper()
            reload = "yes" if ".".join(key).startswith(_RELOADED) else ""
            cells = [f"`{name}`<br>`{variable}`", _type(field), _default(field), reload, field.description or ""]
            yield "|" + "".join(f" {cell} |" if cell else " |" for cell in cells)


def _type(field: FieldInfo) -> str:
    """The type in words, with the bounds."""
    words = _words(field.annotation, field.metadata)
    bounds = {name: _value(field, value) for name in ("ge", "gt", "le") if (value := _bound(field, name)) is not None}
    if "gt" in bounds and "le" not in bounds:
        return f"{words}, more than {bounds['gt']}"
    lowest = bounds.get("ge", f"more than {bounds['gt']}" if "gt" in bounds else None)
    if lowest is None:
        return words
    return f"{words}, {lowest} to {bounds['le']}" if "le" in bounds else f"{words}, {lowest} or more"


def _bound(field: FieldInfo, name: str) -> Any:
    return next((getattr(check, name) for check in field.metadata if hasattr(check, name)), None)


def _words(annotation: Any, metadata: Any = ()) -> str:
    """The type in words, by the check that reads it or else by what it is in Python."""
    for check in metadata:
        if words := _BY_CHECK.get(getattr(check, "func", None)):
            return words
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _words(arguments[0], arguments[1:])
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in arguments)
    if origin is list:
        words = _words(arguments[0])
        return f"list of {words}" if get_origin(arguments[0]) is Literal else f"list of {words}s"
    if arguments:
        return next(_words(argument) for argument in arguments if argument is not NoneType)
    return _PLAIN[annotation]


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "must be set"
    value = field.get_default(call_default_factory=True, validated_data={})
    if isinstance(value, Path):
        return f"`{value.relative_to(_ROOT)}`, the demo model"
    if isinstance(value, SecretStr):  # what is built in is known to everybody
        value = value.get_secret_value()
    if value is None or value == []:
        return ""
    return f"`{_toml(_value(field, value))}`"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)


def _value(field: FieldInfo, value: Any) -> Any:
    """``value`` with its unit, where the field has one."""
    checks = set(_checks(field.annotation, field.metadata))
    if duration in checks:
        return _in_units(value, _SECONDS)
    return _in_units(value, _BYTES) if size in checks else value


def _checks(annotation: Any, metadata: Any) -> Iterator[Any]:
    """The functions that read a value, also where it may be None."""
    yield from (getattr(check, "func", None) for check in metadata)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        yield from _checks(arguments[0], arguments[1:])
    elif origin in (Union, UnionType):
        for argument in arguments:
            yield from _checks(argument, ())


def _in_units(value: float, units: tuple[tuple[str, int], ...]) -> Any:
    if value % 1:  # of a second: nothing else is divided
        return f"{value:g}s"
    return next((f"{value / each:.0f}{unit}" for unit, each in units if value and value % each == 0), int(value))


def _plan_table() -> Iterator[str]:
    plans = built_in().values()
    yield f"| | {' | '.join(f'`{plan.name}`' for plan in plans)} |"
    yield "|---|---|---|---|"
    for name in (*LIMITS, "tokens_per_day_together", "seats"):
        yield f"| `{name}` | {' | '.join(_limit(getattr(plan, name)) for plan in plans)} |"
    for name in ("models", "chat_types", "scopes"):
        yield f"| `{name}` | {' | '.join(_list(getattr(plan, name)) for plan in plans)} |"


def _limit(value: int | None) -> str:
    return "no limit" if value is None else str(value)


def _list(values: tuple[str, ...]) -> str:
    return ", ".join(f"`{value}`" for value in values) or "none"
