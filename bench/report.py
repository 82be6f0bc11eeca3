"""Figures and the table they are printed in."""

from __future__ import annotations

import datetime
import platform
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from bench.processes import CHECKOUT, Cpus

RESULTS = Path(__file__).parent / "results.md"
_COLUMNS = (
    "figure",
    "promised",
    "Hearthlink",
    "edge + node",
    "on loopback",
    "two nginx",
    "ratio",
    "LiteLLM",
    "no hop",
    "met",
)
_PACKAGES = ("uvicorn", "uvloop", "httptools", "starlette", "aiohttp", "websockets", "xllamacpp")
_HEADER = """\
# Results of `python -m bench`

CPU is user and system time of the named processes, in the run whose wall time is beside it; "edge + node" splits the
pair's, or of tailscaled that on the two machines. "on loopback" is the pair without the tailnet, "no hop" the generator
straight on its upstream: the floor of every time here. Newest last.
"""


@dataclass(frozen=True)
class Figure:
    """One row. ``measured`` and the others are text with their unit, "" when not measured; ``met`` is None where
    nothing is promised."""

    name: str
    promised: str = ""
    measured: str = ""
    parts: str = ""
    loopback: str = ""
    nginx: str = ""
    ratio: str = ""
    litellm: str = ""
    direct: str = ""
    met: bool | None = None

    def cells(self) -> list[str]:
        met = {True: "yes", False: "**no**", None: ""}[self.met]
        ours = (self.name, self.promised, self.measured, self.parts, self.loopback)
        return [*ours, self.nginx, self.ratio, self.litellm, self.direct, met]


def table(figures: Iterable[Figure]) -> str:
    """Markdown, columns padded so that it reads in a terminal too; columns nobody filled are left out."""
    rows = [figure.cells() for figure in figures]
    used = [i for i in range(len(_COLUMNS)) if i < 3 or any(row[i] for row in rows)]
    lines = [[_COLUMNS[i] for i in used], *([row[i] or "-" for i in used] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(used))]
    text = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    text.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(text)


def machine(cpus: Cpus, disturbance: str) -> str:
    """What it ran on: processor, memory, kernel, versions, commit, how processes were placed, and what other programs
    took meanwhile (above some tenths of a CPU the times are theirs, and starved processes look cheap)."""
    memory = next(line for line in _read("/proc/meminfo") if line.startswith("MemTotal")).split()[1]
    model = next(
        (line.partition(":")[2].strip() for line in _read("/proc/cpuinfo") if line.startswith("model name")), "?"
    )
    everything = len(cpus.measured | cpus.load)
    apart = cpus.measured != cpus.load
    placed = (
        f"measured processes on {len(cpus.measured)}, generator and upstream on {len(cpus.load)}" if apart else "shared"
    )
    packages = ", ".join(f"{name} {found}" for name in _PACKAGES if (found := _version(name)))
    return "\n".join(
        (
            f"* {model}, {everything} CPUs ({placed}), {int(memory) / 2**20:.0f} GiB; Linux {platform.release()}",
            f"* Python {platform.python_version()}, {packages}; {_nginx_version()}",
            f"* commit {_commit()}; other programs used {disturbance}",
        )
    )


def save(figures: Sequence[Figure], command: str, about: str) -> None:
    """Append a dated section to ``results.md``."""
    if not RESULTS.exists():
        RESULTS.write_text(_HEADER)
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    with RESULTS.open("a") as file:
        file.write(f"\n## {now}\n\n`{command}`\n\n{about}\n\n{table(figures)}\n")


def _read(path: str) -> list[str]:
    return Path(path).read_text().splitlines()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _nginx_version() -> str:
    try:
        return (
            subprocess.run(["/usr/sbin/nginx", "-v"], capture_output=True, text=True).stderr.strip().rpartition(": ")[2]
        )
    except OSError:
        return "no nginx"


def _commit() -> str:
    if shutil.which("git") is None:
        return "not known"

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=CHECKOUT).stdout.strip()

    changed = " with changes" if git("status", "--porcelain") else ""
    return (git("rev-parse", "--short", "HEAD") or "none") + changed
