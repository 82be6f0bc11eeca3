"""The header of a GGUF file: is it one, and what does it say about the model. Tensor data is never read.

Layout (github.com/ggml-org/ggml docs/gguf.md): magic, version, counts, key-value pairs, tensor descriptions.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

# How one vector is made of those of all tokens; "rank": it is a score of a query and a document.
Pooling = Literal["mean", "cls", "last", "rank"]

MAGIC = b"GGUF"
_VERSIONS = (2, 3)  # 1 had 32-bit counts and is no longer loaded by llama.cpp
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
# ggml_type: how many weights are kept together, and in how many bytes (ggml-common.h, the block_ structures).
TYPES: Mapping[int, tuple[int, int]] = MappingProxyType(
    {
        0: (1, 4), 1: (1, 2), 28: (1, 8), 30: (1, 2),  # F32, F16, F64, BF16
        2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34),  # Q4_0, Q4_1, Q5_0, Q5_1, Q8_0
        10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210),  # Q2_K to Q6_K
        16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50),  # IQ2_XXS, IQ2_XS, IQ3_XXS, IQ1_S
        20: (32, 18), 21: (256, 110), 22: (256, 82), 23: (256, 136), 29: (256, 56),  # IQ4_NL to IQ1_M
        24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8),  # whole numbers
        34: (256, 54), 35: (256, 66), 39: (32, 17),  # TQ1_0, TQ2_0, MXFP4
    }
)  # fmt: skip
# Far above any real file (vocabularies reach 300,000); a count past it is a broken or hostile header.
_MAX_ITEMS = 1 << 24
_MAX_DIMENSIONS = 4
_CONTROL, _USER_DEFINED = 3, 4  # llama_token_type
_POOLING: Mapping[int, Pooling] = MappingProxyType({1: "mean", 2: "cls", 3: "last", 4: "rank"})  # llama_pooling_type
_ALIGNMENT = 32  # of tensor data, where general.alignment does not say


class NotGGUFError(ValueError):
    """The file is no GGUF that llama.cpp would load. ``str(error)`` says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Header:
    """``context`` is the training context in tokens, 0 when unsaid. ``parameters`` are all weights in the file,
    ``expert_parameters`` those of them in a mixture of experts, of which a token uses ``experts_used`` out of
    ``experts`` (0 of 0: all). ``special_tokens`` are the spellings that the tokenizer turns into control tokens
    wherever they stand. ``size`` is the file's, in bytes; it is number ``shard``, from 1, of ``shards``.

    ``kind`` is "model", or what else the format is used for: "mmproj" (a projector of images or sound), "adapter",
    "imatrix". ``layers`` and ``width`` are 0 when unsaid. ``pooling`` is None for a model that writes text.
    ``projects_to`` is the width of the models that a vision projector is made for. ``missing`` are the bytes by which
    the file is shorter than its weights, as far as their types are known here.
    """

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
    kind: str = "model"
    layers: int = 0
    width: int = 0
    pooling: Pooling | None = None
    projects_to: int = 0
    missing: int = 0

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
        total, routed, last, extent = self._weights(tensors)
        alignment = _number(fields, "general.alignment") or _ALIGNMENT
        data = (self._at + alignment - 1) // alignment * alignment
        if tensors and data + last >= size:
            raise NotGGUFError("is cut: it ends before its last weights begin, so fetch it again")
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
            kind=_text(fields, "general.type") or ("mmproj" if architecture == "clip" else "model"),
            layers=_number(fields, f"{architecture}.block_count"),
            width=_number(fields, f"{architecture}.embedding_length"),
            pooling=_pooling(fields, architecture),
            projects_to=_number(fields, "clip.vision.projection_dim"),
            missing=max(0, data + extent - size) if tensors else 0,
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

    def _weights(self, tensors: int) -> tuple[int, int, int, int]:
        """(all weights, those in experts, where the last tensor begins in the data, where all end)."""
        total = routed = last = extent = 0
        for _ in range(tensors):
            name = self._string()
            dimensions = self._scalar("<I")
            if dimensions > _MAX_DIMENSIONS:
                raise NotGGUFError("has a broken header (a tensor of too many dimensions)")
            count = 1
            for _ in range(dimensions):
                count *= self._scalar("<Q")
            weights, size = TYPES.get(self._scalar("<I"), (1, 0))
            at = self._scalar("<Q")
            last, extent = max(last, at), max(extent, at + count // weights * size)
            total += count
            routed += count if "_exps." in name else 0
        return total, routed, last, extent


def _text(fields: dict[str, Any], key: str) -> str:
    value = fields.get(key)
    return value if isinstance(value, str) else ""


def _number(fields: dict[str, Any], key: str) -> int:
    value = fields.get(key)
    return value if isinstance(value, int) else 0


def _pooling(fields: dict[str, Any], architecture: str) -> Pooling | None:
    """As the file says; the mean for a model that reads in both directions, which cannot write."""
    named = _POOLING.get(_number(fields, f"{architecture}.pooling_type"))
    return named or ("mean" if fields.get(f"{architecture}.attention.causal") is False else None)


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
