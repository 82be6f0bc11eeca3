"""A fake runtime on a machine of the hermetic tailnet, where only a node of that machine reaches it."""

from __future__ import annotations

import asyncio

from tests.fake_exchange import Connection
from tests.fake_runtime import FakeRuntime
from tests.fake_scripts import Script
from tests.tailnet.namespaces import Namespace


class RuntimeOn(FakeRuntime):
    """``FakeRuntime`` on loopback of ``machine``; ``settings`` are a node's for it."""

    def __init__(self, machine: Namespace, script: Script) -> None:
        super().__init__(script)
        self._machine = machine

    async def listen(self) -> None:
        sock = self._machine.socket()
        sock.bind(("127.0.0.1", self.port))
        self.port = sock.getsockname()[1]
        self._server = await asyncio.get_running_loop().create_server(lambda: Connection(self), sock=sock)

    @property
    def settings(self) -> dict[str, str]:
        return {"kind": "openai", "url": self.url}
