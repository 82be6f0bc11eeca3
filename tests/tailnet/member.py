"""A machine of the hermetic tailnet: a namespace with a real tailscaled in it."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import socket
from asyncio.subprocess import Process
from collections.abc import Sequence
from pathlib import Path

from shared.tailscale.client import LocalClient
from shared.tailscale.errors import NotAnswering, TailscaleError
from shared.tailscale.ping import Kind
from shared.tailscale.status import Status
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
# Seconds for what the control server must first tell others; it mostly takes none.
_TOLD = 30.0
# Seconds for the answer to one ping, which takes milliseconds here. What is lost is asked for again.
_PING = 0.5


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
    def started(self) -> bool:
        """Whether its tailscaled runs, logged in or not."""
        return self._process is not None

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

    async def meets(self, *others: Member) -> None:
        """Wait until this machine and each of ``others`` can call each other. A machine that joins, logs in anew or
        comes back knows its address before the control server has told it to the others, and until then these have no
        route to it: "Network is unreachable". So each one's addresses of now have to stand in the other's status and,
        where tailscaled makes routes, in its kernel. Then pings have to come back, since the first packets between two
        machines may be lost. Both ping, because after a restart only the side that was restarted knows that the old
        keys are void, and the other one would take 15 s to find out. Raises AssertionError with what is missing."""
        await asyncio.gather(*(self._meets(other) for other in others))

    async def _meets(self, other: Member) -> None:
        missing = "no answer"
        try:
            async with (
                asyncio.timeout(_TOLD),
                LocalClient(str(self.socket)) as mine,
                LocalClient(str(other.socket)) as its,
            ):
                while missing := await self._misses(other, mine, its):  # noqa: ASYNC110 - much of it has no event
                    await asyncio.sleep(0.05)
        except TimeoutError:
            logs = "\n".join(f"{side.name}:\n{side.log.read_text()[-3000:]}" for side in (self, other))
            raise AssertionError(
                f"{self.name} and {other.name} do not meet within {_TOLD:.0f} s: {missing}\n{logs}"
            ) from None

    async def _misses(self, other: Member, mine: LocalClient, its: LocalClient) -> str:
        """What is missing between this machine and ``other``; empty when nothing is."""
        try:
            here, there = await mine.status(), await its.status()
            if lacking := self._lacks(here, there) or other._lacks(there, here):
                return lacking
            # One after the other: of two handshakes that meet neither is made, and the next begins after 5 s.
            for client, status in ((mine, there), (its, here)):
                if lost := await _pinged(client, status.addresses[0], "disco"):
                    return lost
            # Both, whatever becomes of the first: the side that has to begin may be the second.
            lost = [
                await _pinged(client, status.addresses[0], "TSMP") for client, status in ((its, here), (mine, there))
            ]
            return "; ".join(filter(None, lost))
        except TailscaleError as error:
            return str(error)

    def _lacks(self, own: Status, peers: Status) -> str:
        """What is not there yet on this machine for packets to the one of status ``peers``."""
        if own.problem is not None or not own.addresses:
            return f"{self.name}: {own.problem or 'no address'}"
        known = next((peer.node for peer in own.peers if set(peer.node.addresses) == set(peers.addresses)), None)
        if known is None:
            return f"{self.name} knows no {peers.addresses}, only {[peer.node.addresses for peer in own.peers]}"
        if known.online is False:
            return f"{self.name} knows {peers.addresses} as offline"
        lacking = [address for address in peers.addresses if not self.userspace and not self._has_route(address)]
        return f"{self.name} has no route to {lacking}" if lacking else ""

    def _has_route(self, address: str) -> bool:
        """Connecting a datagram socket looks for the route and sends nothing."""
        family = socket.AF_INET6 if ipaddress.ip_address(address).version == 6 else socket.AF_INET
        with self.machine.socket(family, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect((address, 9))
            except OSError:
                return False
        return True

    async def has(self, mark: str) -> None:
        """Wait until the control server has told ``mark`` to this machine, as a capability of its own; one that is not
        running, or stops meanwhile, is not waited for. Raises AssertionError."""
        try:
            async with asyncio.timeout(_TOLD), LocalClient(str(self.socket)) as client:
                while not await self._told(client, mark):  # noqa: ASYNC110 - a status has no event
                    await asyncio.sleep(0.05)
        except TimeoutError:
            said = self.log.read_text()[-4000:]
            raise AssertionError(f"{self.name} was not told {mark} within {_TOLD:.0f} s\n{said}") from None

    async def _told(self, client: LocalClient, mark: str) -> bool:
        try:
            status = await client.status(peers=False)
        except TailscaleError:
            return self._process is None
        return status.problem is not None or (status.node is not None and mark in status.node.capabilities)

    async def logout(self) -> None:
        # tailscaled drops its connections to the control server when something of its network changes; a logout that
        # is under way then fails, half done.
        with contextlib.suppress(AssertionError):
            await self.tailscale("logout")
        try:
            await self.tailscale("logout")
        except AssertionError as error:
            if "no nodekey to log out" not in str(error):  # it was done the first time
                raise

    async def leave(self) -> None:
        """Log out, so that the others do not see it any more, and end its tailscaled."""
        await self.logout()
        await self.kill()

    async def login_anew(self) -> None:
        """Log out, be forgotten by the control server, and join again: with other addresses."""
        before = await self.address()
        old = await self._headscale.node_id(before)
        await self.logout()
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


async def _pinged(client: LocalClient, address: str, kind: Kind) -> str:
    """Empty when an answer came, else why not."""
    try:
        error = (await client.ping(address, kind, seconds=_PING)).error
    except NotAnswering:
        error = f"no answer within {_PING} s"
    return f"{kind} ping to {address}: {error}" if error else ""
