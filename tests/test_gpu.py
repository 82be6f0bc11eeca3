"""What GPUs tell, from programs and files that look as theirs do."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Any

import pytest

from node import gpu
from node.gpu import Gpu, Gpus

# nvidia-smi --query-gpu=... --format=csv,noheader,nounits, of a machine with two, one of which tells little.
_TWO = """\
0, NVIDIA GeForce RTX 4090, 37, 8123, 24564, 61, 212.35
1, NVIDIA GB10, 0, [N/A], [N/A], 44, [Not Supported]
"""


def _program(folder: Path, text: str) -> str:
    path = folder / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


async def test_nvidia_smi_is_read_and_asked_once_for_those_who_look_at_once(tmp_path: Path) -> None:
    asked = tmp_path / "asked"
    gpus = Gpus(_program(tmp_path, f"echo x >> {asked}\ncat <<END\n{_TWO}END"), tmp_path)
    await asyncio.gather(gpus.refresh(), gpus.refresh())
    mib = 1 << 20
    assert gpus.now == (
        Gpu("0", "NVIDIA GeForce RTX 4090", 0.37, 8123 * mib, 24564 * mib, 61.0, 212.35),
        Gpu("1", "NVIDIA GB10", 0.0, None, None, 44.0, None),
    )
    assert gpus.values("memory_used") == {"0": 8123 * mib}
    assert asked.read_text() == "x\n"


@pytest.mark.parametrize("text", ["echo NVIDIA-SMI has failed; exit 9", "echo no, csv", "exec sleep 60"])
async def test_one_that_fails_or_hangs_tells_nothing(
    tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver that hangs does not hold up the other metrics."""
    monkeypatch.setattr(gpu, "_WITHIN", 0.2)
    gpus = Gpus(_program(tmp_path, text), tmp_path)
    async with asyncio.timeout(10):
        await gpus.refresh()
    assert gpus.now == ()


async def test_one_that_cannot_be_ended_is_waited_for_once_and_not_begun_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process in a driver that hangs outlives SIGKILL. Here the signal does not reach it."""
    monkeypatch.setattr(gpu, "_WITHIN", 0.2)
    monkeypatch.setattr(gpu, "_KILL_WITHIN", 0.01)
    monkeypatch.setattr(gpu, "_FRESH", 0.0)
    monkeypatch.setattr("asyncio.subprocess.Process.kill", lambda process: None)
    gpus = Gpus(_program(tmp_path, "exec sleep 60"), tmp_path)
    begun: list[asyncio.subprocess.Process] = []
    begin = asyncio.create_subprocess_exec

    async def noted(*command: Any, **options: Any) -> asyncio.subprocess.Process:
        begun.append(await begin(*command, **options))
        return begun[-1]

    monkeypatch.setattr("asyncio.create_subprocess_exec", noted)
    async with asyncio.timeout(10):
        for _ in range(3):
            await gpus.refresh()
    for process in begun:
        process.send_signal(signal.SIGKILL)
        await process.wait()
    assert len(begun) == 1 and gpus.now == ()


async def test_a_machine_without_a_gpu(tmp_path: Path) -> None:
    gpus = Gpus("no-such-program", tmp_path / "none")
    await gpus.refresh()
    assert gpus.now == () and gpus.values("utilization") == {}


async def test_amd_tells_in_files(tmp_path: Path) -> None:
    """https://docs.kernel.org/gpu/amdgpu/thermal.html; card1 is of another maker, and card0-HDMI a plug."""
    device = tmp_path / "card0" / "device"
    device.mkdir(parents=True)
    (tmp_path / "card0-HDMI-A-1" / "device").mkdir(parents=True)
    (tmp_path / "card1" / "device").mkdir(parents=True)
    for name, text in (("gpu_busy_percent", "12"), ("mem_info_vram_used", "1000"), ("mem_info_vram_total", "4000")):
        (device / name).write_text(f"{text}\n")
    gpus = Gpus("no-such-program", tmp_path)
    await gpus.refresh()
    assert gpus.now == (Gpu("card0", "AMD GPU", 0.12, 1000.0, 4000.0),)
