"""The file of a backup: a gzipped tar, ``manifest.json`` first (format, version, time, sha256 of each file), then the
files. It holds secrets, so it is made with mode 0600.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import secrets
import shutil
import tarfile
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from shared import __version__

_MANIFEST = "manifest.json"
_FORMAT = 1
_MAX_MANIFEST = 64 << 10  # bytes; a dozen lines
_CHUNK = 1 << 20
# What file systems without hard links say of one: FAT and exFAT as memory sticks have them, some network shares.
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)


class NoBackup(Exception):
    """The file is none that ``write`` wrote, or it was damaged since. The text says in what way."""


@dataclass(frozen=True, slots=True)
class Member:
    """One file, by its bare name."""

    name: str
    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> Member:
        with path.open("rb") as file:
            return cls(path.name, path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())


def write(file: Path, folder: Path, members: Sequence[Member]) -> None:
    """The ``members`` of ``folder`` as ``file``: whole, or not at all. Raises FileExistsError and other OSErrors."""
    draft = file.with_name(f".{file.name}.{secrets.token_hex(8)}")
    manifest: dict[str, Any] = {
        "format": _FORMAT,
        "version": __version__,
        "made_at": int(time.time()),
        "files": {member.name: {"bytes": member.bytes, "sha256": member.sha256} for member in members},
    }
    text = json.dumps(manifest, indent=1).encode()
    try:
        with open(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as raw:
            with tarfile.open(fileobj=raw, mode="w:gz") as tar:
                _add(tar, _MANIFEST, io.BytesIO(text), len(text))
                for member in members:
                    with Path(folder, member.name).open("rb") as content:
                        _add(tar, member.name, content, member.bytes)
            raw.flush()
            os.fsync(raw.fileno())
        _place(draft, file)
    finally:
        draft.unlink(missing_ok=True)


def unpack(file: Path, folder: Path, known: Collection[str]) -> list[Member]:
    """The files of a backup in ``folder``, each checked; ``known`` are the names that it may hold. Raises NoBackup, and
    OSError when a file cannot be read or written."""
    try:
        with tarfile.open(file, "r:gz") as tar:
            members = _listed(tar, known)
            for member in members:
                _extract(tar, member, folder)
    except (tarfile.TarError, EOFError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise NoBackup(str(error)) from None
    return members


def _place(draft: Path, file: Path) -> None:
    """Unlike a rename, never replaces what is there. Raises OSError."""
    try:
        os.link(draft, file)
        return
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
    with draft.open("rb") as content, open(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as copy:
        try:
            shutil.copyfileobj(content, copy, _CHUNK)
            copy.flush()
            os.fsync(copy.fileno())
        except BaseException:
            file.unlink(missing_ok=True)
            raise


def _add(tar: tarfile.TarFile, name: str, content: IO[bytes], size: int) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size, 0o600, int(time.time())
    tar.addfile(info, content)


def _listed(tar: tarfile.TarFile, known: Collection[str]) -> list[Member]:
    first = tar.next()
    content = tar.extractfile(first) if first is not None and first.name == _MANIFEST else None
    if content is None:
        raise ValueError("it does not begin with a manifest")
    manifest = json.loads(content.read(_MAX_MANIFEST))
    if manifest["format"] != _FORMAT:
        raise ValueError(f"version {manifest['version']} wrote it, in another format")
    members = [Member(name, int(row["bytes"]), str(row["sha256"])) for name, row in manifest["files"].items()]
    if unknown := [member.name for member in members if member.name not in known]:
        raise ValueError(f"it holds {unknown[0][:40]!r}, which is not part of a state folder")
    return members


def _extract(tar: tarfile.TarFile, member: Member, folder: Path) -> None:
    """Read as a plain file under its own name, whatever the archive says that it is."""
    content = tar.extractfile(tar.getmember(member.name))
    if content is None:
        raise ValueError(f"{member.name} is no file")
    digest, left = hashlib.sha256(), member.bytes
    with open(os.open(folder / member.name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
        while left and (piece := content.read(min(left, _CHUNK))):
            digest.update(piece)
            file.write(piece)
            left -= len(piece)
        file.flush()
        os.fsync(file.fileno())
    if left or digest.hexdigest() != member.sha256:
        raise ValueError(f"{member.name} is damaged")
