"""The control server of the hermetic tailnet: headscale with its own relay (DERP) and STUN, in the bridge's machine."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from tests.tailnet.namespaces import Namespace, call

# As an object, or as the text of a file (HuJSON: with comments).
Policy = Mapping[str, Any] | str


class Headscale:
    """``url`` is what members log in to."""

    def __init__(self, program: Path, folder: Path, machine: Namespace) -> None:
        self.url = f"http://{machine.address}:8080"
        self.log = folder / "headscale.log"
        self._program = program
        self._folder = folder
        self._machine = machine
        self._process: Process | None = None

    async def start(self, policy: Policy) -> None:
        """Returns when it answers. Raises AssertionError with its log."""
        self._folder.mkdir()
        (self._folder / "config.json").write_text(json.dumps(_configuration(self._folder, self._machine.address)))
        self._write(policy)
        environ = {"PATH": os.environ["PATH"], "HOME": str(self._folder)}
        self._process = await self._machine.start(
            self._program, "-c", self._folder / "config.json", "serve", log=self.log, env=environ
        )
        async with self._machine.client() as client:
            for _ in range(200):
                try:
                    async with client.get(f"{self.url}/health") as response:
                        if response.status == 200:
                            return
                except aiohttp.ClientConnectionError:
                    assert self._process.returncode is None, self.log.read_text()
                await asyncio.sleep(0.1)
        raise AssertionError(f"headscale does not answer:\n{self.log.read_text()[-4000:]}")

    async def stop(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    async def policy(self, policy: Policy) -> None:
        """Put ``policy`` in force; members hear of it within moments. Raises AssertionError with headscale's words when
        it refuses it."""
        assert self._process is not None
        if not self._write(policy):
            return
        before = self.log.stat().st_size
        self._process.send_signal(signal.SIGHUP)
        said = ""
        for _ in range(200):
            said = self.log.read_bytes()[before:].decode()
            assert "reloading policy" not in said, said
            if "Policy reload completed" in said:
                return
            await asyncio.sleep(0.05)
        raise AssertionError(f"headscale did not say that it has the policy:\n{said}")

    async def check(self, policy: Policy) -> None:
        """What ``headscale policy check`` says of it, with its tests and the members there are. Raises AssertionError
        with headscale's words when it would be refused; nothing comes into force."""
        assert self._process is not None
        file = self._folder / "checked.json"
        file.write_text(_text(policy))
        await call(self._program, "-c", self._folder / "config.json", "policy", "check", "-f", file)

    def _write(self, policy: Policy) -> bool:
        """Whether it is another one than before."""
        file, new = self._folder / "policy.json", _text(policy)
        if file.exists() and file.read_text() == new:
            return False
        file.write_text(new)
        return True

    async def cli(self, *argv: str) -> Any:
        """A command of headscale's own, its JSON."""
        out = await call(self._program, "-c", self._folder / "config.json", "-o", "json", *argv)
        return json.loads(out) if out.strip() else None

    async def key(self, *, tags: Sequence[str] = (), user: str = "") -> str:
        """A pre-authentication key, of a tagged machine or of a person; who is new is made known. It is reusable,
        because tailscaled repeats a registration whose answer is late."""
        if tags:
            made = await self.cli("preauthkeys", "create", "--reusable", "--tags", ",".join(tags))
        else:
            users = {found["name"]: found["id"] for found in await self.cli("users", "list") or ()}
            known = users.get(user) or (await self.cli("users", "create", user))["id"]
            made = await self.cli("preauthkeys", "create", "--reusable", "--user", str(known))
        return made["key"]

    async def node_id(self, address: str) -> str:
        """The control server's number of the node that has ``address``."""
        nodes = await self.cli("nodes", "list")
        return str(next(node["id"] for node in nodes if address in node["ip_addresses"]))


@asynccontextmanager
async def running_headscale(
    program: Path, folder: Path, machine: Namespace, policy: Policy
) -> AsyncIterator[Headscale]:
    headscale = Headscale(program, folder, machine)
    try:
        await headscale.start(policy)
        yield headscale
    finally:
        await headscale.stop()


def _text(policy: Policy) -> str:
    return policy if isinstance(policy, str) else json.dumps(policy, indent=1)


def _configuration(folder: Path, address: str) -> dict[str, Any]:
    """YAML reads JSON."""
    derp = {
        "enabled": True,
        "region_id": 999,
        "region_code": "test",
        "region_name": "test",
        "verify_clients": True,
        "stun_listen_addr": f"{address}:3478",
        "private_key_path": str(folder / "derp.key"),
        "ipv4": address,
        "automatically_add_embedded_derp_region": True,
    }
    return {
        "server_url": f"http://{address}:8080",
        "listen_addr": f"{address}:8080",
        "metrics_listen_addr": "",
        "grpc_listen_addr": "127.0.0.1:50443",
        "disable_check_updates": True,
        "noise": {"private_key_path": str(folder / "noise.key")},
        "prefixes": {"v4": "100.64.0.0/10", "v6": "fd7a:115c:a1e0::/48", "allocation": "sequential"},
        "derp": {"server": derp, "urls": [], "paths": [], "auto_update_enabled": False},
        "dns": {
            "magic_dns": True,
            "base_domain": "tail.test",
            "override_local_dns": False,
            "nameservers": {"global": []},
        },
        "database": {"type": "sqlite", "sqlite": {"path": str(folder / "db.sqlite")}},
        "policy": {"mode": "file", "path": str(folder / "policy.json")},
        "unix_socket": str(folder / "headscale.sock"),
        "unix_socket_permission": "0700",
        "log": {"level": "info", "format": "text"},
        "logtail": {"enabled": False},
        # It collects for 800 ms before it tells anybody of a change, for tailnets of hundreds of machines.
        "tuning": {"batch_change_delay": "50ms"},
    }
