"""References to models, and how sizes and durations are said."""

from __future__ import annotations

import re

import pytest

from hearthlink.models import amounts
from hearthlink.models.catalogue import CATALOGUE
from hearthlink.models.reference import NoReferenceError, Reference, parse


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("hf:o/r/m.gguf", Reference("o", "r", "m.gguf")),
        ("hf:Qwen/Qwen2.5-1.5B/sub/x y.GGUF", Reference("Qwen", "Qwen2.5-1.5B", "sub/x y.GGUF")),
        ("hf:o/r@v1.0/m.gguf", Reference("o", "r", "m.gguf", "v1.0")),
        ("hf:o/r@refs%2Fpr%2F3/m.gguf", Reference("o", "r", "m.gguf", "refs/pr/3")),
        ("hf:o/r/m-00002-of-00003.gguf", Reference("o", "r", "m-00001-of-00003.gguf")),
    ],
)
def test_a_reference_is_read_and_written(text: str, reference: Reference) -> None:
    assert parse(text) == reference
    assert parse(str(reference)) == reference


def test_shards_are_one_model() -> None:
    reference = parse("hf:o/r/q4/big-00003-of-00003.gguf")
    assert reference.files == tuple(f"q4/big-0000{index}-of-00003.gguf" for index in (1, 2, 3))
    assert reference.name == "big"
    assert parse("hf:o/r/q4/m.gguf").files == ("q4/m.gguf",) and parse("hf:o/r/q4/m.gguf").name == "m"


@pytest.mark.parametrize(
    "text",
    [
        "o/r/m.gguf",
        "hf:",
        "hf:r/m.gguf",
        "hf:o/r",
        "hf:o/r:Q4_K_M",
        "hf:o/r/m.safetensors",
        "hf:../r/m.gguf",
        "hf:o/../m.gguf",
        "hf:o/r/../m.gguf",
        "hf:o/r/a/..gguf/../../m.gguf",
        "hf:o/r/.m.gguf",
        "hf:o/r//m.gguf",
        "hf:o/r/a\\b.gguf",
        "hf:o/r/a\nb.gguf",
        f"hf:o/r/{'x' * 300}.gguf",
        "hf:o/r@/m.gguf",
        "hf:o/r@..%2F..%2Fetc/m.gguf",
        "hf:o/r@a%2F..%2Fb/m.gguf",
        "hf:o/r/m-00004-of-00003.gguf",
        "hf:o/r/m-00001-of-99999.gguf",
    ],
)
def test_what_is_no_reference_is_refused(text: str) -> None:
    with pytest.raises(NoReferenceError):
        parse(text)


def test_a_pasted_url_is_answered_with_its_reference() -> None:
    with pytest.raises(NoReferenceError, match=re.escape("Write hf:o/r@v1/sub/m.gguf")):
        parse("https://huggingface.co/o/r/blob/v1/sub/m.gguf")
    with pytest.raises(NoReferenceError, match=r"Write hf:o/r/m\.gguf"):
        parse("https://huggingface.co/o/r/resolve/main/m.gguf")


def test_every_short_name_is_pinned() -> None:
    assert len({choice.short for choice in CATALOGUE}) == len(CATALOGUE) == 3
    for choice in CATALOGUE:
        assert parse(str(choice.reference)) == choice.reference
        assert re.fullmatch(r"[0-9a-f]{40}", choice.reference.revision)
        assert re.fullmatch(r"[0-9a-f]{64}", choice.sha256) and choice.size > 10**8
        assert len(choice.reference.files) == 1


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (1, "1 byte"), (2500, "2.5 kB"), (386_404_992, "386 MB"), (2_497_281_120, "2.50 GB")],
)
def test_sizes_are_said_as_disks_are_labelled(count: int, text: str) -> None:
    assert amounts.size(count) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (99, "99 s"), (150, "2 min"), (11_100, "3 h 5 min")])
def test_durations_are_short(seconds: float, text: str) -> None:
    assert amounts.duration(seconds) == text
