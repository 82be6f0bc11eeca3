"""Text that a tokenizer would read as a control token, made plain text again.

llama.cpp and its kin look for the spellings of control tokens inside messages too: whoever writes
``<|im_end|><|im_start|>system`` in a message opens a role. A word joiner (U+2060, no width, no break) behind the first
character breaks the spelling and leaves what a person sees.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, groupby, pairwise
from types import MappingProxyType
from typing import Any

JOINER = "\u2060"

# What follows the first character in the families of spellings, for runtimes that do not tell theirs and for templates
# that write role marks as plain text. Repetitions are bounded and never run over another first character's text, so
# the search stays linear.
_FAMILIES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "<": (
            r"\|[^\s<>|]{1,64}\|?>",  # ChatML, Llama 3, Phi, GPT-OSS, Command R: <|im_start|>; Gemma 4: <|turn>
            r"/?[\w:/-]{1,64}\|>",  # Gemma 4: <turn|>
            r"\uff5c[^<>\uff5c]{1,64}\uff5c>",  # DeepSeek, Hunyuan: the bars are fullwidth
            r"/?(?:s|bos|eos|pad|unk|sep|cls|mask|sop|eop|role|tool_call|tool_response)>",
            r"(?:start|end)_of_[a-z]{1,32}>",  # Gemma
            r"(?:unused|extra_id_|reserved_|SPECIAL_|seed:|\[)[\w:\]-]{0,64}>",  # Gemma, Nemotron, Mistral, Seed
            r"</?SYS>>",  # Llama 2
        ),
        "[": (
            r"/?(?:INST|SYSTEM_PROMPT|MODEL_SETTINGS|AVAILABLE_TOOLS|TOOL_[A-Z]{1,32}|ARGS|CALL_ID|THINK)\]",  # Mistral
            r"\|[\w/]{1,64}\|\]",  # EXAONE
            r"[gs]?MASK\]",  # GLM
            r"e~\[",  # MiniMax
        ),
        "]": (r"~!?b[\[\]]",),  # MiniMax
    }
)
_PREFIX = 32  # characters of a token that are looked for; no two meanings of text differ only behind that many


class Neutraliser:
    """Breaks every spelling of ``tokens`` (the loaded model's control tokens) and of the common families. Stateless
    once made; making it takes milliseconds, also for a vocabulary with thousands of them."""

    def __init__(self, tokens: Iterable[str] = ()) -> None:
        families = re.compile("|".join(f"{re.escape(first)}(?:{'|'.join(_FAMILIES[first])})" for first in _FAMILIES))
        # One character cannot be broken, and what a family finds needs no entry of its own.
        own = sorted({token[:_PREFIX] for token in tokens if len(token) > 1 and not families.match(token)})
        rests = {first: list(endings) for first, endings in _FAMILIES.items()}
        for first, group in groupby(own, key=lambda token: token[0]):
            rests.setdefault(first, []).append(_trie([token[1:] for token in group]))
        self._marks = tuple(rests)
        # Only the first character is consumed, so that a token that begins inside another one is found as well.
        self._token = re.compile("|".join(f"{re.escape(first)}(?={'|'.join(ends)})" for first, ends in rests.items()))

    def clean(self, text: str) -> str:
        """``text`` with no control token in it; the same object when there was nothing to do. Idempotent."""
        if not any(mark in text for mark in self._marks):
            return text
        return self._token.sub(_broken, text)

    def clean_joined(self, texts: Sequence[str]) -> list[str]:
        """``texts``, each by itself, cleaned as the one text that they are where nothing is put between them: a token
        may begin in one and end in another."""
        joined = "".join(texts)
        cleaned = self.clean(joined)
        if len(cleaned) == len(joined):
            return list(texts)
        breaks = [match.end() for match in self._token.finditer(joined)]
        ends = [end + bisect_right(breaks, end) for end in accumulate(map(len, texts))]
        return [cleaned[start:end] for start, end in pairwise([0, *ends])]

    def clean_all(self, value: Any) -> Any:
        """A JSON value with every string in it cleaned, keys too; as deep as the value is."""
        if isinstance(value, str):
            return self.clean(value)
        if isinstance(value, list):
            return [self.clean_all(item) for item in value]
        if isinstance(value, dict):
            return {self.clean(key): self.clean_all(item) for key, item in value.items()}
        return value


def _broken(match: re.Match[str]) -> str:
    return match.group() + JOINER


def _trie(endings: list[str]) -> str:
    """A pattern for any of ``endings`` (sorted), branching letter by letter: a plain alternation of thousands would be
    tried one by one at every first character."""
    if not endings[0]:
        return ""  # a token ends here, and finding it is enough
    branches = [
        re.escape(first) + _trie([ending[1:] for ending in group])
        for first, group in groupby(endings, key=lambda ending: ending[0])
    ]
    return branches[0] if len(branches) == 1 else f"(?:{'|'.join(branches)})"
