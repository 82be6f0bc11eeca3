"""``hearthlink limit show|set|reset``: what callers used today, and limits of their own over those of their plan."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hearthlink import options
from hearthlink.database import administer, moment, record
from hearthlink.output import Failure, Status, print_json, print_table, say

if TYPE_CHECKING:
    from edge.store.admin import Admin

Caller = Annotated[str, typer.Argument(metavar="CALLER", help="As audit lines name it (principal), or a key's name.")]
_UNLIMITED = "unlimited"


def show(
    caller: Annotated[
        str | None, typer.Argument(metavar="[CALLER]", help="One caller, else all who used a token today.")
    ] = None,
    json: options.Json = False,
    config: options.Config = None,
) -> None:
    """Show who used how many tokens today (UTC), and limits of their own."""
    from edge.store.rows import standing_row

    async def read(admin: Admin) -> list[dict[str, Any]]:
        found = await admin.standings() if caller is None else [await admin.standing(await principal_of(admin, caller))]
        return [standing_row(standing) for standing in found]

    rows = administer(options.settings_from(config), read)
    if json:
        print_json(rows if caller is None else rows[0])
    elif rows:
        print_table(("caller", "used", "reserved", "running", "own limits", "revoked"), [_cells(row) for row in rows])
    else:
        say("Nobody used a token today, and nobody has limits of their own.")


def set_(
    caller: Caller,
    requests_per_minute: Annotated[str | None, typer.Option(metavar="N", help="Requests to limited routes.")] = None,
    streams: Annotated[str | None, typer.Option(metavar="N", help="Answers that run at once.")] = None,
    tokens_per_day: Annotated[str | None, typer.Option(metavar="N", help="Prompt and answer together.")] = None,
    tokens_per_request: Annotated[str | None, typer.Option(metavar="N", help="The longest answer.")] = None,
    json: options.Json = False,
    config: options.Config = None,
) -> None:
    """Give one caller limits of its own. N is a number, 0 for none at all, or unlimited.

    Example: hearthlink limit set laptop --tokens-per-day 500000
    """
    given = {
        "requests_per_minute": requests_per_minute,
        "streams": streams,
        "tokens_per_day": tokens_per_day,
        "tokens_per_request": tokens_per_request,
    }
    changes = {name: _limit(name, text) for name, text in given.items() if text is not None}
    if not changes:
        options_ = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise Failure(f"There is no limit to set. Give one of {options_}.", Status.USAGE)

    async def write(admin: Admin) -> tuple[str, Mapping[str, int | None]]:
        principal = await principal_of(admin, caller)
        return principal, await admin.set_limits(principal, changes)

    settings = options.settings_from(config)
    principal, limits = administer(settings, write)
    if json:
        print_json({"principal": principal, "limits": dict(limits)})
    else:
        say(f"{principal} has limits of its own now: {_shown(limits)}. The rest is as its plan says.")
    record(settings, "limit.set", principal)


def reset(
    caller: Caller,
    used: Annotated[bool, typer.Option("--used", help="Forget what it used today instead.")] = False,
    json: options.Json = False,
    config: options.Config = None,
) -> None:
    """Take a caller's own limits away: its plan's hold again. With --used, it may use its day's tokens once more."""

    async def write(admin: Admin) -> str:
        principal = await principal_of(admin, caller)
        await (admin.reset_usage(principal) if used else admin.clear_limits(principal))
        return principal

    settings = options.settings_from(config)
    principal = administer(settings, write)
    if json:
        print_json({"principal": principal, "reset": "used" if used else "limits"})
    elif used:
        say(f"{principal} counts as having used nothing today.")
    else:
        say(f"{principal} has the limits of its plan again.")
    record(settings, "limit.reset" if used else "limit.clear", principal)


async def principal_of(admin: Admin, caller: str) -> str:
    """The caller's id. Raises NoSuchError for what is neither one nor the name or id of a key that lives. No name of a
    key stands for somebody else, though earlier versions let one be called ``token_ci``."""
    from edge.principals import is_id, may_be_principal, names_a_kind
    from edge.store.admin import known_caller
    from edge.store.errors import NoSuchError

    if is_id(caller) and names_a_kind(caller):
        return await known_caller(admin, caller)
    for key in await admin.list_keys():
        if key.revoked_at is None and caller in (key.name, key.id):
            return key.principal_id
    if not may_be_principal(caller):
        raise NoSuchError(f"No key is called {caller[:80]!r}. Give a key's name, or the principal of an audit line.")
    return caller


def _limit(name: str, text: str) -> int | None:
    if text == _UNLIMITED:
        return None
    if re.fullmatch(r"\d{1,15}", text, re.ASCII) is None:
        raise Failure(
            f"--{name.replace('_', '-')} {text[:40]!r} is no limit: give a number, or {_UNLIMITED}.", Status.USAGE
        )
    return int(text)


def _shown(limits: Mapping[str, int | None]) -> str:
    return ", ".join(f"{name} {_UNLIMITED if limit is None else limit}" for name, limit in limits.items())


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    own = _shown(row["limits"]) if row["limits"] else "-"
    return (
        row["principal"],
        *(str(row[name]) for name in ("used", "reserved", "running")),
        own,
        moment(row["revoked_at"]),
    )
