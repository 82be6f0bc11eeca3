"""The model behind a path: one GGUF file, or all shards of a large one, which llama.cpp finds by the first's name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from node.runtimes.gguf import Header, NotGGUFError, read_header
from shared.model_names import MAX_SHARDS, Shards


def read_model(path: Path) -> Header:
    """The header of the file, with the weights and bytes of all shards when it is the first of several.

    Raises OSError, whose ``filename`` says which file it is about, or NotGGUFError with the rest of a sentence about
    ``path``.
    """
    first = read_header(path)
    if not 1 <= first.shard <= first.shards <= MAX_SHARDS:
        raise NotGGUFError("has a broken header (its shard numbers are absurd)")
    if first.shards == 1:
        return first
    named = Shards.of(path.name)
    if named is None or (named.index, named.count) != (first.shard, first.shards):
        right = Shards("NAME", first.shard, first.shards)
        raise NotGGUFError(
            f"is shard {first.shard} of {first.shards} under a name by which the others cannot be found (call it"
            f" {right.file(first.shard)})"
        )
    if first.shard != 1:
        raise NotGGUFError(f"is shard {first.shard} of {first.shards} (name the first, {named.file(1)})")
    others = range(2, first.shards + 1)
    headers = [first, *(_read_shard(path.with_name(named.file(index)), index, first) for index in others)]
    return replace(
        first,
        parameters=sum(header.parameters for header in headers),
        expert_parameters=sum(header.expert_parameters for header in headers),
        size=sum(header.size for header in headers),
        missing=sum(header.missing for header in headers),
    )


def _read_shard(path: Path, index: int, first: Header) -> Header:
    try:
        header = read_header(path)
    except NotGGUFError as error:
        raise NotGGUFError(f"has a shard, {path.name}, that {error}") from None
    if (header.shard, header.shards) != (index, first.shards):
        raise NotGGUFError(f"has a shard, {path.name}, that says it is another one")
    return header
