"""The group disk: is there room, are secrets closed to others, and how large has the database become?"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from hearthlink.doctor.machine import Machine
from hearthlink.doctor.probes import Probe, in_thread
from hearthlink.doctor.report import Group, Line

DISK = Group("disk")
_SECONDS = 5.0
_GIB = 1024**3
_MIB = 1024**2
# The edge writes some kilobytes a minute; a model that is pulled wants gigabytes.
_LITTLE = _GIB
_LITTLE_SHARE = 0.05
_NOTHING = 64 * _MIB  # SQLite's write-ahead log and a log file may need this much at once
# A row per caller and day is some hundred bytes: more than this is years of many callers, or a fault.
_LARGE_DATABASE = _GIB
# SQLite empties the write-ahead log again and again at 4 MB, unless a reader holds it.
_LARGE_LOG = 64 * _MIB
SECRET_FILES = ("node-token", "signing-keys", "edge.db", "edge.db-wal", "edge.db-shm")
_SECRETS = (*SECRET_FILES, "serve.sock")
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def probes(machine: Machine) -> list[Probe]:
    return [
        Probe(DISK, "space", lambda: in_thread(lambda: space(machine.state)), _SECONDS),
        Probe(DISK, "secrets", lambda: in_thread(lambda: secrets(machine)), _SECONDS),
        Probe(DISK, "database", lambda: in_thread(lambda: database(machine)), _SECONDS),
    ]


def space(state: Path) -> Sequence[Line]:
    """Room for databases and models in the file system of the state folder."""
    folder = next(path for path in (state, *state.parents) if path.exists())
    found = os.statvfs(folder)
    free, whole = found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize
    share = free / whole if whole else 1.0
    text = f"{_size(free)} of {_size(whole)} are free where the state is ({state})."
    look = f"du -xh -d2 '{folder}' | sort -h | tail"
    if free < _NOTHING:
        return [DISK.broken("space", f"{text} The edge cannot write its database when it is full.", look)]
    if free < _LITTLE or share < _LITTLE_SHARE:
        return [DISK.warning("space", f"{text} That is little.", look)]
    return [DISK.ok("space", text)]


def secrets(machine: Machine) -> Sequence[Line]:
    """Files with secrets in them, which only their owner is to read."""
    if not machine.state.exists():
        return [DISK.absent("secrets", f"There is no state folder {machine.state} yet: the first start makes it.")]
    wrong = list(_open_files(machine))
    return wrong or [DISK.ok("secrets", f"Only their owner reads the secrets in {machine.state}.")]


def _open_files(machine: Machine) -> Iterator[Line]:
    state = machine.state
    mode = state.stat().st_mode
    if mode & stat.S_IWOTH:
        text = f"Every user of this machine may write the state folder {state}, so edge and node refuse to start."
        yield DISK.broken("secrets", text, f"chmod 700 '{state}'")
    elif mode & _OTHERS:
        yield DISK.warning("secrets", f"Other users may look into the state folder {state}.", f"chmod 700 '{state}'")
    for path in (state / name for name in _SECRETS):
        mode = _mode(path)
        if mode & (stat.S_IROTH | stat.S_IWOTH):
            text = f"Every user of this machine may read the secrets in {path} (mode {mode:04o})."
            yield DISK.broken("secrets", text, f"chmod 600 '{path}'")
        elif mode & _OTHERS:
            text = f"A group of users may read the secrets in {path} (mode {mode:04o})."
            yield DISK.warning("secrets", text, f"chmod 600 '{path}'")
    for path in _owners_files(machine):
        mode = _mode(path)
        if mode & (stat.S_IROTH | stat.S_IWOTH) and _reached_by_others(path):
            text = f"Every user of this machine may read {path} (mode {mode:04o}), which has secrets in it."
            yield DISK.warning("secrets", text, f"chmod 600 '{path}'")


def _owners_files(machine: Machine) -> Iterator[Path]:
    """Files with secrets that the owner of the machine wrote."""
    for section in (machine.settings.node, *machine.settings.edge.upstreams.values()):
        if section.tls.key is not None:
            yield Path(section.tls.key)
    if machine.settings_file is not None and machine.secrets_in_file:
        yield machine.settings_file


def _mode(path: Path) -> int:
    """0 for a file that is not there."""
    try:
        return stat.S_IMODE(path.stat().st_mode)
    except OSError:
        return 0


def _reached_by_others(path: Path) -> bool:
    return all(folder.stat().st_mode & stat.S_IXOTH for folder in path.absolute().parents)


def database(machine: Machine) -> Sequence[Line]:
    """Nothing where the edge counts on a server that several share."""
    path = machine.state / "edge.db"
    if machine.settings.edge.store.get_secret_value() != "sqlite":
        return []
    if not path.exists():
        return [DISK.absent("database", "The edge's database is not here: no edge has run with this state.")]
    size = path.stat().st_size
    log = path.with_name("edge.db-wal")
    log_size = log.stat().st_size if log.exists() else 0
    lines = []
    if size > _LARGE_DATABASE:
        text = f"The edge's database is {_size(size)}, far more than callers and their usage need."
        lines.append(DISK.warning("database", text, f"sqlite3 '{path}' VACUUM", "with the edge stopped"))
    if log_size > _LARGE_LOG:
        text = f"The database's write-ahead log is {_size(log_size)}: some program reads the database and never stops."
        lines.append(DISK.warning("database", text, f"fuser -v '{path}'"))
    return lines or [DISK.ok("database", f"The edge's database is {_size(size + log_size)}.")]


def _size(count: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
