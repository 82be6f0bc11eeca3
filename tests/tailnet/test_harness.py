"""The hermetic tailnet itself: it has no way out, what it promises to break it breaks, and nothing of it is left."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import sys
from asyncio.subprocess import PIPE
from contextlib import suppress
from pathlib import Path

import aiohttp
import pytest

from tests.processes import ROOT
from tests.tailnet.namespaces import Namespace
from tests.tailnet.tailnet import PERSON, Tailnet, policy
from tests.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_members_reach_each_other_and_nothing_else(tailnet: Tailnet) -> None:
    here, there = await tailnet.bridge.machine(), await tailnet.bridge.machine()
    server = await asyncio.start_server(_hello, sock=_listening(there))
    async with server, here.client() as client:
        async with client.get(f"http://{there.address}:8001/") as response:
            assert await response.text() == "hello"
        with pytest.raises(aiohttp.ClientConnectionError):
            await client.get("http://192.0.2.1/")  # an address that nobody has, for which a way out would be taken
    assert await here.call("ip", "route", "show", "default") == ""
    assert "port" not in await here.call("ip", "link", "show"), "each machine sees its own interfaces only"


def _listening(machine: Namespace) -> socket.socket:
    sock = machine.socket()
    sock.bind((machine.address, 8001))
    return sock


async def _hello(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")
    await writer.drain()
    writer.close()


async def test_a_policy_that_is_refused_is_an_error(tailnet: Tailnet) -> None:
    unknown = {"src": ["tag:unheard-of"], "dst": ["tag:gpu"], "ip": ["tcp:1"]}
    with pytest.raises(AssertionError, match="unheard-of"):
        await tailnet.headscale.policy(policy(unknown))
    await tailnet.headscale.policy(policy({"src": ["tag:gpu"], "dst": ["tag:edge"], "ip": ["tcp:1"]}))


_RUN = f"""
import asyncio, sys
from tests.tailnet.namespaces import Namespace
from tests.tailnet.tailnet import running_tailnet

async def main():
    async with running_tailnet() as tailnet:
        member = await tailnet.member("edge", user={PERSON!r})
        sys.stdout.write(f"{{member.socket.parent.parent}}\\n")
        sys.stdout.flush()
        await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_nothing_is_left_of_it_when_the_tests_are_killed(tailnet: Tailnet) -> None:
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", _RUN, stdout=PIPE, cwd=ROOT)
    assert child.stdout is not None
    try:
        async with asyncio.timeout(60):
            folder = (await child.stdout.readline()).decode().strip()
        assert len(_processes(folder)) == 2, "headscale and tailscaled"
    finally:
        with suppress(ProcessLookupError):
            child.send_signal(signal.SIGKILL)
        await child.wait()
    await wait_until(lambda: not _processes(folder), 10)
    shutil.rmtree(folder)  # files are all that is left


def _processes(folder: str) -> list[int]:
    """The processes that name ``folder`` in their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit() and folder.encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return [process for process in found if process != os.getpid()]
