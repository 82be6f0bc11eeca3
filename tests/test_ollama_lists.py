"""What the node reads from Ollama's lists, as far as the version of tests/ollama has no such models."""

from __future__ import annotations

from typing import Any

from node.runtimes.server import ServerRuntime
from tests.fake_runtime import FakeRuntime
from tests.runtime_support import is_ready, is_unavailable, running

LISTS = {
    "/api/version": {"version": "0.33.1"},
    "/api/tags": {
        "models": [
            {"name": "vectors:latest", "digest": "c"},
            {"name": "small:latest", "digest": "a"},
            {"name": "big:latest", "digest": "b"},
            {"name": "huge:cloud", "remote_host": "https://example.com"},
        ]
    },
    "/api/ps": {"models": [{"name": "big:latest", "context_length": 4096}]},
}
NAMES = ["vectors:latest", "small:latest", "big:latest", "huge:cloud"]


class Lists(FakeRuntime):
    """Ollama's lists, and what it shows of each model by its name."""

    def __init__(self, lists: dict[str, Any], **shown: dict[str, Any]) -> None:
        super().__init__(server_header=None, models=NAMES, routes=lists)
        self.shown = shown
        self.asked: list[str] = []

    async def answer(self, exchange: Any) -> None:
        if exchange.path == "/api/show":
            self.asked.append(exchange.json["model"])
            await exchange.respond(200, self.shown.get(exchange.json["model"].partition(":")[0], {}))
        else:
            await super().answer(exchange)


async def test_local_models_are_listed_and_the_one_in_memory_is_the_default() -> None:
    """runtimes §4.2: models of its maker's cloud are not local."""
    vision = {"capabilities": ["completion", "vision"]}
    lists = Lists(LISTS, vectors={"capabilities": ["embedding"]}, small=vision)
    async with lists as fake, running(runtime := ServerRuntime(fake.url)) as until:
        status = await until(is_ready)
    assert (runtime.kind, status.slots, status.default_model) == ("Ollama", 1, "big:latest")
    assert [(model.id, model.context, model.kind, model.vision) for model in status.models] == [
        ("big:latest", 4096, "chat", False),
        ("small:latest", 0, "chat", True),
        ("vectors:latest", 0, "embedding", False),
    ]


async def test_a_model_that_nobody_chose_is_one_that_chats() -> None:
    lists = Lists({**LISTS, "/api/ps": {"models": []}}, vectors={"capabilities": ["embedding"]})
    async with lists as fake, running(ServerRuntime(fake.url)) as until:
        assert (await until(is_ready)).default_model == "small:latest"


async def test_names_without_a_tag() -> None:
    async with Lists(LISTS) as fake, running(ServerRuntime(fake.url, default_model="small")) as until:
        assert (await until(is_ready)).default_model == "small:latest"


async def test_without_models_it_says_pull() -> None:
    empty = {**LISTS, "/v1/models": {"object": "list", "data": None}, "/api/tags": {"models": []}}
    async with Lists(empty) as fake, running(ServerRuntime(fake.url)) as until:
        assert "ollama pull" in (await until(is_unavailable)).reason


async def test_a_model_is_asked_about_once_until_it_changes(monkeypatch: Any) -> None:
    monkeypatch.setattr("node.runtimes.server.READY_POLL_SECONDS", 0.02)
    tags = [{"name": "small:latest", "digest": "a"}, {"name": "big:latest", "digest": "b"}]
    lists = Lists({**LISTS, "/api/tags": {"models": tags}})
    async with lists as fake, running(ServerRuntime(fake.url)) as until:
        await until(is_ready)
        looks = len(fake.exchanges)
        await fake.until(lambda: len(fake.exchanges) > looks + 6)  # two more looks
        assert sorted(fake.asked) == ["big:latest", "small:latest"]
        fake.shown["small"] = {"capabilities": ["completion", "vision"]}
        tags[0]["digest"] = "other"
        status = await until(lambda status: any(model.vision for model in status.models))
        assert [model.id for model in status.models if model.vision] == ["small:latest"]
        assert fake.asked.count("small:latest") == 2
