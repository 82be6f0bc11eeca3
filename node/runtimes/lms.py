"""LM Studio's command ``lms``, for what its REST API has no way to say: the share of a model on the GPU."""

from __future__ import annotations

import asyncio
import ipaddress
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from shared.contract.errors import ApiError

_KILL_SECONDS = 5.0  # from the signal to the end of a process that reads a file


class Lms:
    """``path`` is the program. It talks to the LM Studio of this machine and this user."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def beside(cls, url: str) -> Self | None:
        """The command, where it is installed and the server at ``url`` runs on this machine."""
        if not _is_here(urlsplit(url).hostname or ""):
            return None
        found = shutil.which("lms") or shutil.which("lms", path=Path.home() / ".lmstudio" / "bin")
        return cls(Path(found)) if found else None

    async def load(self, key: str, context: int | None, ratio: float, seconds: float) -> None:
        """Load ``key`` under its own name; ``ratio`` 0 to 1 of its layers on the GPU. Cancelling ends the command.
        Raises ApiError ``runtime_error``."""
        gpu = "off" if ratio == 0 else "max" if ratio == 1 else f"{ratio:g}"
        length = () if context is None else ("--context-length", str(context))
        process = await asyncio.create_subprocess_exec(
            self.path, "load", key, "--gpu", gpu, *length, "--identifier", key, "--yes",
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        try:
            async with asyncio.timeout(seconds):
                status = await process.wait()
        except TimeoutError:
            raise ApiError("runtime_error", f"`lms load` did not end within {seconds:.0f} seconds.") from None
        finally:
            await _end(process)
        if status:
            raise ApiError(
                "runtime_error",
                f"`lms load` failed (exit status {status}). Run it by hand: often the memory does not suffice.",
                should_retry=False,
            )


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        with suppress(ProcessLookupError):
            process.kill()
        with suppress(TimeoutError):
            async with asyncio.timeout(_KILL_SECONDS):
                await process.wait()


def _is_here(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
