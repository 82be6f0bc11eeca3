"""``hearthlink invite create|list|revoke``: invites to the edge on this machine, which sees a change within 1 s."""

from __future__ import annotations

import time
from collections.abc import Mapping
from math import isfinite
from typing import Annotated, Any

import typer

from hearthlink import options
from hearthlink.database import administer, moment, record
from hearthlink.output import Failure, Status, print_json, print_table, say
from hearthlink.tokens import plan_named

_DEFAULT_DAYS = 7
_HOURS_PER_DAY = 24
_SECONDS_PER_HOUR = 3600


def create(
    name: Annotated[
        str | None, typer.Option("--name", help="A name of your own: lists show it, revoking takes it.")
    ] = None,
    uses: Annotated[int, typer.Option("--uses", min=1, help="How many browsers or programs it lets in.")] = 1,
    hours: Annotated[float | None, typer.Option("--hours", min=0.01, help="Its lifetime.")] = None,
    days: Annotated[
        float | None, typer.Option("--days", min=0.01, help=f"Its lifetime.  [default: {_DEFAULT_DAYS}]")
    ] = None,
    plan: Annotated[str, typer.Option("--plan", help="What they may do: a plan of the settings.")] = "member",
    json: options.Json = False,
    config: options.Config = None,
) -> None:
    """Make an invite. It is printed once; only its hash is kept.

    Whoever enters it on the chat page is let in until it ends; a browser that stays on its network, once however often.
    Example: hearthlink invite create --uses 5 --days 14
    """
    from edge.store.rows import invite_row

    if hours is not None and days is not None:
        raise Failure("--hours and --days both give the lifetime. Give one of them.", Status.USAGE)
    settings = options.settings_from(config)
    plan_named(settings, plan, ("chat",))
    lifetime = (_DEFAULT_DAYS if days is None else days) * _HOURS_PER_DAY if hours is None else hours
    if not isfinite(lifetime):
        raise Failure("A lifetime is a number of hours or days.", Status.USAGE)
    ends = int(time.time() + lifetime * _SECONDS_PER_HOUR)
    info, invite = administer(settings, lambda admin: admin.create_invite(plan, uses, ends, name))
    if json:
        print_json({"invite": invite, **invite_row(info, time.time())})
    else:
        print(invite)
        times = "one use" if uses == 1 else f"{uses} uses"
        say(f"An invite with plan {plan} and {times}, valid until {moment(ends)} UTC.")
        say("Copy it now: only its hash is kept.")
        if not settings.edge.invites:
            say("The edge does not take invites yet: set edge.invites = true.")
    record(settings, "invite.create", f"invite_{info.id}")


def list_(json: options.Json = False, config: options.Config = None) -> None:
    """List the invites, without their secrets."""
    from edge.store.rows import invite_row

    found = administer(options.settings_from(config), lambda admin: admin.list_invites())
    rows = [invite_row(info, time.time()) for info in found]
    if json:
        print_json(rows)
    elif rows:
        print_table(("name", "id", "plan", "used", "created", "expires", "state"), [_cells(row) for row in rows])
    else:
        say("There is no invite yet. Make one: hearthlink invite create")


def revoke(
    which: Annotated[str, typer.Argument(metavar="NAME|ID", help="The invite, as the list names it.")],
    json: options.Json = False,
    config: options.Config = None,
) -> None:
    """Revoke an invite, and every token it gave."""
    settings = options.settings_from(config)
    info = administer(settings, lambda admin: admin.revoke_invite(which))
    if json:
        print_json({"id": info.id, "name": info.name, "revoked": True})
    else:
        shown = info.id if info.name is None else f"{info.name} ({info.id})"
        say(f"The invite {shown} is revoked; a running edge refuses it, and those it let in, from now on.")
    record(settings, "invite.revoke", f"invite_{info.id}")


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    times = moment(row["created_at"]), moment(row["expires_at"])
    used = f"{row['used']} of {row['uses']}"
    return (row["name"] or "-", row["id"], row["plan"], used, *times, row["state"])
