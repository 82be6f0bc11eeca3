"""Body of ``POST /v1/completions``: one text that the model goes on with."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from shared.contract.chat_completions import SampledBody


def _one_prompt(prompt: Any) -> Any:
    """OpenAI allows several prompts, and prompts of token ids; a list of one text is that text."""
    if isinstance(prompt, list):
        if len(prompt) == 1 and isinstance(prompt[0], str):
            return prompt[0]
        raise ValueError("one text at a time is supported here, and no token ids")
    return prompt


class CompletionBody(SampledBody):
    """``suffix`` is what comes behind the completion, for models that fill a gap."""

    prompt: Annotated[str, BeforeValidator(_one_prompt), Field(min_length=1)]
    suffix: str | None = None
    echo: bool | None = None
    logprobs: int | None = Field(default=None, ge=0, le=5)
    best_of: Literal[1] | None = None
