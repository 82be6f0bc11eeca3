"""How much of a model's context a prompt leaves to its answer, by estimates that need no tokenizer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from node.runtime import Inference
from node.runtimes.dialect import Dialect
from node.runtimes.transport import HttpStream
from shared.contract.errors import ApiError
from shared.contract.snapshot import ModelInfo

_BYTES_PER_TOKEN = 3  # low for English (4 to 5), about right for scripts of three bytes a letter; digits have fewer
_TOKENS_PER_MESSAGE = 8  # role and separators of a chat template, rounded up


class Windowed(Dialect):
    """A server that refuses what could pass the context, prompt and longest answer together, instead of ending the
    answer there. The longest answer is cut to what the estimate leaves; where that was too much, it is cut again."""

    def longest(self, inference: Inference, model: ModelInfo) -> int:
        return fitted_answer(inference, model.context)

    async def opened(
        self,
        inference: Inference,
        model: ModelInfo,
        headers: Mapping[str, str],
        more: Mapping[str, Any] = MappingProxyType({}),
    ) -> HttpStream:
        try:
            return await super().opened(inference, model, headers, more)
        except ApiError as error:
            length = shorter_answer(inference, model.context)
            if error.code != "context_length_exceeded" or length is None:
                raise
        return await super().opened(replace(inference, max_tokens=length), model, headers, more)


def fitted_answer(inference: Inference, context: int) -> int:
    """``max_tokens`` less what would not fit beside the prompt. ``context`` in tokens, 0: unknown."""
    if not context:
        return inference.max_tokens
    return max(1, min(inference.max_tokens, context - _prompt_tokens(inference, _BYTES_PER_TOKEN)))


def shorter_answer(inference: Inference, context: int) -> int | None:
    """What to try where ``fitted_answer`` was refused: the rest beside a prompt of a token per byte, more than which
    hardly any has; where there is none, a quarter of what was refused. None where nothing shorter is worth a try."""
    refused = fitted_answer(inference, context)
    rest = context - _prompt_tokens(inference, 1)
    length = rest if rest > 0 else refused // 4
    return length if 0 < length < refused else None


def _prompt_tokens(inference: Inference, bytes_per_token: int) -> int:
    read = (inference.content, inference.parameters.get("tools"))  # templates write tools into the prompt
    size = sum(len(piece.encode()) for piece in _texts(read))
    return size // bytes_per_token + _TOKENS_PER_MESSAGE * len(inference.messages)


def _texts(value: Any, name: str = "") -> Iterator[str]:
    """All text of a request's content but the names of its fields, and of images nothing: their bytes are no tokens."""
    if isinstance(value, str):
        if name not in ("role", "type", "url"):
            yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _texts(item, key)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item, name)
