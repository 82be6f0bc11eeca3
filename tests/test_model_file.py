"""A model's own header: of one file, or of all shards together, as llama.cpp would load them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from gguf import GGUFWriter

from bench.random_model import make
from node.runtimes.embedded import EmbeddedRuntime
from node.runtimes.gguf import NotGGUFError
from node.runtimes.model_file import read_model
from shared import model_names
from shared.model_names import Shards
from tests.model_files import write_experts
from tests.runtime_support import is_ready, running


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    """A model in three files, in order."""
    make(tmp_path / "big.gguf", parameters=1_000_000, context=512, shard_tensors=5)
    paths = sorted(tmp_path.glob("big-*"))
    assert [path.name for path in paths] == list(Shards("big", 1, 3).files)
    return paths


def test_all_shards_count(shards: list[Path], tmp_path: Path) -> None:
    whole = read_model(make(tmp_path / "whole.gguf", parameters=1_000_000, context=512))
    found = read_model(shards[0])
    assert found.parameters == found.active_parameters == whole.parameters
    assert found.size == sum(path.stat().st_size for path in shards) > whole.size
    assert (found.context, found.special_tokens) == (512, whole.special_tokens)


def test_experts_of_other_shards_count_as_the_first_says(tmp_path: Path) -> None:
    """The first holds the description, and here no tensor; the others hold tensors alone."""
    write_experts(tmp_path / "moe.gguf", split_max_tensors=1, small_first_shard=True)
    found = read_model(tmp_path / "moe-00001-of-00003.gguf")
    assert (found.parameters, found.active_parameters) == (850, 250)


def cut_second(shards: list[Path]) -> Path:
    shards[1].write_bytes(shards[1].read_bytes()[:40])
    return shards[0]


def repeat_second(shards: list[Path]) -> Path:
    shutil.copy(shards[1], shards[2])
    return shards[0]


def name_second(shards: list[Path]) -> Path:
    return shards[1]


def rename_first(shards: list[Path]) -> Path:
    return shards[0].rename(shards[0].with_name("big.gguf"))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (cut_second, "has a shard, big-00002-of-00003.gguf, that has a broken or cut header"),
        (repeat_second, "has a shard, big-00003-of-00003.gguf, that says it is another one"),
        (name_second, r"is shard 2 of 3 \(name the first, big-00001-of-00003.gguf\)"),
        (rename_first, r"is shard 1 of 3 under a name .* \(call it NAME-00001-of-00003.gguf\)"),
    ],
)
def test_shards_that_make_no_model_are_named(
    shards: list[Path], damage: Callable[[list[Path]], Path], says: str
) -> None:
    with pytest.raises(NotGGUFError, match=says):
        read_model(damage(shards))


def claim(path: Path, shard: int, shards: int) -> Path:
    """A file that says it is that shard, counted from 0, of so many."""
    writer = GGUFWriter(path, "llama")
    writer.add_int64("split.no", shard)
    writer.add_int64("split.count", shards)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(("shard", "shards"), [(10, 2), (-1, 2), (-5, 2), (1, 1), (0, 50_000_000), (0, 1 << 60)])
def test_absurd_shard_numbers_are_a_broken_header(tmp_path: Path, shard: int, shards: int) -> None:
    with pytest.raises(NotGGUFError, match="its shard numbers are absurd"):
        read_model(claim(tmp_path / "big.gguf", shard, shards))


def test_no_name_is_made_that_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Shards, "files")
    with pytest.raises(FileNotFoundError) as missing:
        read_model(claim(tmp_path / "big-00001-of-99999.gguf", 0, 99_999))
    assert missing.value.filename == str(tmp_path / "big-00002-of-99999.gguf")


def test_a_missing_shard_is_named(shards: list[Path]) -> None:
    shards[2].unlink()
    with pytest.raises(FileNotFoundError) as missing:
        read_model(shards[0])
    assert missing.value.filename == str(shards[2])


async def test_the_embedded_runtime_speaks_of_the_whole_model(shards: list[Path]) -> None:
    whole = shards[2].rename(shards[2].with_name("elsewhere"))
    async with running(EmbeddedRuntime(shards[0])) as until:
        waiting = await until(lambda status: status.state == "unavailable")
        assert f"There is no model file at {shards[2]}." in waiting.reason and waiting.default_model == "big"
        whole.rename(shards[2])
        assert "Loading big (1.7 MB)" in (await until(lambda status: status.state == "loading")).reason
        assert [model.id for model in (await until(is_ready)).models] == ["big"]


@pytest.mark.parametrize(
    ("file", "title"),
    [
        ("tiny.gguf", "tiny"),
        ("a/b/Tiny.v2.GGUF", "Tiny.v2"),
        ("q4/big-00002-of-00010.gguf", "big"),
        ("big-2-of-3.gguf", "big-2-of-3"),
        ("blob", "blob"),
    ],
)
def test_a_model_is_called_by_its_file(file: str, title: str) -> None:
    assert model_names.title(file) == title


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("hf:owner/repo/file.gguf", True),
        ("smollm2-360m", True),
        ("Some Model", True),
        ("tiny.gguf", False),
        ("tiny.GGUF", False),
        ("./smollm2-360m", False),
        ("/models/m", False),
    ],
)
def test_a_name_is_told_from_a_path(text: str, name: bool) -> None:
    assert model_names.is_name(text) is name
