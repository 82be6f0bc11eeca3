"""llama.cpp's router as it behaves towards its peers: models by name, each with a process of its own when it is loaded.

Each behaviour cites the part of the reference on runtimes that it is written from.

    async with FakeLlamaRouter("a", "b", loaded=["a"]) as router:
        ...                                  # point a node at router.url
        router.states["b"] = "loaded"        # somebody loads it by hand
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qsl

from tests.fake_runtime import Exchange, FakeRuntime
from tests.fake_scripts import Script


class FakeLlamaRouter(FakeRuntime):
    """``states`` holds what the router says of each model; ``args`` the flags it starts one with.

    A load that was ordered begins at once and is over after ``looks`` questions for the list, or never when that is
    None. It fails for models of ``broken``. ``most`` models are in memory at once; the one longest unused goes. What
    leaves memory is a process that ends: its answers break off (runtimes §2.3: it is killed after a time). The answers
    are those of ``script``, "normal" at first.
    """

    def __init__(
        self, *models: str, loaded: Sequence[str] = (), most: int = 4, looks: int | None = 2, slots: int = 2
    ) -> None:
        super().__init__(slots=slots, context=2048)
        self.states = {name: "loaded" if name in loaded else "unloaded" for name in models}
        self.args: dict[str, list[str]] = {}
        self.broken: set[str] = set()
        self.failed: set[str] = set()
        self.most = most
        self.looks = looks
        self.lazy = False  # orders are taken, and nothing follows
        self.orders: list[tuple[str, str]] = []
        self._used = list(loaded)  # longest unused first
        self._left: dict[str, int] = {}  # questions until a load is over
        self._ended: list[str] = []  # models whose process is to end

    async def answer(self, exchange: Exchange) -> None:
        if (found := self._own(exchange)) is None:
            await super().answer(exchange)
            return
        self.exchanges.append(exchange)
        await self._end_processes()
        self.changed()
        await exchange.respond(*found)

    async def _end_processes(self) -> None:
        while self._ended:
            await self.cut(self._ended.pop())

    def _own(self, exchange: Exchange) -> tuple[int, Any] | None:
        path = exchange.path.removeprefix("/v1")
        if exchange.method == "GET" and path == "/models":
            if exchange.path == "/models":  # the node asks this one while it waits
                self._go_on()
            return 200, {"object": "list", "data": [self._item(name) for name in self.states]}
        if exchange.method == "GET" and path == "/props":
            return self._props(exchange.query)
        if path == "/slots":
            return _error(404, "File Not Found")  # missing in router mode at b8925 (runtimes §2.3)
        if exchange.method == "POST" and path in ("/models/load", "/models/unload"):
            return self._order(path.rpartition("/")[2], str(exchange.json.get("model")))
        return None

    def _item(self, name: str) -> dict[str, Any]:
        """(runtimes §2.3: data[]{id, status{value, args, failed?, exit_code?, progress?}, ...})"""
        status: dict[str, Any] = {"value": self.states[name], "args": ["llama-server", *self.args.get(name, ())]}
        if name in self.failed:
            status |= {"failed": True, "exit_code": 1}
        if name in self._left and self.looks:
            status["progress"] = 1 - self._left[name] / self.looks
        return {"id": name, "object": "model", "owned_by": "llamacpp", "created": 1, "status": status}

    def _props(self, query: str) -> tuple[int, Any]:
        """GET routes take ``?model=`` and would load it but for ``autoload`` (runtimes §2.3)."""
        fields = dict(parse_qsl(query))
        name = fields.get("model", "")
        if self.states.get(name) not in ("loaded", "sleeping"):
            assert fields.get("autoload") == "false", "a look must not load"
            return _error(400, "model is not loaded")
        return 200, {
            "total_slots": self.slots,
            "default_generation_settings": {"n_ctx": self.context},
            "modalities": {"vision": "vision" in name},
            "eos_token": f"<|end of {name}|>",
            "is_sleeping": self.states[name] == "sleeping",
        }

    def _order(self, verb: str, name: str) -> tuple[int, Any]:
        self.orders.append((verb, name))
        state = self.states.get(name)
        if state is None:
            return _error(400, f"model '{name}' not found")
        if verb == "load":
            if state != "unloaded":
                return _error(400, "model is already running")  # runtimes §2.3
            if not self.lazy:
                self._begin(name)
            return 200, {"success": True}  # asynchronous (runtimes §2.3)
        if state == "unloaded":
            return _error(400, "model is not running")  # runtimes §2.3
        self._forget(name)
        return 200, {"success": True}

    def _begin(self, name: str) -> None:
        while len(self._used) >= self.most:
            self._forget(self._used[0])
        self.failed.discard(name)
        self.states[name] = "loading"
        if self.looks is not None:
            self._left[name] = self.looks

    def _go_on(self) -> None:
        for name in list(self._left):
            self._left[name] -= 1
            if self._left[name] > 0:
                continue
            del self._left[name]
            if name in self.broken:
                self.states[name] = "unloaded"
                self.failed.add(name)
            else:
                self.states[name] = "loaded"
                self._used.append(name)

    def _forget(self, name: str) -> None:
        self.states[name] = "unloaded"
        self._left.pop(name, None)
        self._used = [other for other in self._used if other != name]
        self._ended.append(name)

    def _script_for(self, exchange: Exchange) -> Script:
        """An unknown model is refused; one that is not in memory is loaded first (runtimes §2.3: --no-models-autoload
        is what switches that off)."""
        script = super()._script_for(exchange)
        name = str(exchange.json.get("model"))

        async def when_loaded(exchange: Exchange) -> None:
            if name not in self.states:
                await exchange.respond(*_error(400, "model not found"))
                return
            if self.states[name] == "unloaded":
                self._begin(name)
                await self._end_processes()
                self._left.pop(name, None)
                self.states[name] = "loaded"
                self.changed()
            await self.until(lambda: self.states[name] != "loading")
            self._used = [*(other for other in self._used if other != name), name]
            await script(exchange)

        return when_loaded


def _error(status: int, message: str) -> tuple[int, Any]:
    return status, {"error": {"code": status, "message": message, "type": "invalid_request_error"}}
