"""The header of a GGUF file: is it one, and what does it say about the model. Tensor data is never read.

Layout (github.com/ggml-org/ggml docs/gguf.md): magic, version, counts, key-value pairs, tensor descriptions.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAGIC = b"GGUF"
_VERSIONS = (2, 3)  # 1 had 32-bit counts and is no longer loaded by llama.cpp
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
# Far above any real file (vocabularies reach 300,000); a count past it is a broken or hostile header.
_MAX_ITEMS = 1 << 24
_MAX_DIMENSIONS = 4
_CONTROL, _USER_DEFINED = 3, 4  # llama_token_type


class NotGGUFError(ValueError):
    """The file is no GGUF that llama.cpp would load. ``str(error)`` says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Header:
    """``context`` is the training context in tokens, 0 when unsaid. ``parameters`` are all weights in the file,
    ``expert_parameters`` those of them in a mixture of experts, of which a token uses ``experts_used`` out of
    ``experts`` (0 of 0: all). ``special_tokens`` are the spellings that the tokenizer turns into control tokens
    wherever they stand. ``size`` is the file's, in bytes; it is number ``shard``, from 1, of ``shards``."""

    architecture: str
    name: str
    context: int
    parameters: int
    expert_parameters: int
    experts: int
    experts_used: int
    special_tokens: frozenset[str]
    chat_template: str
    size: int
    shard: int
    shards: int

    @property
    def active_parameters(self) -> int:
        """The weights that one token passes through."""
        if not 0 < self.experts_used <= self.experts:
            return self.parameters
        return self.parameters - self.expert_parameters * (self.experts - self.experts_used) // self.experts


def read_header(path: Path) -> Header:
    """Read the header of ``path``. Raises OSError, or NotGGUFError with the rest of a sentence about the file."""
    with path.open("rb") as file:
        size = path.stat().st_size
        start = file.read(8)
        if start[:4] != MAGIC:
            raise NotGGUFError("does not begin with the letters GGUF")
        if len(start) < 8 or struct.unpack("<I", start[4:])[0] not in _VERSIONS:
            raise NotGGUFError("is a GGUF of a version that is not 2 or 3")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                return _Reader(data, 8).header(size)
            except (struct.error, IndexError, UnicodeDecodeError, KeyError, TypeError):
                raise NotGGUFError("has a broken or cut header") from None


class _Reader:
    """A place in the file that moves forward."""

    def __init__(self, data: mmap.mmap, at: int) -> None:
        self._data = data
        self._at = at

    def header(self, size: int) -> Header:
        tensors, pairs = self._count(), self._count()
        fields: dict[str, Any] = {}
        for _ in range(pairs):
            key = self._string()
            fields[key] = self._value(self._scalar("<I"))
        architecture = _text(fields, "general.architecture")
        total, routed = self._weights(tensors)
        template = _text(fields, "tokenizer.chat_template")
        return Header(
            architecture=architecture,
            name=_text(fields, "general.name"),
            context=_number(fields, f"{architecture}.context_length"),
            parameters=total,
            expert_parameters=routed,
            experts=_number(fields, f"{architecture}.expert_count"),
            experts_used=_number(fields, f"{architecture}.expert_used_count"),
            special_tokens=_special_tokens(fields, template),
            chat_template=template,
            size=size,
            shard=_number(fields, "split.no") + 1,
            shards=max(1, _number(fields, "split.count")),
        )

    def _scalar(self, form: str) -> Any:
        value = struct.unpack_from(form, self._data, self._at)[0]
        self._at += struct.calcsize(form)
        return value

    def _count(self) -> int:
        count = self._scalar("<Q")
        if count > _MAX_ITEMS:
            raise NotGGUFError("has a broken header (a count is absurd)")
        return count

    def _string(self) -> str:
        length = self._scalar("<Q")
        raw = self._data[self._at : self._at + length]
        if len(raw) != length:
            raise NotGGUFError("has a broken or cut header")
        self._at += length
        return raw.decode("utf-8", "replace")

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            return self._scalar(_SCALARS[kind])
        inner, count = self._scalar("<I"), self._count()
        if inner == _STRING:
            return [self._string() for _ in range(count)]
        form = _SCALARS[inner]
        values = struct.unpack_from(f"<{count}{form[1]}", self._data, self._at)
        self._at += struct.calcsize(form) * count
        return values

    def _weights(self, tensors: int) -> tuple[int, int]:
        """(all weights, those in experts)."""
        total = routed = 0
        for _ in range(tensors):
            name = self._string()
            dimensions = self._scalar("<I")
            if dimensions > _MAX_DIMENSIONS:
                raise NotGGUFError("has a broken header (a tensor of too many dimensions)")
            count = 1
            for _ in range(dimensions):
                count *= self._scalar("<Q")
            self._at += 12  # type (u32) and offset (u64)
            total += count
            routed += count if "_exps." in name else 0
        return total, routed


def _text(fields: dict[str, Any], key: str) -> str:
    value = fields.get(key)
    return value if isinstance(value, str) else ""


def _number(fields: dict[str, Any], key: str) -> int:
    value = fields.get(key)
    return value if isinstance(value, int) else 0


def _special_tokens(fields: dict[str, Any], template: str) -> frozenset[str]:
    """Control tokens, and those user-defined ones that the chat template writes: the others are ordinary text of the
    vocabulary (Gemma has runs of line breaks and HTML tags among them)."""
    tokens = fields.get("tokenizer.ggml.tokens") or ()
    kinds = fields.get("tokenizer.ggml.token_type") or ()
    return frozenset(
        token
        for token, kind in zip(tokens, kinds, strict=False)
        if kind == _CONTROL or (kind == _USER_DEFINED and token.strip() and token in template)
    )
