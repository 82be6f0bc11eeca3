"""Network namespaces with no way out, joined by one bridge: the machines of a test.

A namespace has no name: it lives as long as its keeper, a ``cat`` that ends with the process that started it. Whatever
happens to the tests, nothing is left behind, and two runs do not see each other. Root is needed.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import socket
import threading
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

_CLONE_NEWNET = 0x40000000
_SUBNET = "10.99.0"
# An address and a hardware address that nobody has: what is sent there is lost without a word.
_NOWHERE = f"{_SUBNET}.254"
_NOBODY = "02:00:00:00:00:fe"
_LOST = 77  # the routing table that leads there


async def call(*argv: str | Path, seconds: float = 30.0, **options: Any) -> str:
    """Run a program to its end; its standard output. Raises AssertionError with what it said when it fails or takes
    longer; a program that is not waited for any more is killed."""
    child = await asyncio.create_subprocess_exec(*argv, stdin=DEVNULL, stdout=PIPE, stderr=PIPE, **options)
    try:
        async with asyncio.timeout(seconds):
            out, err = await child.communicate()
    except TimeoutError:
        raise AssertionError(f"{' '.join(map(str, argv))}: not done within {seconds} s") from None
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    said = out.decode()
    assert child.returncode == 0, f"{' '.join(map(str, argv))}: {child.returncode}\n{err.decode()}{said}"
    return said


class Namespace:
    """One machine. ``address`` is its address on the bridge."""

    def __init__(self, keeper: Process, address: str) -> None:
        self.address = address
        self._keeper = keeper

    def inside(self, *argv: str | Path) -> tuple[str, ...]:
        """The command line that runs ``argv`` in here and has it killed when the test process ends."""
        return ("setpriv", "--pdeathsig", "KILL", "nsenter", f"--net={self._path}", "--", *map(str, argv))

    async def call(self, *argv: str | Path, seconds: float = 30.0, **options: Any) -> str:
        """As ``call``, in here."""
        return await call(*self.inside(*argv), seconds=seconds, **options)

    async def start(self, *argv: str | Path, log: Path, env: Mapping[str, str] | None = None) -> Process:
        """A program that runs on, its output appended to ``log``. The caller ends it."""
        with log.open("ab") as out:
            return await asyncio.create_subprocess_exec(
                *self.inside(*argv), stdin=DEVNULL, stdout=out, stderr=STDOUT, env=env
            )

    def socket(self, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM, protocol: int = 0) -> socket.socket:
        """A socket of this machine, usable from anywhere in the test process, which owns it."""
        made: list[socket.socket | OSError] = []

        def make() -> None:
            try:
                with open(self._path, "rb") as namespace:
                    if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), _CLONE_NEWNET):
                        raise OSError(ctypes.get_errno(), "setns")
                made.append(socket.socket(family, kind, protocol))
            except OSError as error:
                made.append(error)

        thread = threading.Thread(target=make)  # setns changes its thread only, which ends here
        thread.start()
        thread.join()
        if isinstance(made[0], OSError):
            raise made[0]
        return made[0]

    def client(self, **options: Any) -> aiohttp.ClientSession:
        """An HTTP client on this machine; the caller closes it. Names are not resolved: use addresses."""

        def in_here(address: Any) -> socket.socket:
            return self.socket(address[0], address[1], address[2])

        return aiohttp.ClientSession(connector=aiohttp.TCPConnector(socket_factory=in_here), **options)

    async def lose_udp_to(self, other: Namespace) -> None:
        """From now on no UDP from here arrives at ``other``; nobody is told."""
        await self.call("ip", "neigh", "replace", _NOWHERE, "lladdr", _NOBODY, "dev", "eth0", "nud", "permanent")
        await self.call("ip", "route", "replace", "default", "via", _NOWHERE, "dev", "eth0", "table", str(_LOST))
        await self.call("ip", "rule", "add", *self._rule(other))

    async def deliver_udp_to(self, other: Namespace) -> None:
        await self.call("ip", "rule", "del", *self._rule(other))

    def _rule(self, other: Namespace) -> tuple[str, ...]:
        return ("pref", "100", "ipproto", "udp", "to", other.address, "lookup", str(_LOST))

    @property
    def _path(self) -> str:
        return f"/proc/{self._keeper.pid}/ns/net"


class Bridge:
    """A network of machines. ``hub`` is the machine that the bridge itself is in; it has address 1."""

    def __init__(self, hub: Namespace, stack: AsyncExitStack) -> None:
        self.hub = hub
        self._stack = stack
        self._count = 1

    async def machine(self) -> Namespace:
        """One more machine. It lives until the network ends."""
        self._count += 1
        number = self._count
        machine = await self._stack.enter_async_context(_namespace(f"{_SUBNET}.{number}"))
        port = f"port{number}"
        await self.hub.call("ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", machine._path)
        await self.hub.call("ip", "link", "set", port, "master", "bridge", "up")
        # Without link-local addresses there is one path only, which a test can block.
        await machine.call("sh", "-c", "echo 1 >/proc/sys/net/ipv6/conf/eth0/disable_ipv6")
        await machine.call("ip", "address", "add", f"{machine.address}/24", "dev", "eth0")
        await machine.call("ip", "link", "set", "eth0", "up")
        return machine


@asynccontextmanager
async def bridge() -> AsyncIterator[Bridge]:
    """A network of its own until the block is left."""
    async with AsyncExitStack() as stack:
        hub = await stack.enter_async_context(_namespace(f"{_SUBNET}.1"))
        await hub.call("ip", "link", "add", "bridge", "type", "bridge")
        await hub.call("ip", "address", "add", f"{hub.address}/24", "dev", "bridge")
        await hub.call("ip", "link", "set", "bridge", "up")
        yield Bridge(hub, stack)


@asynccontextmanager
async def _namespace(address: str) -> AsyncIterator[Namespace]:
    keeper = await asyncio.create_subprocess_exec("unshare", "--net", "cat", stdin=PIPE, stdout=PIPE)
    assert keeper.stdin is not None and keeper.stdout is not None
    try:
        keeper.stdin.write(b"\n")
        async with asyncio.timeout(10):
            assert await keeper.stdout.readline(), "no network namespace could be made: unshare needs root"
        namespace = Namespace(keeper, address)
        await namespace.call("ip", "link", "set", "lo", "up")
        yield namespace
    finally:
        keeper.stdin.close()
        with contextlib.suppress(ProcessLookupError):
            keeper.kill()
        await keeper.wait()
