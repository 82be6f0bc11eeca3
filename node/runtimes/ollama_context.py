"""Prompts that do not fit: Ollama leaves out the oldest messages, or the beginning of the last, and says nothing.

Versions that know ``truncate`` refuse them when they are told to. For the others this is what can be known without a
tokenizer: before, what fits in no case; behind, from the number of tokens that were read, what was cut for certain
and what was cut probably.
"""

from __future__ import annotations

from dataclasses import dataclass

from loguru import logger

from node.runtime import Inference
from node.runtimes.ollama_request import text_of
from node.runtimes.upstream_errors import context_exceeded
from shared.contract.snapshot import ModelInfo

# Text has 3 to 5 bytes a token. A prompt that so few tokens were read of was probably cut.
_BYTES_PER_TOKEN = 6
# No vocabulary comes to this for a whole prompt.
_MOST_BYTES_PER_TOKEN = 16


@dataclass(frozen=True, slots=True)
class PromptSize:
    """A prompt of ``bytes`` without the spaces between its words, of which long runs are one token, for ``model``."""

    bytes: int
    model: ModelInfo

    @classmethod
    def of(cls, inference: Inference, model: ModelInfo) -> PromptSize:
        """Raises ApiError ``context_length_exceeded`` for one that cannot fit."""
        size = sum(len(word.encode("utf-8", "replace")) for text in text_of(inference) for word in text.split())
        if model.context and size > model.context * _MOST_BYTES_PER_TOKEN:
            raise context_exceeded()
        return cls(size, model)

    def check(self, read: int) -> None:
        """``read`` tokens of it were read. Raises ApiError ``context_length_exceeded`` when they fill the context: the
        rest was left out."""
        if read == self.model.context:
            raise context_exceeded()
        if read * _BYTES_PER_TOKEN < self.bytes:
            logger.warning(
                "Ollama read {} tokens of a prompt of {} bytes: it probably left out the oldest messages. A larger "
                "context (node.models.NAME.context for {}) keeps them",
                read,
                self.bytes,
                self.model.id,
            )
