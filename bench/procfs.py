"""CPU time and memory of other processes, read from /proc (Linux)."""

from __future__ import annotations

import os
from pathlib import Path

_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICK = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """User and system time of all threads of ``pid``. Nanoseconds exact (schedstat) where the kernel keeps it, else in
    clock ticks. Raises OSError when the process is gone."""
    try:
        tasks = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/schedstat")]
        if tasks:
            return sum(int(text.split()[0]) for text in tasks) / 1e9
    except OSError:  # a thread ended while we looked
        pass
    fields = _stat(pid)
    return (int(fields[11]) + int(fields[12])) / _TICK


def rss_bytes(pid: int) -> int:
    """Resident memory of ``pid``."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE


def machine_seconds() -> float:
    """CPU time of everything on this machine so far, and what its host kept from it (steal)."""
    user, nice, system, _idle, _wait, irq, softirq, stolen = Path("/proc/stat").read_text().split(maxsplit=9)[1:9]
    return sum(map(int, (user, nice, system, irq, softirq, stolen))) / _TICK


def family(pid: int) -> list[int]:
    """``pid`` and all its descendants: nginx keeps its worker, LiteLLM its servers."""
    found = [pid]
    for parent in found:
        for path in Path(f"/proc/{parent}/task").glob("*/children"):
            found.extend(int(child) for child in path.read_text().split())
    return found


def _stat(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
