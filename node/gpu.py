"""What the machine's GPUs do: NVIDIA's by nvidia-smi, AMD's by what their Linux driver tells in files.

Asked when somebody looks at the metrics and not otherwise: nvidia-smi wakes a GPU that sleeps.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from dataclasses import dataclass
from pathlib import Path

# Seconds for which an answer is good: two who look at once ask once.
_FRESH = 5.0
# Seconds for nvidia-smi; a driver that hangs must not hold up the other metrics.
_WITHIN = 3.0
# Seconds for its end once it was killed: in a driver that hangs it does not end at all.
_KILL_WITHIN = 2.0
# nvidia-smi's names, in the order of ``_read_line``.
_QUERY = "index,name,utilization.gpu,memory.used,memory.total,temperature.gpu,power.draw"
_MIB = 1 << 20
_DRIVERS = Path("/sys/class/drm")


@dataclass(frozen=True, slots=True)
class Gpu:
    """``utilization`` is a share of time, 0 to 1; memory in bytes; None is what nobody tells."""

    index: str
    name: str
    utilization: float | None = None
    memory_used: float | None = None
    memory_total: float | None = None
    temperature_celsius: float | None = None
    power_watts: float | None = None


class Gpus:
    """``now`` holds what ``refresh`` found, () without a GPU that tells."""

    def __init__(self, command: str = "nvidia-smi", drivers: Path = _DRIVERS) -> None:
        self.now: tuple[Gpu, ...] = ()
        self._command = command
        self._drivers = drivers
        self._asked_at = float("-inf")
        self._last: asyncio.subprocess.Process | None = None
        self._asking = asyncio.Lock()

    async def refresh(self) -> None:
        """Ask the GPUs, unless somebody did a moment ago. Takes seconds at most, and never raises for a GPU that does
        not answer: it is gone from ``now``."""
        async with self._asking:
            clock = asyncio.get_running_loop().time
            if clock() - self._asked_at < _FRESH:
                return
            lines = await self._output(f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits")
            found = [gpu for line in lines.splitlines() if (gpu := _read_line(line)) is not None]
            self.now = (*found, *_amd(self._drivers))
            self._asked_at = clock()

    async def _output(self, *arguments: str) -> str:
        """What the command says; "" when there is none, or it fails, or takes too long. It has ended when this returns,
        or no other one is begun before it has."""
        path = shutil.which(self._command)
        if path is None or (self._last is not None and self._last.returncode is None):
            return ""
        nothing = asyncio.subprocess.DEVNULL
        try:
            process = self._last = await asyncio.create_subprocess_exec(
                path, *arguments, stdin=nothing, stdout=asyncio.subprocess.PIPE, stderr=nothing
            )
        except OSError:
            return ""
        try:
            async with asyncio.timeout(_WITHIN):
                said, _ = await process.communicate()
        except TimeoutError:
            return ""
        finally:
            await _end(process)
        return said.decode("utf-8", "replace") if process.returncode == 0 else ""

    def values(self, field: str) -> dict[str, float]:
        """One field of all that tell it, by index."""
        return {gpu.index: value for gpu in self.now if (value := getattr(gpu, field)) is not None}


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_KILL_WITHIN):
                await process.wait()


def _read_line(line: str) -> Gpu | None:
    """A line of nvidia-smi's CSV; what a GPU cannot tell stands there as "[N/A]"."""
    cells = [cell.strip() for cell in line.split(",")]
    if len(cells) != _QUERY.count(",") + 1:
        return None
    used, share, total = _number(cells[3]), _number(cells[2]), _number(cells[4])
    return Gpu(
        index=cells[0],
        name=cells[1],
        utilization=None if share is None else share / 100,
        memory_used=None if used is None else used * _MIB,
        memory_total=None if total is None else total * _MIB,
        temperature_celsius=_number(cells[5]),
        power_watts=_number(cells[6]),
    )


def _amd(drivers: Path) -> list[Gpu]:
    """amdgpu's files: https://docs.kernel.org/gpu/amdgpu/thermal.html, gpu_busy_percent and mem_info_vram_*."""
    found = []
    for device in sorted(drivers.glob("card*/device")):
        total = _number(_text(device / "mem_info_vram_total"))
        if total is None:
            continue
        share = _number(_text(device / "gpu_busy_percent"))
        found.append(
            Gpu(
                index=device.parent.name,
                name=_text(device / "product_name") or "AMD GPU",
                utilization=None if share is None else share / 100,
                memory_used=_number(_text(device / "mem_info_vram_used")),
                memory_total=total,
            )
        )
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
