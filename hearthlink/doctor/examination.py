"""All probes of one machine."""

from __future__ import annotations

import asyncio
import os
import pwd
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from hearthlink.doctor import certificates, disk, edge, issuers, limits, node, runtime, serve, store, stream, tailnet
from hearthlink.doctor.machine import Machine
from hearthlink.doctor.probes import LeftThreads, in_thread, run_probes
from hearthlink.doctor.report import Group, Line

if TYPE_CHECKING:
    from hearthlink.output import Failure
    from shared.settings import Settings

_PARTS = (edge, issuers, certificates, stream, tailnet, serve, node, runtime, limits, store, disk)


async def examine(settings: Settings) -> list[Line]:
    """What they found. For a loop of its own, which ends with it."""
    asyncio.get_running_loop().set_default_executor(LeftThreads())
    async with Machine(settings) as machine:
        if (closed := await in_thread(lambda: _closed(machine))) is not None:
            return [closed]
        return await run_probes([probe for part in _PARTS for probe in part.probes(machine)])


def _closed(machine: Machine) -> Line | None:
    """Where this user may not read the state, most could not be told and the rest would be wrong."""
    if _may_read(machine.state):
        return None
    owner, state = _owner(machine.state), machine.state
    text = f"The state folder {state} is {owner}'s, and this user may not read all of it: nothing was looked at."
    chosen = f" --config {quote(str(machine.settings_file))}" if machine.settings_file is not None else ""
    command = f"sudo -u {quote(owner)} HEARTHLINK_STATE={quote(str(state))} hearthlink doctor{chosen}"
    return disk.DISK.warning("state", text, command)


def _may_read(state: Path) -> bool:
    try:
        found = [path for path in (state / name for name in disk.SECRET_FILES) if path.exists()]
    except PermissionError:
        return False
    return all(os.access(path, os.R_OK, effective_ids=True) for path in found)


def _owner(path: Path) -> str:
    """Whose it is, or whose the folder is that hides it."""
    try:
        user = path.stat().st_uid
    except PermissionError:
        return _owner(path.parent)
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return f"#{user}"


def unreadable(failure: Failure) -> list[Line]:
    """Where the settings are wrong nothing else can be told: not even where the state is."""
    return [
        Group("edge").broken("settings", sentence, "hearthlink config check") for sentence in str(failure).splitlines()
    ]
