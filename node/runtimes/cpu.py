"""What this machine's processor offers: cores that may be used, and instructions that llama.cpp's wheel needs."""

from __future__ import annotations

import os
import platform
from pathlib import Path

# The generic x86-64 wheel is built with these (llama.cpp's system info), named as /proc/cpuinfo names them.
_X86_FEATURES = ("pni", "ssse3", "sse4_2", "avx", "avx2", "f16c", "fma", "bmi2")
_CPUINFO = Path("/proc/cpuinfo")
_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")  # "quota period" in µs, or "max period" (cgroup v2, as seen in a container)
_SIBLINGS = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"


def inference_threads() -> int:
    """Threads that llama.cpp gets unless told: one per physical core this process may use (two threads of one core
    share the units that matrix products need), within a container's CPU quota. From four cores up one is left to edge,
    node and system: the threads wait for each other after every layer, so one that is pushed aside stops them all."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    cores = len({_read(Path(_SIBLINGS.format(cpu))) or str(cpu) for cpu in allowed})
    quota, _, period = _read(_CPU_MAX).partition(" ")
    if quota.isdigit() and period.isdigit() and int(period):
        cores = min(cores, int(quota) // int(period))
    return max(1, cores - 1 if cores >= 4 else cores)


def missing_features(cpuinfo: Path = _CPUINFO) -> tuple[str, ...]:
    """Names of the instruction sets that the x86-64 wheel uses and this processor lacks; empty when it has all, and
    where the system does not tell."""
    flags = next((line for line in _read(cpuinfo).splitlines() if line.startswith("flags")), "")
    if platform.machine() not in ("x86_64", "AMD64") or not flags:
        return ()
    have = set(flags.partition(":")[2].split())
    return tuple("sse3" if name == "pni" else name for name in _X86_FEATURES if name not in have)


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
