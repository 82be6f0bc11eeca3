"""How much memory this process may have and has: the limit that systemd, Docker or Kubernetes set on its control group
(cgroup v2). Past it the kernel kills.

https://docs.kernel.org/admin-guide/cgroup-v2.html, "Memory Interface Files".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")


class Memory:
    """The groups that this process is in and that have a limit: its own and those around it. The kernel kills when one
    of them is full, which need not be the one with the narrowest limit: others are in a group around it as well."""

    def __init__(self, limits: Mapping[Path, int]) -> None:
        self._limits = limits  # bytes, by group

    @classmethod
    def of_this_process(cls, own: Path = _OWN, root: Path = _ROOT) -> Memory | None:
        """None where nothing limits it, or where there are no control groups, as on macOS."""
        limits = {group: limit for group in _groups(own, root) if (limit := _read(group / "memory.max")) is not None}
        return cls(limits) if limits else None

    def used_share(self) -> float | None:
        """Of the limit, how much is used and cannot be had back, in the group that is fullest: files that were read are
        let go first, and do not count. None when the system does not tell. Takes some ten microseconds a group: these
        files are made as they are read."""
        shares = [share for group, limit in self._limits.items() if (share := _share(group, limit)) is not None]
        return max(shares, default=None)


def _share(group: Path, limit: int) -> float | None:
    used = _read(group / "memory.current")
    return None if used is None else (used - _inactive(group / "memory.stat")) / max(limit, 1)


def _groups(own: Path, root: Path) -> Iterator[Path]:
    """The process's own control group and those around it."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        if line.startswith("0::/"):
            group = root / line.removeprefix("0::/")
            yield group
            while group != root:
                group = group.parent
                yield group


def _read(file: Path) -> int | None:
    """None for "max", and for a file that is not there."""
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _inactive(stat: Path) -> int:
    try:
        lines = stat.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("inactive_file ")), 0)
