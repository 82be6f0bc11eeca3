"""``hearthlink backup FILE`` and ``restore FILE``: the state folder but for models, while edge and node run."""

from __future__ import annotations

import contextlib
import os
import socket
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from hearthlink import archive, options
from hearthlink.output import Failure, Status, print_json, say
from shared.ownership import belongs_to_folder

# What a state folder holds that cannot be pulled or made again; models can.
_DATABASES = ("edge.db", "conversations.db")
_FILES = ("node-token", "node-id", "signing-keys", "node-models.json")
# For a copy of a database that is being written to.
_BUSY_SECONDS = 10.0


def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What to write; it must not exist.", show_default=False)],
    json: options.Json = False,
    config: options.Config = None,
) -> None:
    """Copy the state of this machine into one file.

    That is keys, limits, usage, conversations and secrets. Models are left out.

    Edge and node may run meanwhile. What edges share in a Redis store is backed up there, and conversations that are
    kept in memory are in no file. The file holds secrets: keep it as you keep passwords.

    Example: hearthlink backup hearthlink.tar.gz
    """
    state = options.state_of(options.settings_from(config)).path
    with tempfile.TemporaryDirectory(prefix=".backup-", dir=state) as folder:
        members = [archive.Member.of(path) for path in _copies(state, Path(folder))]
        if not members:
            raise Failure(f"There is nothing to back up in {state}.", Status.NOT_FOUND)
        try:
            archive.write(file, Path(folder), members)
        except FileExistsError:
            raise Failure(f"{file} exists already. Name another file.", Status.USAGE) from None
        except OSError as error:
            raise Failure(f"{file} cannot be written: {error.strerror}.") from None
    _tell(members, file, "are in", as_json=json)


def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What backup wrote.", show_default=False)],
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
    json: options.Json = False,
    config: options.Config = None,
) -> None:
    """Put the state of a backup in place. Stop edge and node of this machine first.

    The file is checked whole before anything is replaced. Tokens that were revoked after the backup was made are good
    again until they expire: where that matters, run hearthlink key rotate --leaked afterwards.
    """
    state = options.state_of(options.settings_from(config)).path
    with tempfile.TemporaryDirectory(prefix=".restore-", dir=state) as folder:
        members = _unpacked(file, Path(folder))
        there = [member.name for member in members if (state / member.name).exists()]
        if there and not force:
            raise Failure(f"{state} holds {', '.join(there)} already. Add --force to replace that.", Status.USAGE)
        _check_node_ended(state / "node.sock")
        for name in _DATABASES:
            _check_unused(state / name)
        for member in members:
            _put(Path(folder, member.name), state / member.name)
    _tell(members, file, "are restored from", as_json=json)


def _copies(state: Path, folder: Path) -> Iterator[Path]:
    """What there is of the state, copied into ``folder``: each database as of one moment. Raises Failure."""
    for name in (*_DATABASES, *_FILES):
        source, copy = state / name, folder / name
        if not source.is_file():
            continue
        try:
            if name in _DATABASES:
                _copy_database(source, copy)
            else:
                copy.write_bytes(source.read_bytes())
        except (OSError, sqlite3.Error) as error:
            raise Failure(f"{source} cannot be copied: {error}. Nothing was written.") from None
        yield copy


def _copy_database(source: Path, copy: Path) -> None:
    with (
        contextlib.closing(sqlite3.connect(f"{source.as_uri()}?mode=ro", uri=True, timeout=_BUSY_SECONDS)) as reading,
        contextlib.closing(sqlite3.connect(copy)) as writing,
    ):
        reading.backup(writing)
        writing.execute("PRAGMA journal_mode = DELETE")  # one file, without a log beside it


def _unpacked(file: Path, folder: Path) -> list[archive.Member]:
    """The files of the backup in ``folder``, each checked. Raises Failure."""
    try:
        members = archive.unpack(file, folder, (*_DATABASES, *_FILES))
    except archive.NoBackup as error:
        raise Failure(f"{file} is no whole backup of Hearthlink: {error}. Nothing was changed.") from None
    except OSError as error:
        raise Failure(f"{file} cannot be read: {error.strerror or error}. Nothing was changed.") from None
    for name in {member.name for member in members}.intersection(_DATABASES):
        _check_whole(folder / name)
    return members


def _check_whole(path: Path) -> None:
    try:
        with contextlib.closing(sqlite3.connect(path)) as connection:
            (said,) = connection.execute("PRAGMA integrity_check").fetchone()
    except sqlite3.Error as error:
        said = str(error)
    if said != "ok":
        raise Failure(f"{path.name} in the backup is damaged ({said}). Nothing was changed.")


def _check_node_ended(path: Path) -> None:
    """Raises Failure while a node answers at ``path``: it may have no database open, and would go on with its old id
    and token."""
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return
    raise Failure(f"A node uses {path.parent}. Stop edge and node of this machine, then try again.")


def _check_unused(path: Path) -> None:
    """Raises Failure while a process has the database open: it would go on with the old one, or spoil the new."""
    if not path.exists():
        return
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=0)) as connection:
            # SQLite changes the mode only for whoever is alone with the file.
            connection.execute("PRAGMA journal_mode = DELETE")
    except sqlite3.OperationalError:
        raise Failure(f"{path} is in use. Stop edge and node of this machine, then try again.") from None
    except sqlite3.DatabaseError:
        return  # damaged: that is what a backup is for


def _put(new: Path, path: Path) -> None:
    with new.open("rb") as file:
        belongs_to_folder(file.fileno(), path.parent)
    for beside in ("-wal", "-shm"):  # of the database that is replaced
        path.with_name(path.name + beside).unlink(missing_ok=True)
    os.replace(new, path)


def _tell(members: Sequence[archive.Member], file: Path, what: str, *, as_json: bool) -> None:
    if as_json:
        print_json({"file": str(file), "files": {member.name: member.bytes for member in members}})
    else:
        say(f"{', '.join(member.name for member in members)} {what} {file}.")
