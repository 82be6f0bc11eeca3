"""``hearthlink key create|list|revoke``: the API keys in the local state. A running edge sees a change within 1 s."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hearthlink import options
from hearthlink.database import local_database
from hearthlink.output import Failure, Status, print_json, print_table, say
from hearthlink.tokens import plan_named

if TYPE_CHECKING:
    from edge.store.keys import KeyInfo

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
    from edge.store import keys

    settings = options.settings_from(config)
    scopes = tuple(scope or _DEFAULT_SCOPES)
    allowed = plan_named(settings, plan).scopes
    if missing := [one for one in scopes if one not in allowed]:
        raise Failure(
            f"The plan {plan} does not have the scope {missing[0]!r}. It has: {', '.join(allowed)}.", Status.USAGE
        )
    ends = _end(expires)
    with local_database(settings) as connection:
        key = keys.create(connection, name, plan, scopes, ends)
    if json:
        print_json({"key": key, "name": name, "plan": plan, "scopes": scopes, "expires_at": ends})
    else:
        print(key)
        say(f"The key {name} with plan {plan}, {f'valid until {_day(ends)}' if ends else 'without an end'}.")
        say("Copy it now: only its hash is kept.")


def list_(json: options.Json = False, config: options.Config = None) -> None:
    """List the API keys, without their secrets."""
    from edge.store import keys

    with local_database(options.settings_from(config)) as connection:
        found = keys.list_keys(connection)
    if json:
        print_json([_row(info) for info in found])
    elif found:
        print_table(("name", "id", "plan", "scopes", "created", "expires", "state"), [_cells(info) for info in found])
    else:
        say("There is no API key yet. Make one: hearthlink key create NAME")


def revoke(
    which: Annotated[str, typer.Argument(metavar="NAME|ID", help="The key, as the list names it.")],
    json: options.Json = False,
    config: options.Config = None,
) -> None:
    """Revoke an API key, and every token made with it."""
    from edge.store import keys

    with local_database(options.settings_from(config)) as connection:
        info = keys.revoke(connection, which)
    if json:
        print_json({"id": info.id, "name": info.name, "revoked": True})
    else:
        say(f"The key {info.name} ({info.id}) is revoked; a running edge refuses it from now on.")


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
    return "-" if at is None else f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d}"


def _state(info: KeyInfo) -> str:
    if info.revoked_at is not None:
        return "revoked"
    return "expired" if info.expires_at is not None and info.expires_at <= time.time() else "valid"


def _cells(info: KeyInfo) -> tuple[str, ...]:
    days = _day(info.created_at), _day(info.expires_at)
    return (info.name, info.id, info.plan, " ".join(info.scopes), *days, _state(info))


def _row(info: KeyInfo) -> dict[str, Any]:
    return {
        "id": info.id,
        "name": info.name,
        "plan": info.plan,
        "scopes": list(info.scopes),
        "created_at": info.created_at,
        "expires_at": info.expires_at,
        "revoked_at": info.revoked_at,
        "state": _state(info),
    }
