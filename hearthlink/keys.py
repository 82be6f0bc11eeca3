"""``hearthlink key create|list|revoke``: API keys of the edge on this machine, which sees a change within 1 s."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from hearthlink import options
from hearthlink.database import administer, moment, record
from hearthlink.output import Failure, Status, print_json, print_table, say
from hearthlink.tokens import plan_named

_DEFAULT_SCOPES = ("chat",)


def create(
    name: Annotated[str, typer.Argument(help="A name of your own: lists show it, revoking takes it.")],
    plan: Annotated[str, typer.Option("--plan", help="member, owner (no limits), or one of the settings.")] = "member",
    scope: Annotated[
        list[str] | None, typer.Option("--scope", help="What it may do, of what the plan allows.  [default: chat]")
    ] = None,
    expires: Annotated[
        str | None, typer.Option("--expires", metavar="DURATION", help="Its lifetime, such as 30d; else it has no end.")
    ] = None,
    json: options.Json = False,
    config: options.Config = None,
) -> None:
    """Make an API key. It is printed once; only its hash is kept.

    Example: hearthlink key create laptop --plan owner --expires 90d
    """
    from edge.store.rows import key_row

    settings = options.settings_from(config)
    scopes = tuple(scope or _DEFAULT_SCOPES)
    plan_named(settings, plan, scopes)
    ends = _end(expires)
    info, key = administer(settings, lambda admin: admin.create_key(name, plan, scopes, ends))
    if json:
        print_json({"key": key, **key_row(info, time.time())})
    else:
        print(key)
        say(f"The key {name} with plan {plan}, {f'valid until {_day(ends)}' if ends else 'without an end'}.")
        say("Copy it now: only its hash is kept.")
    record(settings, "key.create", info.principal_id)


def list_(json: options.Json = False, config: options.Config = None) -> None:
    """List the API keys, without their secrets."""
    from edge.store.rows import key_row

    found = administer(options.settings_from(config), lambda admin: admin.list_keys())
    rows = [key_row(info, time.time()) for info in found]
    if json:
        print_json(rows)
    elif rows:
        print_table(("name", "id", "plan", "scopes", "created", "expires", "state"), [_cells(row) for row in rows])
    else:
        say("There is no API key yet. Make one: hearthlink key create NAME")


def revoke(
    which: Annotated[str, typer.Argument(metavar="NAME|ID", help="The key, as the list names it.")],
    json: options.Json = False,
    config: options.Config = None,
) -> None:
    """Revoke an API key, and every token made with it."""
    settings = options.settings_from(config)
    info = administer(settings, lambda admin: admin.revoke_key(which))
    if json:
        print_json({"id": info.id, "name": info.name, "revoked": True})
    else:
        say(f"The key {info.name} ({info.id}) is revoked; a running edge refuses it from now on.")
    record(settings, "key.revoke", info.principal_id)


def _end(expires: str | None) -> int | None:
    """Unix seconds at which a key of this lifetime ends. Raises Failure."""
    if expires is None:
        return None
    from shared.quantities import duration

    try:
        return int(time.time() + duration(expires))
    except ValueError as error:
        raise Failure(f'--expires {expires[:40]!r} {error}, or days as "30d".', Status.USAGE) from None


def _day(at: int | None) -> str:
    return moment(at).partition(" ")[0]


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    days = _day(row["created_at"]), _day(row["expires_at"])
    return (row["name"], row["id"], row["plan"], " ".join(row["scopes"]), *days, row["state"])
