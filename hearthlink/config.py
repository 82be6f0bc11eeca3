"""``hearthlink config show|check|reference``: what the settings are, whether they can be used, and which there are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hearthlink import options
from hearthlink.output import Failure, Status, print_json, print_table, say


def show(json: options.Json = False, config: options.Config = None) -> None:
    """Show every setting, its value and where it came from. Secrets are shown as ***."""
    rows = options.settings_from(config).dump()
    if json:
        print_json({key: {"value": value, "origin": origin} for key, value, origin in rows})
    else:
        print_table(("setting", "value", "from"), [(key, _text(value), origin) for key, value, origin in rows])


def check(json: options.Json = False, config: options.Config = None) -> None:
    """Check settings and chat types, as a start of edge and node would."""
    problems = _problems(config)
    if json:
        print_json({"ok": not problems, "problems": problems})
    elif not problems:
        say("The settings and chat types can be used.")
    if problems:
        raise Failure("\n".join(problems), Status.USAGE)


def reference() -> None:
    """Print every setting as Markdown: type, default, variable, what it does, and whether a reload applies it."""
    from hearthlink.reference import markdown

    print(markdown(), end="")


def _problems(config: Path | None) -> list[str]:
    from edge.plans import plans_from
    from node.prompts import SHIPPED, BrokenChatType, ChatTypes

    try:
        settings = options.settings_from(config)
    except Failure as failure:
        return str(failure).splitlines()
    problems = []
    try:
        options.wanted_model(settings)
    except Failure as failure:
        problems.append(str(failure))
    try:
        plans_from(settings.plans)
    except ValueError as error:
        problems.append(str(error))
    try:
        ChatTypes(settings.node.chat_types or SHIPPED).load()
    except BrokenChatType as error:
        problems.append(str(error))
    return problems


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    return ", ".join(map(_text, value)) or "-" if isinstance(value, list) else str(value)
