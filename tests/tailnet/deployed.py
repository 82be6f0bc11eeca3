"""The product on machines of the hermetic tailnet: ``python -m node`` and ``python -m edge``, each in a member's
namespace.

    async with node_on(gpu, folder) as node, edge_on(edge, folder, upstreams={"gpu": {"node": "gpu"}}) as front:
        await front.ready()
        async with edge.machine.client() as client: ...

Both sides share one node token, made here.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.pair import create_key
from tests.tailnet.member import Member
from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parent.parent.parent
NODE_TOKEN = "hln_" + "t" * 43
OPS = "http://127.0.0.1:8701"
PUBLIC = "http://127.0.0.1:8700"


@dataclass(frozen=True, slots=True)
class Report:
    """The doctor's: its exit status, and what it printed."""

    status: int
    whole: Mapping[str, Any]

    def lines(self, group: str, check: str) -> list[Mapping[str, Any]]:
        return [line for line in self.whole["groups"][group] if line["check"] == check]

    def line(self, group: str, check: str) -> Mapping[str, Any]:
        """The only one."""
        found = self.lines(group, check)
        assert len(found) == 1, self
        return found[0]

    @property
    def faults(self) -> list[str]:
        """What is not well, each as "group check state"."""
        return [
            f"{group} {line['check']} {line['state']}"
            for group, lines in self.whole["groups"].items()
            for line in lines
            if line["state"] in ("warning", "broken")
        ]


class Deployed:
    """One process of the product on a member. ``state`` is its state folder, ``settings`` its file."""

    def __init__(self, module: str, member: Member, folder: Path, sections: Mapping[str, Any]) -> None:
        self.module = module
        self.member = member
        self.state = folder / f"{module}-{member.name}"
        self.state.mkdir(mode=0o700, exist_ok=True)
        self.log = folder / f"{module}-{member.name}.log"
        self.settings = folder / f"{module}-{member.name}.toml"
        self._process: Process | None = None
        self.configure(sections)

    def configure(self, sections: Mapping[str, Any]) -> None:
        """Write the settings file; nested as it is. A running process reads it at SIGHUP."""
        tailscale = {"socket": str(self.member.socket), **sections.get("tailscale", {})}
        sections = {**sections, "tailscale": tailscale}
        self.settings.write_text("\n".join(_toml(sections, ())) + "\n")

    @property
    def _environ(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.state),
            "HEARTHLINK_STATE": str(self.state),
            "HEARTHLINK_CONFIG": str(self.settings),
            "PYTHONPATH": str(ROOT),
        }

    async def start(self) -> None:
        # llama.cpp's threads spin, and these machines share two cores.
        environ = {**self._environ, "OMP_WAIT_POLICY": "passive"}
        self._process = await self.member.machine.start(sys.executable, "-m", self.module, log=self.log, env=environ)

    async def command(self, *argv: str, seconds: float = 60.0) -> str:
        """``hearthlink ARGV`` on this machine with these settings; its standard output."""
        return await self.member.machine.call(
            sys.executable, "-m", "hearthlink", *argv, seconds=seconds, env=self._environ, cwd=ROOT
        )

    async def doctor(self, seconds: float = 60.0) -> Report:
        """What ``hearthlink doctor --json`` finds on this machine."""
        out = self.log.with_suffix(".doctor")
        out.unlink(missing_ok=True)
        argv = (sys.executable, "-m", "hearthlink", "doctor", "--json")
        process = await self.member.machine.start(*argv, log=out, env=self._environ)
        try:
            async with asyncio.timeout(seconds):
                status = await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
        return Report(status, json.loads(out.read_text()))

    def key(self, plan: str = "owner") -> str:
        """A new API key of this edge."""
        return create_key(self.state, plan)

    def reload(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGHUP)

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def stop(self) -> int:
        """SIGTERM; the exit status."""
        assert self._process is not None
        process, self._process = self._process, None
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        async with asyncio.timeout(30):
            return await process.wait()

    async def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    def log_text(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    async def logged(self, text: str, seconds: float = 30.0) -> None:
        """Wait until the log has ``text``."""
        await wait_until(lambda: text in self.log_text(), seconds, what=self.log_text)

    async def health(self) -> dict[str, Any]:
        """The edge's full health, asked on its own machine; empty while nothing answers."""
        with contextlib.suppress(Exception):
            async with self.member.machine.client() as client, client.get(f"{OPS}/healthz") as response:
                return await response.json()
        return {}

    async def ready(self, seconds: float = 60.0) -> None:
        """Wait until an edge could answer a chat."""
        said: Any = None
        try:
            async with asyncio.timeout(seconds):
                while (said := await self.health()).get("status") != "ok":
                    assert self.running, self.log_text()
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise AssertionError(f"not ready: {json.dumps(said)}\n{self.log_text()[-4000:]}") from None


@asynccontextmanager
async def node_on(member: Member, folder: Path, **sections: Any) -> AsyncIterator[Deployed]:
    """A node with the demo model, listening on the tailnet; ``sections`` are of ``[node]``."""
    node = {"listen": "tailnet", "tokens": [NODE_TOKEN], "runtime": {"kind": "embedded"}, **sections}
    async with _deployed("node", member, folder, {"node": node}) as deployed:
        yield deployed


@asynccontextmanager
async def edge_on(
    member: Member, folder: Path, upstreams: Mapping[str, Any], **sections: Any
) -> AsyncIterator[Deployed]:
    """An edge in front of ``upstreams``; ``sections`` are of ``[edge]``; ``plans`` and ``tailscale`` are their own."""
    own = {name: sections.pop(name, {}) for name in ("plans", "tailscale")}
    named = {name: {"token": NODE_TOKEN, **upstream} for name, upstream in upstreams.items()}
    async with _deployed("edge", member, folder, {"edge": {**sections, "upstreams": named}, **own}) as deployed:
        yield deployed


@asynccontextmanager
async def _deployed(module: str, member: Member, folder: Path, sections: Mapping[str, Any]) -> AsyncIterator[Deployed]:
    deployed = Deployed(module, member, folder, sections)
    try:
        await deployed.start()
        yield deployed
    finally:
        await deployed.kill()


def _toml(section: Mapping[str, Any], name: tuple[str, ...]) -> Iterator[str]:
    """The lines of ``section``. JSON's texts, numbers, booleans and lists are TOML's as well."""
    if name:
        yield f"[{'.'.join(name)}]"
    yield from (f"{key} = {json.dumps(value)}" for key, value in section.items() if not isinstance(value, Mapping))
    for key, value in section.items():
        if isinstance(value, Mapping):
            yield from _toml(value, (*name, key))
