"""The group limits: open files, plans, the database that counts, and the keys that sign."""

from __future__ import annotations

import os
import re
import resource
import sqlite3
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hearthlink.doctor.machine import Machine
from hearthlink.doctor.probes import Probe, in_thread
from hearthlink.doctor.report import Group, Line, split_command

if TYPE_CHECKING:
    from edge.plans import Plan

LIMITS = Group("limits")
_SECONDS = 6.0
# A caller's stream is one file; systemd's and most shells' soft limit of 1,024 ends at fewer than a thousand streams.
_FEW_FILES = 4096
_TOO_FEW_FILES = 256  # below what edge, database and log need together with some callers
_CHECKED_WHOLE = 64 * 1024**2  # bytes of a database that is read through within a second
_DAY = 86_400


def probes(machine: Machine) -> list[Probe]:
    return [
        Probe(LIMITS, "files", lambda: files(machine), _SECONDS),
        Probe(LIMITS, "plans", lambda: in_thread(lambda: plans(machine)), _SECONDS),
        Probe(LIMITS, "database", lambda: in_thread(lambda: database(machine)), _SECONDS),
        Probe(LIMITS, "signing-keys", lambda: in_thread(lambda: signing_keys(machine)), _SECONDS),
    ]


async def files(machine: Machine) -> Sequence[Line]:
    """How many files, which connections are, the edge may have open; where none runs, how many one that is started
    from this shell would allow itself."""
    process = await machine.edge_process()
    soft = _soft_limit(process) if process else None
    whose = f"The edge (process {process})" if soft is not None else "A process started from this shell"
    if soft is None:
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if soft == resource.RLIM_INFINITY:
        return [LIMITS.ok("files", f"{whose} may have any number of files open.")]
    text = f"{whose} may have {soft:,} files open."
    mend, where = "ulimit -n 65536", "in the shell or unit (LimitNOFILE=65536) that starts the edge"
    if soft < _TOO_FEW_FILES:
        return [LIMITS.broken("files", f"{text} Each caller needs one, so this is the end for most.", mend, where)]
    if soft < _FEW_FILES and (machine.has_edge or process):
        return [LIMITS.warning("files", f"{text} Each caller needs one: there can be fewer streams.", mend, where)]
    return [LIMITS.ok("files", text)]


def _soft_limit(process: int) -> int | None:
    try:
        rows = Path(f"/proc/{process}/limits").read_text()
    except OSError:
        return None
    found = re.search(r"^Max open files +(\d+|unlimited) ", rows, re.MULTILINE)
    if found is None:
        return None
    return resource.RLIM_INFINITY if found[1] == "unlimited" else int(found[1])


def plans(machine: Machine) -> Sequence[Line]:
    """Plans that let nobody do anything, and limits that contradict each other."""
    from edge.plans import plans_from

    if not machine.has_edge:
        return []
    known = plans_from(machine.settings.plans)
    wrong = [
        LIMITS.warning("plans", sentence, machine.edit)
        for plan in known.values()
        for sentence in _doubts(plan, machine.settings.node.max_tokens)
    ]
    if _alone(machine):
        wrong += plans_gone(machine, known, _plans_of_keys(machine.state / "edge.db"))
    return wrong or [LIMITS.ok("plans", f"The plans {', '.join(sorted(known))} can be used.")]


def plans_gone(machine: Machine, known: Collection[str], used: Mapping[str, int]) -> list[Line]:
    """``used``: how many living keys and invites have each plan."""
    text = "The plan {} of {} living keys or invites is none of the settings: they are refused."
    gone = {name: keys for name, keys in used.items() if name not in known}
    return [LIMITS.broken("plans", text.format(name, keys), machine.edit) for name, keys in gone.items()]


def _alone(machine: Machine) -> bool:
    """Whether the edge keeps what it counts in a file of its own."""
    return machine.settings.edge.store.get_secret_value() == "sqlite"


