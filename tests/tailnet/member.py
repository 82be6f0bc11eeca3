"""A machine of the hermetic tailnet: a namespace with a real tailscaled in it."""

from __future__ import annotations

import asyncio
import contextlib
import os
from asyncio.subprocess import Process
from collections.abc import Sequence
from pathlib import Path

from tests.tailnet.binaries import Programs
from tests.tailnet.headscale import Headscale
from tests.tailnet.namespaces import Namespace

PROXY = "127.0.0.1:1055"
# Without these tailscaled speaks TLS to the relay, looks for routers to ask for a port, or calls home.
_ENVIRON = {
    "TS_DEBUG_USE_DERP_HTTP": "1",
    "TS_DISABLE_PORTMAPPER": "1",
    "TS_PANIC_IF_HIT_MAIN_CONTROL": "1",
    "TS_NO_LOGS_NO_SUPPORT": "true",
}


class Member:
    """``machine`` is the namespace, ``socket`` the LocalAPI's. Logs in as ``user``, or as a machine with ``tags``."""

    def __init__(
        self,
        name: str,
        machine: Namespace,
        *,
        folder: Path,
        programs: Programs,
        headscale: Headscale,
        tags: Sequence[str] = (),
        user: str = "",
        userspace: bool = False,
    ) -> None:
        self.name = name
        self.machine = machine
        self.socket = folder / "tailscaled.sock"
        self.log = folder / "tailscaled.log"
        self.tags = tags
        self.user = user
        self.userspace = userspace
        self._folder = folder
        self._programs = programs
        self._headscale = headscale
        self._process: Process | None = None

    @property
    def pid(self) -> int:
        """The process of its tailscaled, which runs."""
        assert self._process is not None
        return self._process.pid

    async def start(self, **environ: str) -> None:
        """Start tailscaled, with what it kept from before. It listens when this returns, and may not be ready yet;
        ``TS_DEBUG_BACKEND_DELAY_SEC="5"`` keeps it so."""
        assert self._process is None
        self.socket.unlink(missing_ok=True)
        tun = "userspace-networking" if self.userspace else "tailscale0"
        self._process = await self.machine.start(
            self._programs.tailscaled,
            f"--tun={tun}",
            f"--statedir={self._folder}",
            f"--socket={self.socket}",
            "--port=41641",
            # The way out for programs of its machine, which userspace networking gives no interface.
            *([f"--outbound-http-proxy-listen={PROXY}"] if self.userspace else []),
            log=self.log,
            env={"PATH": os.environ["PATH"], "HOME": str(self._folder), **_ENVIRON, **environ},
        )
        for _ in range(200):
            if self.socket.exists():
                return
            assert self._process.returncode is None, self.log.read_text()
            await asyncio.sleep(0.05)
        raise AssertionError(f"tailscaled of {self.name} does not listen:\n{self.log.read_text()[-4000:]}")

    async def kill(self) -> None:
        """SIGKILL to tailscaled, and wait until it is gone."""
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def login(self) -> None:
        """Join the tailnet; returns when it runs and the address is on its interface."""
        key = self._folder / "key"
        key.write_text(await self._headscale.key(tags=self.tags, user=self.user))
        await self.up(f"--auth-key=file:{key}")

    async def wait(self) -> None:
        """Until it runs and the address is on its interface."""
        await self.tailscale("wait", "--timeout=30s")

    async def up(self, *more: str) -> None:
        """After ``down``; returns when it runs and the address is on its interface."""
        settings = (f"--login-server={self._headscale.url}", f"--hostname={self.name}", "--accept-dns=false")
        await self.tailscale("up", *settings, "--netfilter-mode=off", "--timeout=60s", *more)
        await self.wait()

    async def down(self) -> None:
        await self.tailscale("down")

    async def login_anew(self) -> None:
        """Log out, be forgotten by the control server, and join again: with other addresses."""
        before = await self.address()
        old = await self._headscale.node_id(before)
        # tailscaled drops its connections to the control server when something of its network changes; a logout that
        # is under way then fails, half done.
        with contextlib.suppress(AssertionError):
            await self.tailscale("logout")
        try:
            await self.tailscale("logout")
        except AssertionError as error:
            if "no nodekey to log out" not in str(error):  # it was done the first time
                raise
        await self._headscale.cli("nodes", "delete", "-i", old, "--force")
        await self.login()
        # Of a logout that failed half done, tailscaled may still show the old address when it runs again.
        for _ in range(200):
            if await self.address() != before:
                return
            await asyncio.sleep(0.05)
        raise AssertionError(f"{self.name} has {before} still:\n{self.log.read_text()[-4000:]}")

    async def tailscale(self, *argv: str, seconds: float = 70.0) -> str:
        """A command of the tailscale program; what it printed."""
        return await self.machine.call(self._programs.tailscale, f"--socket={self.socket}", *argv, seconds=seconds)

    async def address(self, version: int = 4) -> str:
        """Its address in the tailnet."""
        return (await self.tailscale("ip", f"-{version}")).strip()
