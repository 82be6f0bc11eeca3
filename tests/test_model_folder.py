"""Which GGUF files the embedded runtime finds, how they are called, and what their headers say of their use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from gguf import GGUFWriter

from node.runtimes.gguf import read_header
from node.runtimes.model_folder import ModelFolder
from tests.logged import logged
from tests.model_files import write_experts, write_header
from tests.runtime_support import DEMO


def put(path: Path) -> Path:
    """The demo model under another name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(DEMO)
    return path


def test_models_of_a_folder_are_called_by_their_file(tmp_path: Path) -> None:
    first = put(tmp_path / "elsewhere" / "my model.gguf")
    folder = tmp_path / "models"
    for name in ("b.gguf", "owner/repo/main/a.gguf", "owner/d.gguf.part"):
        put(folder / name)
    write_experts(folder / "c.gguf", split_max_tensors=1)
    (folder / "c-00002-of-00002.gguf").unlink()
    (folder / "page.gguf").write_text("<!doctype html>")
    assert list(ModelFolder(first, folder).scan()) == ["my-model", "b", "a"], "c lacks its second half"
    assert list(ModelFolder(None, folder).scan()) == ["b", "a"]
    assert list(ModelFolder(None, tmp_path / "none").scan()) == []


def test_a_name_that_is_taken_gives_way_to_the_path(tmp_path: Path) -> None:
    one, two = put(tmp_path / "one" / "m.gguf"), put(tmp_path / "two" / "m.gguf")
    assert {name: file.path for name, file in ModelFolder(two, tmp_path).scan().items()} == {"m": two, "one/m": one}


def test_a_name_that_no_json_can_say_is_left_out_and_told_once(tmp_path: Path) -> None:
    """File names are bytes: this one is Latin-1."""
    put(tmp_path / "good.gguf")
    put(Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.gguf")))
    folder = ModelFolder(None, tmp_path)
    with logged() as lines:
        assert list(folder.scan()) == ["good"] == list(folder.scan())
    assert [line for line in lines if "rename it" in line] == lines and len(lines) == 1


def test_what_comes_and_goes_is_seen_and_what_stays_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from node.runtimes import model_folder

    read: list[str] = []

    def counting(path: Path) -> object:
        read.append(path.name)
        return read_model(path)

    read_model = model_folder.read_model
    monkeypatch.setattr(model_folder, "read_model", counting)
    folder = ModelFolder(None, tmp_path)
    put(tmp_path / "a.gguf")
    assert list(folder.scan()) == ["a"] and list(folder.scan()) == ["a"]
    put(tmp_path / "b.gguf")
    (tmp_path / "a.gguf").unlink()
    assert list(folder.scan()) == ["b"]
    assert read == ["a.gguf", "b.gguf"]


def test_a_projector_belongs_to_the_model_of_its_width_beside_it(tmp_path: Path) -> None:
    width = read_header(DEMO).width
    model = put(tmp_path / "one" / "sees.gguf")
    projector = write_header(tmp_path / "one" / "mmproj-sees.gguf", "clip", {"clip.vision.projection_dim": width})
    put(tmp_path / "two" / "blind.gguf")
    write_header(tmp_path / "two" / "mmproj-other.gguf", "clip", {"clip.vision.projection_dim": width + 8})
    found = ModelFolder(None, tmp_path).scan()
    assert {name: file.projector for name, file in found.items()} == {"sees": projector, "blind": None}
    assert ModelFolder(model, None).scan()["sees"].projector == projector, "also without a folder"


@pytest.mark.parametrize(
    ("said", "pooling"),
    [
        ({}, None),
        ({"bert.pooling_type": 0}, None),
        ({"bert.pooling_type": 1}, "mean"),
        ({"bert.pooling_type": 2}, "cls"),
        ({"bert.pooling_type": 3}, "last"),
        ({"bert.pooling_type": 4}, "rank"),
        ({"bert.attention.causal": False}, "mean"),
        ({"bert.attention.causal": True}, None),
    ],
)
def test_what_makes_embeddings_or_ranks_says_so(tmp_path: Path, said: dict[str, int], pooling: str | None) -> None:
    assert read_header(write_header(tmp_path / "m.gguf", "bert", said)).pooling == pooling


def test_layers_and_width(tmp_path: Path) -> None:
    header = read_header(DEMO)
    assert header.layers > 1 and header.width > 1 and header.projects_to == 0


def test_a_file_that_ends_before_its_last_weights(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "empty.gguf", "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert read_header(tmp_path / "empty.gguf").size > 0, "no weights, so none are missing"
    whole = DEMO.read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[: len(whole) // 2])
    assert list(ModelFolder(tmp_path / "cut.gguf", None).scan()) == []


def test_a_file_that_is_no_model_is_told_once_when_nobody_writes_to_it_any_more(tmp_path: Path) -> None:
    page, half = tmp_path / "page.gguf", tmp_path / "half.gguf"
    page.write_text("<!doctype html>")
    write_header(tmp_path / "mmproj-x.gguf", "clip", {"clip.vision.projection_dim": 8})
    folder = ModelFolder(None, tmp_path)
    with logged() as lines:
        half.write_bytes(DEMO.read_bytes()[:1000])
        folder.scan()
        assert lines == []
        half.write_bytes(DEMO.read_bytes()[:2000])
        folder.scan()
        assert len(lines) == 1 and str(page) in lines[0]
        folder.scan()
        folder.scan()
    assert len(lines) == 2 and str(half) in lines[1] and "cut" in lines[1]
    assert folder.unfit["page"] == "does not begin with the letters GGUF"
    assert list(folder.unfit) == ["half", "mmproj-x", "page"]
    page.unlink()
    half.unlink()
    folder.scan()
    assert list(folder.unfit) == ["mmproj-x"]