def _doubts(plan: Plan, longest: int) -> Iterator[str]:
    limits = plan.limits()
    if nothing := [name for name, value in limits.items() if value == 0]:
        yield f"Nobody can use the plan {plan.name}: its {', '.join(nothing)} is 0."
        return
    if not plan.scopes:
        yield f"Nobody can use the plan {plan.name}: it has no scopes."
    elif "chat" in plan.scopes and not plan.models and not plan.chat_types:
        yield f"Nobody can chat with the plan {plan.name}: it allows neither a model nor a chat type."
    day, request = limits["tokens_per_day"], limits["tokens_per_request"]
    if day is not None and day <= (longest if request is None else min(request, longest)):
        yield (
            f"The plan {plan.name} has {day} tokens a day, and one answer may reserve that much: set tokens_per_day"
            " higher or tokens_per_request lower."
        )


def _plans_of_keys(path: Path) -> dict[str, int]:
    """How many living keys and invites have each plan; none where the database cannot be read, which is told
    elsewhere."""
    now = int(time.time())
    query = """
        SELECT plan, COUNT(*) FROM (
            SELECT plan FROM keys WHERE revoked_at IS NULL AND (expires_at IS NULL OR expires_at > :now)
            UNION ALL
            SELECT plan FROM invites WHERE revoked_at IS NULL AND expires_at > :now AND used < uses
        ) GROUP BY plan
    """
    if not path.exists():
        return {}
    try:
        connection = _read_only(path)
        try:
            return dict(connection.execute(query, {"now": now}))
        finally:
            connection.close()
    except sqlite3.Error:
        return {}


def database(machine: Machine) -> Sequence[Line]:
    """Whether the counts of callers can be read."""
    from edge.store.sqlite.database import SCHEMA_VERSION

    path = machine.state / "edge.db"
    if not _alone(machine) or not path.exists() or not path.stat().st_size:
        return []
    # What the write-ahead log has and the database has not yet is a part of it, and the next start would delete it.
    aside = f"'{machine.state}/broken-database'"
    parts = "-maxdepth 1 -name 'edge.db*' ! -name 'edge.db.*'"
    away = f"mkdir -m 700 {aside} && find '{machine.state}' {parts} -exec mv {{}} {aside} ';'"
    try:
        connection = _read_only(path)
        try:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            said = _check(connection, path)
        finally:
            connection.close()
    except sqlite3.Error as error:
        text = f"The edge's database {path} cannot be read ({error})."
        return [LIMITS.broken("database", text, away, "with the edge stopped, if no copy can be restored")]
    if version > SCHEMA_VERSION:
        text = f"The database {path} is of a newer Hearthlink than this one: install that version again."
        return [LIMITS.broken("database", text, "pip install --upgrade hearthlink")]
    if said != "ok":
        text = f"The edge's database {path} is damaged ({said})."
        return [LIMITS.broken("database", text, away, "with the edge stopped, if no copy can be restored")]
    return [LIMITS.ok("database", "The edge's database can be read and is whole.")]


def _check(connection: sqlite3.Connection, path: Path) -> str:
    if path.stat().st_size > _CHECKED_WHOLE:
        connection.execute("SELECT COUNT(*) FROM keys").fetchone()
        return "ok"
    return str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])


def _read_only(path: Path) -> sqlite3.Connection:
    """Beside a running edge, without changing anything. The caller closes it."""
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=1.0)


def signing_keys(machine: Machine) -> Sequence[Line]:
    """That tokens can be signed, and since when with these keys."""
    from shared.state import StateDir, StateError

    if not machine.has_edge:
        return []
    if machine.settings.edge.signing_keys:
        return [LIMITS.ok("signing-keys", f"Tokens are signed with {_keys(len(machine.settings.edge.signing_keys))}.")]
    if not _alone(machine):
        return []  # they are in the store that the edges share
    path = machine.state / "signing-keys"
    if not path.exists():
        return [LIMITS.absent("signing-keys", "There is no signing key yet: the first start of the edge makes it.")]
    try:
        old = len(StateDir(machine.state).signing_keys().old)
    except StateError as error:
        said, command = split_command(str(error))
        return [LIMITS.broken("signing-keys", said, command or f"ls -l '{path}'")]
    days = int((time.time() - os.stat(path).st_mtime) / _DAY)
    kept = f", and {old} old ones are accepted" if old else ""
    return [LIMITS.ok("signing-keys", f"Tokens are signed with a key of {days} days{kept}.")]


def _keys(count: int) -> str:
    return "one key" if count == 1 else f"the last of {count} keys"
