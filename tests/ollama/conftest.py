"""A real Ollama as a fixture. Tests that ask for it are left out where it cannot be built, which one line at the end of
the run says; in continuous integration they fail."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench import random_model
from tests.left_out import LeftOut
from tests.model_files import write_projector
from tests.ollama import program
from tests.ollama.server import OllamaServer
from tests.runtime_support import DEMO

# A tool, and a schema of the very call that Ollama looks for: it makes a model that knows no tools write one.
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "Which"}}},
    },
}
_CALL = {
    "type": "object",
    "properties": {
        "name": {"const": "get_weather"},
        "parameters": {"type": "object", "properties": {"city": {"enum": ["Oslo"]}}, "required": ["city"]},
    },
    "required": ["name", "parameters"],
}
WEATHER_CALL = {"type": "json_schema", "json_schema": {"name": "call", "schema": _CALL}}

_DEMO_WIDTH = 192  # of the demo model's embeddings
# The model's own template, and tools in the way that Ollama finds out for itself how to read calls of them.
_TEMPLATE = """TEMPLATE \"\"\"{{- if .Tools }}<|im_start|>system
{{ range .Tools }}{{ json .Function }}{{ end }}<|im_end|>
{{ end }}
{{- range .Messages }}<|im_start|>{{ .Role }}
{{ .Content }}{{ range .ToolCalls }}{"name": "{{ .Function.Name }}", "parameters": {{ json .Function.Arguments }}}{{ end }}<|im_end|>
{{ end }}<|im_start|>assistant
\"\"\""""  # noqa: E501


def _wants_ollama(item: pytest.Item) -> bool:
    return any(name.startswith("ollama") for name in getattr(item, "fixturenames", ()))


_LEFT_OUT = LeftOut("tests/ollama", _wants_ollama, program.missing)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    _LEFT_OUT.choose(config, items)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    _LEFT_OUT.tell(terminalreporter, config)


def pytest_collection_finish(session: pytest.Session) -> None:
    if _LEFT_OUT.needs_building(session, program.built):
        sys.stderr.write("Building Ollama, once: this takes some minutes.\n")
        program.build()


@pytest.fixture(scope="package")
def ollama_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OllamaServer]:
    """Room for one model at a time: ``demo``, which answers in English and ends, ``tools`` and ``seeing``, the same
    with tools and for images, ``endless``, whose noise ends at max_tokens only, ``vectors``, which makes embeddings and
    no text, and ``broken``, which cannot be loaded."""
    if why := program.missing():
        pytest.fail(why)
    folder: Path = tmp_path_factory.mktemp("ollama")
    endless = random_model.make(folder / "endless.gguf", parameters=1_000_000, context=4096)
    vectors = random_model.make(folder / "vectors.gguf", parameters=1_000_000, context=512, pooling=True)
    broken = folder / "broken.gguf"
    broken.write_bytes(endless.read_bytes().replace(b"layer_norm_rms_epsilon", b"layer_norm_rms_without"))
    with OllamaServer(program.build(), folder, OLLAMA_MAX_LOADED_MODELS="1") as server:
        server.create("demo", DEMO)
        server.create("tools", DEMO, _TEMPLATE)
        server.create("seeing", DEMO, f"FROM {write_projector(folder / 'eye.gguf', _DEMO_WIDTH)}")
        server.create("endless", endless)
        server.create("vectors", vectors)
        server.create("broken", broken)
        yield server


@pytest.fixture
def ollama(ollama_server: OllamaServer) -> OllamaServer:
    """The server with nothing in memory."""
    ollama_server.unload_all()
    return ollama_server
