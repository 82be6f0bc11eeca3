"""``runtime = "auto"``: a runtime that runs on this machine with a model loaded, else the embedded one.

Every default port is asked at once; nobody listens on most, which costs no time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

from node.runtime import Inference, LoadConfig, Loaded, Runtime, RuntimeStatus, RuntimeStream, require_model
from node.runtimes.client import Client
from node.runtimes.dialect import Dialect
from node.runtimes.dialects import DIALECTS, recognise
from node.runtimes.readiness import choose_status, problem_of
from node.runtimes.transport import Transport

PLACES = tuple(place for dialect in DIALECTS for place in dialect.places)
PROBE_SECONDS = 0.5  # for all questions to one of them


async def find(own_ports: Collection[int] = (), places: Collection[str] = PLACES) -> str | None:
    """The URL of the first of ``places`` where a known runtime has a model in memory. Ports of ``own_ports`` are left
    out: our own edge speaks the same API."""
    transport = Transport()
    try:
        candidates = [place for place in places if urlsplit(place).port not in own_ports]
        found = await asyncio.gather(*(_has_model(transport, place) for place in candidates))
    finally:
        await transport.close()
    return next((place for place, ready in zip(candidates, found, strict=True) if ready), None)


async def _has_model(transport: Transport, base: str) -> bool:
    try:
        async with asyncio.timeout(PROBE_SECONDS):
            client = Client(transport, base, {}, PROBE_SECONDS)
            reply = await client.ask(f"{base}/models")
            kind = await recognise(client, reply)
            if kind is Dialect or problem_of(reply, base):
                return False
            dialect = kind(client)
            survey = await dialect.survey(reply.payload.get("data") or [])
    except Exception:  # nobody there, too slow, or something that only looks like a runtime
        return False
    status = choose_status(survey, dialect, base)
    default = status.model(status.default_model) if status.state == "ready" else None
    return default is not None and default.in_memory and default.kind == "chat"


class AutoRuntime:
    """A ``Runtime`` that finds out at its start which one it is, and stays that.

    ``server(url)`` and ``embedded()`` make the two it may become.
    """

    def __init__(
        self,
        server: Callable[[str], Runtime],
        embedded: Callable[[], Runtime],
        own_ports: Collection[int] = (),
        places: Collection[str] = PLACES,
    ) -> None:
        self._server = server
        self._embedded = embedded
        self._own_ports = own_ports
        self._places = places
        self._chosen: Runtime | None = None
        self._stood_down = False
        self._task: asyncio.Task[None] | None = None

    @property
    def kind(self) -> str:
        return self._chosen.kind if self._chosen is not None else "auto"

    @property
    def special_tokens(self) -> frozenset[str]:
        return self._chosen.special_tokens if self._chosen is not None else frozenset()

    @property
    def can_load(self) -> bool:
        return self._chosen is not None and self._chosen.can_load

    @property
    def evicts(self) -> bool:
        return self._chosen is None or self._chosen.evicts

    def status(self) -> RuntimeStatus:
        if self._chosen is not None:
            return self._chosen.status()
        return RuntimeStatus("starting", "Looking for a model runtime on this machine.", slots=1)

    async def start(self, on_change: Callable[[], None]) -> None:
        self._task = asyncio.create_task(self._choose(on_change), name="runtime-detect")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        if self._chosen is not None:
            await self._chosen.close()

    @asynccontextmanager
    async def stream(self, inference: Inference, request_id: str) -> AsyncIterator[RuntimeStream]:
        async with self._require(inference.model).stream(inference, request_id) as stream:
            yield stream

    async def ask(self, inference: Inference, request_id: str) -> dict[str, Any]:
        return await self._require(inference.model).ask(inference, request_id)

    async def check(self, model: str) -> None:
        if self._chosen is not None:
            await self._chosen.check(model)

    async def load(self, model: str, config: LoadConfig, tell: Callable[[float | None], None]) -> Loaded:
        return await self._require(model).load(model, config, tell)

    async def unload(self, model: str) -> None:
        await self._require(model).unload(model)

    def stand_down(self) -> None:
        self._stood_down = True
        if self._chosen is not None:
            self._chosen.stand_down()

    async def count_prompt(self, inference: Inference) -> int | None:
        return await self._chosen.count_prompt(inference) if self._chosen is not None else None

    def _require(self, model: str) -> Runtime:
        if self._chosen is None:
            require_model(self.status(), model)
            raise AssertionError("nothing is ready while nothing is chosen")
        return self._chosen

    async def _choose(self, on_change: Callable[[], None]) -> None:
        url = await find(self._own_ports, self._places)
        chosen = self._server(url) if url is not None else self._embedded()
        if self._stood_down:
            chosen.stand_down()
        await chosen.start(on_change)
        self._chosen = chosen
        on_change()
