"""The GGUF header reader, on files written by the ``gguf`` package and on broken ones."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader, GGUFWriter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.random_model import make
from node.runtimes.gguf import TYPES, NotGGUFError, read_header
from tests.model_files import write_experts

DEMO = Path(__file__).parents[1] / "models" / "demo.gguf"


def test_the_demo_model() -> None:
    header = read_header(DEMO)
    assert (header.architecture, header.context) == ("llama", 1024)
    assert header.parameters == header.active_parameters == sum(int(t.n_elements) for t in GGUFReader(DEMO).tensors)
    assert header.special_tokens == {"<|endoftext|>", "<|im_start|>", "<|im_end|>"}
    assert "<|im_start|>" in header.chat_template
    assert header.size == DEMO.stat().st_size


@pytest.mark.parametrize("parameters", [10_000_000, 30_000_000])
def test_a_random_model_has_the_size_it_was_asked_for(tmp_path: Path, parameters: int) -> None:
    header = read_header(make(tmp_path / "random.gguf", parameters=parameters, context=2048))
    assert abs(header.parameters - parameters) < parameters / 10
    assert header.context == 2048 and header.size >= 2 * header.parameters


def test_experts_that_are_not_used_do_not_count_as_active(tmp_path: Path) -> None:
    write_experts(tmp_path / "moe.gguf")
    header = read_header(tmp_path / "moe.gguf")
    assert (header.parameters, header.active_parameters) == (850, 250)


def test_user_defined_tokens_count_only_when_the_template_writes_them(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "tokens.gguf", "llama")
    writer.add_token_list(["a", "<ctl>", "<table>", "<role>", "\n\n"])
    writer.add_token_types([1, 3, 4, 4, 4])
    writer.add_chat_template("<role>{{ x }}\n\n")
    writer.add_uint16("some.list", 7)
    writer.add_array("numbers", [1.5, 2.5])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert read_header(tmp_path / "tokens.gguf").special_tokens == {"<ctl>", "<role>"}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "letters GGUF"),
        (b"PK\x03\x04 a zip file", "letters GGUF"),
        (b"<!doctype html>", "letters GGUF"),
        (b"GGUF", "version"),
        (b"GGUF" + struct.pack("<I", 99), "version"),
        (b"GGUF" + struct.pack("<I", 3), "header"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 2**60), "absurd"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**62) + b"key", "header"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<I", 77), "header"),
    ],
)
def test_what_is_no_gguf_is_named(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "file.gguf"
    path.write_bytes(content)
    with pytest.raises(NotGGUFError, match=says):
        read_header(path)


def test_sizes_of_types_are_those_of_the_package() -> None:
    assert {kind: GGML_QUANT_SIZES[GGMLQuantizationType(kind)] for kind in TYPES} == TYPES


@pytest.mark.parametrize("missing", [0, 1, 70_000])
def test_what_is_missing_of_the_last_weights_is_known(tmp_path: Path, missing: int) -> None:
    raw = DEMO.read_bytes()
    weights = max(GGUFReader(DEMO).tensors, key=lambda tensor: tensor.data_offset)
    end = int(weights.data_offset + weights.n_bytes)
    (tmp_path / "m.gguf").write_bytes(raw[: end - missing])
    assert read_header(tmp_path / "m.gguf").missing == missing


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_header(tmp_path / "none.gguf")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(0, 40_000), at=st.integers(8, 30_000), value=st.binary(min_size=1, max_size=8))
def test_a_cut_or_damaged_header_never_does_worse_than_its_own_error(
    tmp_path: Path, cut: int, at: int, value: bytes
) -> None:
    raw = bytearray(DEMO.read_bytes()[:cut])
    raw[at : at + len(value)] = value
    path = tmp_path / "damaged.gguf"
    path.write_bytes(raw)
    try:
        read_header(path)
    except NotGGUFError as error:
        assert str(error)
