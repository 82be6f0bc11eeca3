"""A scriptable runtime: an OpenAI-compatible server that does to its peer whatever a test wants.

It is raw TCP, so that a script (``tests.fake_scripts``) owns every byte, and it writes down what it saw: each request,
when its peer left, how many connections and streams were open.

    async with FakeRuntime("slow") as runtime:
        ...                                     # point a node at runtime.url
        exchange = await runtime.chat(0)        # the first chat request, as soon as it is there
        left = Stopwatch()
        ...                                     # the client leaves
        await exchange.peer_left()
        assert left.seconds < 0.1
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, cast

from tests.fake_exchange import CHAT, Connection, Exchange
from tests.fake_presets import PRESETS
from tests.fake_scripts import Script
from tests.waiting import HANGS

__all__ = ["CHAT", "Exchange", "FakeRuntime"]

# Which script answers a request: a preset's name, a script, or a function that picks one. A list is used up in order
# and its last item stays.
Choice = str | Script | Callable[["Exchange"], "str | Script"]


class FakeRuntime:
    """An async context manager: a live server on a free loopback port; ``url`` has no path and no slash at its end.

    ``script`` (settable at any time) answers chat requests, see ``Choice``. The other routes follow the attributes:
    ``models`` (ids; empty = none loaded), ``loading`` (503, as llama.cpp says it; its list of models is there all the
    same, their ``meta`` null: runtimes §2.1, §2.2), ``key`` (bearer token asked for), ``routes`` (path → JSON,
    (status, JSON), or a script), and with ``server_header = "llama.cpp"`` also
    ``/props`` and ``/slots`` (``slots`` of ``context`` tokens). Leaving the context resets what is open and raises the
    first error a script made.
    """

    def __init__(
        self,
        script: Choice | Sequence[Choice] = "normal",
        *,
        models: Sequence[str] = ("fake-model",),
        server_header: str | None = "llama.cpp",
        slots: int = 4,
        context: int = 4096,
        loading: bool = False,
        key: str | None = None,
        routes: Mapping[str, Any] | None = None,
    ) -> None:
        self.script: Choice | Sequence[Choice] = script
        self.models = list(models)
        self.server_header = server_header
        self.slots = slots
        self.context = context
        self.loading = loading
        self.key = key
        self.routes = dict(routes or {})
        self.exchanges: list[Exchange] = []
        self.connections: set[Connection] = set()
        self.chats: list[Exchange] = []  # the chat requests among them, in order of arrival
        self.accepted = 0  # connections so far
        self.active_streams = 0  # chat requests being answered now
        self.peak_streams = 0
        self.aborted = 0  # chat requests whose peer left before the answer was over
        self.failures: list[Exception] = []
        self.port = 0
        self._changed = asyncio.Event()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        await self.listen()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.kill()
        if self.failures and kind is None:
            raise self.failures[0]

    async def listen(self) -> None:
        """Start, or start again on the same port after ``kill``."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Connection(self), "127.0.0.1", self.port, backlog=1024)
        self.port = self._server.sockets[0].getsockname()[1]

    async def kill(self) -> None:
        """As when the process dies: every connection is reset, and new ones are refused."""
        if self._server is not None:
            self._server.close()
            self._server = None
        await asyncio.gather(*(connection.end() for connection in list(self.connections)))
        await self.until(lambda: not self.connections)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def open_connections(self) -> int:
        return len(self.connections)

    async def cut(self, model: str) -> None:
        """As when the process of ``model`` ends: its answers under way are reset."""
        for exchange in self.chats:
            if exchange.outcome == "running" and exchange.json.get("model") == model:
                await exchange.reset()

    async def chat(self, index: int, within: float = HANGS) -> Exchange:
        """The chat request with this number, waiting until it has arrived."""
        await self.until(lambda: len(self.chats) > index, within)
        return self.chats[index]

    async def idle(self, within: float = HANGS) -> None:
        """Wait until no chat request is being answered."""
        await self.until(lambda: self.active_streams == 0, within)

    async def until(self, condition: Callable[[], bool], within: float = HANGS) -> None:
        """Wait until ``condition`` holds, looked at after every change here. Raises AssertionError with the state."""
        try:
            async with asyncio.timeout(within):
                while not condition():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            outcomes = [exchange.outcome for exchange in self.chats]
            raise AssertionError(f"waited {within} s; connections {self.open_connections}, chats {outcomes}") from None

    def changed(self) -> None:
        self._changed.set()

    async def answer(self, exchange: Exchange) -> None:
        """Called by a connection for each request; runs in the task that a leaving peer cancels."""
        self.exchanges.append(exchange)
        if exchange.is_chat:
            self.chats.append(exchange)
            self.active_streams += 1
            self.peak_streams = max(self.peak_streams, self.active_streams)
        self.changed()
        if self.loading and not (self.server_header == "llama.cpp" and exchange.path == "/v1/models"):
            await PRESETS["loading"](exchange)
        elif self.key and exchange.path != "/health" and exchange.headers.get("authorization") != f"Bearer {self.key}":
            await PRESETS["llamacpp_unauthorized"](exchange)
        elif exchange.is_chat:
            await self._script_for(exchange)(exchange)
        elif callable(script := self.routes.get(exchange.path)):
            await cast(Script, script)(exchange)
        else:
            await exchange.respond(*self._route(exchange.path))

    def answered(self, exchange: Exchange) -> None:
        """Called by a connection when an answer is over, well or not."""
        if exchange.is_chat:
            self.active_streams -= 1
            self.aborted += exchange.outcome == "aborted"
        self.changed()

    def _script_for(self, exchange: Exchange) -> Script:
        choice = self.script
        if isinstance(choice, Sequence) and not isinstance(choice, str):
            choice = choice[min(self.chats.index(exchange), len(choice) - 1)]
        if isinstance(choice, str):
            return PRESETS[choice]
        if inspect.iscoroutinefunction(choice):
            return cast(Script, choice)
        picked = cast("str | Script", choice(exchange))
        return PRESETS[picked] if isinstance(picked, str) else picked

    def _route(self, path: str) -> tuple[int, Any]:
        if path in self.routes:
            found = self.routes[path]
            return found if isinstance(found, tuple) else (200, found)
        if path == "/v1/models":
            return 200, {"object": "list", "data": [self._model(name) for name in self.models]}
        if path == "/health":
            return 200, {"status": "ok"}
        if self.server_header == "llama.cpp" and path == "/props":
            return 200, {"total_slots": self.slots, "default_generation_settings": {"n_ctx": self.context}}
        if self.server_header == "llama.cpp" and path == "/slots":
            busy = self.active_streams
            return 200, [{"id": i, "n_ctx": self.context, "is_processing": i < busy} for i in range(self.slots)]
        return 404, {"error": {"code": 404, "message": "File Not Found", "type": "not_found_error"}}

    def _model(self, name: str) -> dict[str, Any]:
        owner = "llamacpp" if self.server_header == "llama.cpp" else "fake"
        meta = None if self.loading else {"n_ctx": self.context}
        return {"id": name, "object": "model", "created": 1, "owned_by": owner, "meta": meta}
