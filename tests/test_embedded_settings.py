"""What ``[node.runtime]`` makes of the embedded runtime: which models it has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from node.runtimes import create
from node.runtimes.embedded import EmbeddedRuntime
from shared.settings import RuntimeSettings
from shared.settings_models import ModelSettings
from tests.runtime_support import DEMO, is_ready, running


def link(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(DEMO)
    return path


@pytest.mark.parametrize(
    ("settings", "first", "folder"),
    [
        ({}, DEMO, "pulled"),
        ({"model": Path("/m.gguf")}, Path("/m.gguf"), "pulled"),
        ({"models": Path("/models")}, None, "/models"),
        ({"models": Path("/models"), "model": Path("/m.gguf")}, Path("/m.gguf"), "/models"),
    ],
)
def test_the_demo_model_is_for_those_who_brought_none(
    settings: dict[str, Any], first: Path | None, folder: str
) -> None:
    runtime = create(RuntimeSettings(kind="embedded", **settings), pulled=Path("pulled"))
    assert isinstance(runtime, EmbeddedRuntime)
    assert (runtime._folder.first, str(runtime._folder.folder)) == (first, folder)


def test_a_folder_alone_means_embedded() -> None:
    assert RuntimeSettings(models=Path("/models")).embedded
    assert not RuntimeSettings(models=Path("/models"), url="http://127.0.0.1:1234").embedded
    assert not RuntimeSettings().embedded


async def test_settings_of_all_and_of_one_model_reach_it(tmp_path: Path) -> None:
    link(tmp_path / "a.gguf")
    link(tmp_path / "b.gguf")
    settings = RuntimeSettings(models=tmp_path, context=512, default_model="b")
    own = {"a": ModelSettings(context=256, slots=1, pooling="mean")}
    async with running(create(settings, slots=3, models=own, at_start=())) as until:
        status = await until(is_ready)
    assert [(model.id, model.context, model.slots, model.kind) for model in status.models] == [
        ("b", 512, 3, "chat"),
        ("a", 256, 1, "embedding"),
    ]
