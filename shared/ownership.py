"""Files that root makes for somebody else."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def make_empty(path: Path) -> None:
    """An empty file of mode 0600, the folder's owner's. Raises OSError, FileExistsError where there is one."""
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    try:
        belongs_to_folder(descriptor, path.parent)
    finally:
        os.close(descriptor)


def belongs_to_folder(descriptor: int, folder: Path) -> None:
    """Give an open file that was made just now the owner and group of its folder, where we are root: else a command run
    by root would leave the edge's user a file that only root can read. Where the system forbids it, it stays root's."""
    if os.geteuid() != 0:
        return
    with contextlib.suppress(OSError):
        owner = os.stat(folder)
        os.fchown(descriptor, owner.st_uid, owner.st_gid)
