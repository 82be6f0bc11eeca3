"""``hearthlink doctor``: what is wrong with this machine's part of Hearthlink, why, and the command that mends it."""

from __future__ import annotations

import asyncio

import typer

from hearthlink import options
from hearthlink.output import Failure, print_json


def doctor(json: options.Json = False, config: options.Config = None) -> None:
    """Say what is wrong on this machine, and what mends it.

    It looks at edge, tailnet, node, runtime, limits and disk, takes ten seconds at most, changes nothing, and asks the
    model for one answer of a few words. Exit status: 0 all is well, 1 warnings, 2 something is broken.
    """
    # Imported where it is used: they bring an HTTP client, and other verbs start without.
    from hearthlink.doctor.examination import examine, unreadable
    from hearthlink.doctor.report import as_json, print_report, verdict
    from shared import __version__

    try:
        settings = options.settings_from(config)
    except Failure as failure:
        lines = unreadable(failure)
    else:
        lines = asyncio.run(examine(settings))
    if json:
        print_json(as_json(lines, __version__))
    else:
        print_report(lines)
    raise typer.Exit(verdict(lines))
