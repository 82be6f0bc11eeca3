"""``hearthlink invite create|list|revoke``: the invites in the local state. A running edge sees a change within 1 s."""

from __future__ import annotations

import time
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hearthlink import options
from hearthlink.database import local_database
from hearthlink.output import Failure, Status, print_json, print_table, say
from hearthlink.tokens import plan_named

if TYPE_CHECKING:
    from edge.store.invites import InviteInfo

_DEFAULT_DAYS = 7
_LONGEST_DAYS = 366
_MOST_USES = 10_000
_HOURS_PER_DAY = 24
_SECONDS_PER_HOUR = 3600


def create(
    name: Annotated[
        str | None, typer.Option("--name", help="A name of your own: lists show it, revoking takes it.")
    ] = None,
    uses: Annotated[
        int, typer.Option("--uses", min=1, max=_MOST_USES, help="How many browsers or programs it lets in.")
    ] = 1,
    hours: Annotated[
        float | None, typer.Option("--hours", min=0.01, max=_LONGEST_DAYS * _HOURS_PER_DAY, help="Its lifetime.")
    ] = None,
    days: Annotated[
        float | None,
        typer.Option("--days", min=0.01, max=_LONGEST_DAYS, help=f"Its lifetime.  [default: {_DEFAULT_DAYS}]"),
    ] = None,
    plan: Annotated[str, typer.Option("--plan", help="What they may do: a plan of the settings.")] = "member",
    json: options.Json = False,
    config: options.Config = None,
) -> None:
    """Make an invite. It is printed once; only its hash is kept.

    Whoever enters it on the chat page is let in until it ends; a browser that stays on its network, once however often.
    Example: hearthlink invite create --uses 5 --days 14
    """
    from edge.store import invites

    if hours is not None and days is not None:
        raise Failure("--hours and --days both give the lifetime. Give one of them.", Status.USAGE)
    settings = options.settings_from(config)
    if "chat" not in plan_named(settings, plan).scopes:
        raise Failure(
            f"The plan {plan} does not have the scope 'chat', which is all that an invite gives.", Status.USAGE
        )
    lifetime = (_DEFAULT_DAYS if days is None else days) * _HOURS_PER_DAY if hours is None else hours
    ends = int(time.time() + lifetime * _SECONDS_PER_HOUR)
    with local_database(settings) as connection:
        invite = invites.create(connection, plan, uses, ends, name)
    if json:
        print_json({"invite": invite, "name": name, "plan": plan, "uses": uses, "expires_at": ends})
    else:
        print(invite)
        times = "one use" if uses == 1 else f"{uses} uses"
        say(f"An invite with plan {plan} and {times}, valid until {_moment(ends)} UTC.")
        say("Copy it now: only its hash is kept.")
        if not settings.edge.invites:
            say("The edge does not take invites yet: set edge.invites = true.")


def list_(json: options.Json = False, config: options.Config = None) -> None:
    """List the invites, without their secrets."""
    from edge.store import invites

    with local_database(options.settings_from(config)) as connection:
        found = invites.list_invites(connection)
    if json:
        print_json([_row(info) for info in found])
    elif found:
        print_table(("name", "id", "plan", "used", "created", "expires", "state"), [_cells(info) for info in found])
    else:
        say("There is no invite yet. Make one: hearthlink invite create")


def revoke(
    which: Annotated[str, typer.Argument(metavar="NAME|ID", help="The invite, as the list names it.")],
    json: options.Json = False,
    config: options.Config = None,
) -> None:
    """Revoke an invite, and every token it gave."""
    from edge.store import invites

    with local_database(options.settings_from(config)) as connection:
        info = invites.revoke(connection, which)
    if json:
        print_json({"id": info.id, "name": info.name, "revoked": True})
    else:
        shown = info.id if info.name is None else f"{info.name} ({info.id})"
        say(f"The invite {shown} is revoked; a running edge refuses it, and those it let in, from now on.")


def _moment(at: int) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M}"


def _state(info: InviteInfo) -> str:
    if info.revoked_at is not None:
        return "revoked"
    if info.expires_at <= time.time():
        return "expired"
    return "valid" if info.used < info.uses else "used up"


def _cells(info: InviteInfo) -> tuple[str, ...]:
    times = _moment(info.created_at), _moment(info.expires_at)
    return (info.name or "-", info.id, info.plan, f"{info.used} of {info.uses}", *times, _state(info))


def _row(info: InviteInfo) -> dict[str, Any]:
    return {**asdict(info), "state": _state(info)}
