"""``hearthlink maintenance on|off|show``: closed to all but admins, with a message. All edges on the store obey."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from hearthlink import options
from hearthlink.database import administer, moment, record
from hearthlink.output import print_json, say

if TYPE_CHECKING:
    from edge.store.admin import Admin


def on(
    message: Annotated[
        str | None, typer.Option("--message", metavar="TEXT", help="What callers read: why, and until when.")
    ] = None,
    end_answers: Annotated[bool, typer.Option("--end-answers", help="End running answers, too.")] = False,
    json: options.Json = False,
    config: options.Config = None,
) -> None:
    """Close the edge: everybody but an admin is told to come back later. Running answers go on.

    Example: hearthlink maintenance on --message "A new model is being loaded. Back at 15:00 UTC."
    """
    from edge.store.records import Maintenance
    from edge.store.rows import maintenance_row

    async def close(admin: Admin) -> Maintenance:
        maintenance = Maintenance.begun(message, time.time(), ends_answers=end_answers)
        await admin.set_maintenance(maintenance)
        return maintenance

    settings = options.settings_from(config)
    maintenance = administer(settings, close)
    if json:
        print_json(maintenance_row(maintenance))
    else:
        say(f"Closed within a second. Callers read: {maintenance.message}")
        say("Running answers are ended." if end_answers else "Running answers go on; --end-answers ends them.")
        say("Open again: hearthlink maintenance off")
    record(settings, "maintenance.on", "edge")


def off(json: options.Json = False, config: options.Config = None) -> None:
    """Open the edge again."""
    from edge.store.rows import maintenance_row

    settings = options.settings_from(config)
    administer(settings, lambda admin: admin.set_maintenance(None))
    if json:
        print_json(maintenance_row(None))
    else:
        say("Open again within a second.")
    record(settings, "maintenance.off", "edge")


def show(json: options.Json = False, config: options.Config = None) -> None:
    """Show whether the edge is closed."""
    from edge.store.rows import maintenance_row

    maintenance = administer(options.settings_from(config), lambda admin: admin.maintenance())
    if json:
        print_json(maintenance_row(maintenance))
    elif maintenance is None:
        print("open")
    else:
        print(f"closed since {moment(maintenance.since)} UTC: {maintenance.message}")
