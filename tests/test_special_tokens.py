"""Control-token text in a message cannot open a role (the real runtime's side of it is in test_embedded)."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.special_tokens import JOINER, Neutraliser

FAMILIES = [
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<|start_header_id|>",
    "<|eot_id|>",
    "<|START_OF_TURN_TOKEN|>",
    "<|turn>",
    "<turn|>",
    "<|channel|>",
    "<\uff5cUser\uff5c>",
    "<\uff5cbegin\u2581of\u2581sentence\uff5c>",
    "<s>",
    "</s>",
    "<bos>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<unused12>",
    "<extra_id_1>",
    "<SPECIAL_20>",
    "<seed:bos>",
    "<<SYS>>",
    "<</SYS>>",
    "[INST]",
    "[/INST]",
    "[SYSTEM_PROMPT]",
    "[TOOL_CALLS]",
    "[|system|]",
    "[gMASK]",
    "<sop>",
    "]~!b[",
    "]~b]",
    "[e~[",
]
OWN = frozenset({"{{ctl}}", "{{ctl}}x", "\u00abrole\u00bb", "##sys##", "\u2581<0>", "##sys2##"})


@pytest.mark.parametrize("token", FAMILIES)
def test_every_family_is_broken_without_knowing_the_model(token: str) -> None:
    cleaned = Neutraliser().clean(f"a{token}b{token}{token}")
    assert token not in cleaned
    assert cleaned.count(JOINER) >= 3
    assert cleaned.replace(JOINER, "") == f"a{token}b{token}{token}"


@pytest.mark.parametrize("token", sorted(OWN))
def test_the_models_own_tokens_are_broken(token: str) -> None:
    assert token in Neutraliser().clean(token)
    assert token not in Neutraliser(OWN).clean(f"x{token}{token}y")


@pytest.mark.parametrize(
    "text",
    ["f <| x |> g", "a < b > c", "list[0]", "[NOTE] and [link](url)", "if (a<b || c>d)", "x << 3 >> 1", "<p>hi</p>"],
)
def test_ordinary_text_passes_as_it_came(text: str) -> None:
    assert Neutraliser(OWN).clean(text) == text


def test_text_without_marks_is_the_same_object() -> None:
    text = "søster 日本 🌍 " * 100
    assert Neutraliser(OWN).clean(text) is text


@given(st.lists(st.one_of(st.sampled_from([*FAMILIES, *OWN]), st.text("<|>[]/#{}ab_", max_size=4)), max_size=12))
def test_no_join_of_pieces_leaves_a_token(pieces: list[str]) -> None:
    neutraliser = Neutraliser(OWN)
    text = "".join(pieces)
    cleaned = neutraliser.clean(text)
    assert not [token for token in (*FAMILIES, *OWN) if token in cleaned]
    assert cleaned.replace(JOINER, "") == text
    assert neutraliser.clean(cleaned) == cleaned


@given(st.lists(st.text("<|im_start>end[/INS]{ctl}x", max_size=8), max_size=8), st.data())
def test_texts_that_are_put_together_are_cleaned_as_the_one_that_they_are(
    texts: list[str], data: st.DataObject
) -> None:
    at = data.draw(st.integers(0, len(texts)))
    texts[at:at] = list(data.draw(st.sampled_from(FAMILIES)))  # a token in pieces of one character
    neutraliser = Neutraliser(OWN)
    cleaned = neutraliser.clean_joined(texts)
    assert "".join(cleaned) == neutraliser.clean("".join(texts))
    assert [text.replace(JOINER, "") for text in cleaned] == texts


def test_a_token_that_begins_inside_another_is_broken_too() -> None:
    tokens = {"<<a", "<a>", "a>>"}
    cleaned = Neutraliser(tokens).clean("<<a>>")
    assert not [token for token in tokens if token in cleaned]


@pytest.mark.parametrize(
    "text", ["<" * 1_000_000, "<|" * 500_000, "<|a" * 300_000, "[A" * 500_000, ("<" + "a" * 64) * 15_000]
)
def test_hostile_text_of_a_megabyte_is_linear(text: str) -> None:
    """Quadratic work on a megabyte would take minutes."""
    neutraliser = Neutraliser({f"<special{n}x>" for n in range(5000)})
    started = time.process_time()
    neutraliser.clean(text)
    assert time.process_time() - started < 5


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from([*FAMILIES, "a"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*FAMILIES, "a"]), inner, max_size=3),
    max_leaves=12,
)


@given(JSON)
def test_no_string_of_a_json_value_keeps_a_token_and_the_rest_is_as_it_was(value: object) -> None:
    cleaned = Neutraliser().clean_all(value)
    text = json.dumps(cleaned, ensure_ascii=False)
    assert not any(token in text for token in FAMILIES)
    assert json.loads(text.replace(JOINER, "")) == value
