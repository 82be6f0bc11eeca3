"""``runtime = "auto"``: a runtime that runs on this machine with a model loaded, else the embedded one.

Every default port is asked at once; nobody listens on most, which costs no time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit

from node.runtimes.base import Generation, Runtime, RuntimeStatus, RuntimeStream, require_model
from node.runtimes.readiness import choose_status
from node.runtimes.servers import GENERIC, Surveyor
from node.runtimes.transport import Transport

# Default ports, in the order of preference when several answer: LM Studio, llama.cpp (new and old), vLLM, SGLang,
# Ollama, Docker Model Runner. mlx_lm shares 8080.
PLACES = (
    "http://127.0.0.1:1234/v1",
    "http://127.0.0.1:9931/v1",
    "http://127.0.0.1:8080/v1",
    "http://127.0.0.1:8000/v1",
    "http://127.0.0.1:30000/v1",
    "http://127.0.0.1:11434/v1",
    "http://127.0.0.1:12434/engines/v1",
)
PROBE_SECONDS = 0.5


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
            survey = await Surveyor(transport, base, {}, PROBE_SECONDS).look()
    except Exception:  # nobody there, too slow, or something that only looks like a runtime
        return False
    known = survey.server != GENERIC or base.endswith("/engines/v1")
    return known and bool(survey.loaded) and choose_status(survey, base).state == "ready"


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
        self._task: asyncio.Task[None] | None = None

    @property
    def kind(self) -> str:
        return self._chosen.kind if self._chosen is not None else "auto"

    @property
    def special_tokens(self) -> frozenset[str]:
        return self._chosen.special_tokens if self._chosen is not None else frozenset()

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
    async def chat(self, generation: Generation, request_id: str) -> AsyncIterator[RuntimeStream]:
        if self._chosen is None:
            require_model(self.status(), generation.model)
            return
        async with self._chosen.chat(generation, request_id) as stream:
            yield stream

    async def count_prompt(self, generation: Generation) -> int | None:
        return await self._chosen.count_prompt(generation) if self._chosen is not None else None

    async def _choose(self, on_change: Callable[[], None]) -> None:
        url = await find(self._own_ports, self._places)
        chosen = self._server(url) if url is not None else self._embedded()
        await chosen.start(on_change)
        self._chosen = chosen
        on_change()
