"""What an answer without a text cost: vectors and scores."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from shared.contract.body import BYTES_PER_TOKEN
from shared.contract.usage import Usage
from shared.link.call import read_usage


def cost_of(wire: Any, texts: Iterable[str]) -> Usage | None:
    """What the runtime tells, or None where that is absurd; an estimate of the ``texts`` it has read where it tells 0.

    vLLM tells ``total_tokens`` of a ranking alone; LM Studio tells 0 for every embedding (lmstudio-bug-tracker #1546).
    """
    if isinstance(wire, Mapping) and "prompt_tokens" not in wire:
        wire = {"prompt_tokens": wire.get("total_tokens")}
    usage = read_usage(wire)
    if usage is None or usage.prompt_tokens:
        return usage
    return Usage(sum(len(text.encode()) for text in texts) // BYTES_PER_TOKEN + 1)
