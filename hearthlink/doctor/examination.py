"""All probes of one machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hearthlink.doctor import disk, edge, limits, node, runtime, serve, stream, tailnet
from hearthlink.doctor.machine import Machine
from hearthlink.doctor.probes import run_probes
from hearthlink.doctor.report import Group, Line

if TYPE_CHECKING:
    from hearthlink.output import Failure
    from shared.settings import Settings

_PARTS = (edge, stream, tailnet, serve, node, runtime, limits, disk)


async def examine(settings: Settings) -> list[Line]:
    """What they found."""
    async with Machine(settings) as machine:
        return await run_probes([probe for part in _PARTS for probe in part.probes(machine)])


def unreadable(failure: Failure) -> list[Line]:
    """Where the settings are wrong nothing else can be told: not even where the state is."""
    return [
        Group("edge").broken("settings", sentence, "hearthlink config check") for sentence in str(failure).splitlines()
    ]
