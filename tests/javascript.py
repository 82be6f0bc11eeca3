"""Node and npm: what a test runs with them, and the packages of a lock file."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

import pytest

from tests.processes import ROOT

PACKAGES = ROOT / "tests" / "js"  # its lock file has the packages of other people that tests use as they are
NODE_TEST = ("node", "--test", "--test-reporter=tap")


def unusable(why: str) -> None:
    """A program is missing: continuous integration must have it, other people may go without."""
    (pytest.fail if os.environ.get("CI") else pytest.skip)(why)


def require_node() -> None:
    """Node 20 or later with npm."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        unusable("This is tested where node and npm are.")


async def run(*command: str, cwd: Path, seconds: float = 300.0, **environ: str) -> str:
    """What the command said. Raises AssertionError with it when it fails."""
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=cwd,
        env={**os.environ, **environ},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(seconds):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    said = output.decode(errors="replace")
    assert process.returncode == 0, f"{' '.join(command)}\n{said}"
    return said


async def install(folder: Path) -> None:
    """The packages of a lock file, into its folder; nothing when they are there already."""
    lock = (folder / "package-lock.json").read_bytes()
    made = folder / "node_modules" / ".made-from"
    if not made.is_file() or made.read_bytes() != lock:
        await run("npm", "ci", "--no-audit", "--no-fund", cwd=folder)
        made.write_bytes(lock)
