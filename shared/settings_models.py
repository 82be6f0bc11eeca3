"""``[node.models.NAME]`` and ``[node.conversations]``: one named field each, with unit, default and bounds."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from shared.settings_fields import Bytes, Seconds, Texts
from shared.settings_sections import DAY, KIB, MIB, Section


class SamplingSettings(Section):
    """Parameters of requests; what is not set is left alone."""

    temperature: float | None = Field(default=None, ge=0, le=2, description="How freely the model chooses its words.")
    max_tokens: int | None = Field(default=None, ge=1, le=1_000_000, description="The longest answer.")
    top_p: float | None = Field(default=None, gt=0, le=1, description="Of the likely words, this share in probability.")
    top_k: int | None = Field(default=None, ge=0, le=100_000, description="Of the likely words, so many. 0: all.")
    repeat_penalty: float | None = Field(default=None, gt=0, le=10, description="Above 1 words return less often.")
    stop: Texts | None = Field(default=None, max_length=4, description="Where an answer ends.")


class ModelSettings(SamplingSettings):
    """``[node.models.NAME]``: one model, as its runtime names it. The parameters are added to requests that lack
    them."""

    aliases: Texts = Field(default=[], max_length=32, description="Other names that callers may use for it.")
    context: int | None = Field(
        default=None, ge=128, le=16_777_216, description="Tokens of prompt and answer together, for each slot."
    )
    slots: int | None = Field(
        default=None, ge=1, le=256, description="Answers of it that run at once; of `embedded`. Else `node.slots`."
    )
    gpu_ratio: float | None = Field(default=None, ge=0, le=1, description="The share of its layers on the GPU.")
    gpu_layers: int | None = Field(default=None, ge=-1, description="Layers on the GPU; -1: all that fit.")
    threads: int | None = Field(default=None, ge=1, le=1024, description="Threads that compute it.")
    rope_frequency_base: float | None = Field(default=None, gt=0, description="For contexts beyond its own.")
    rope_frequency_scale: float | None = Field(default=None, gt=0, description="For contexts beyond its own.")
    pooling: Literal["mean", "cls", "last", "rank"] | None = Field(
        default=None,
        description="For a model of `embedded` that makes embeddings, or, with `rank`, one that ranks documents.",
    )
    idle_unload: Seconds | None = Field(
        default=None,
        gt=0,
        le=DAY,
        description="Unloaded when nobody used it for so long. Without it, `node.idle_unload`.",
    )
    together: Texts = Field(
        default=[], max_length=64, description="Models that may be in memory with it; all others make room for it."
    )
    force: SamplingSettings = Field(default_factory=SamplingSettings, description="These replace what a request says.")
    strip: Texts = Field(default=[], max_length=32, description="Parameters that are taken out of requests.")


class ConversationSettings(Section):
    """``[node.conversations]``: what `POST /api/chat` keeps."""

    keep: Literal["memory", "sqlite", "off"] = Field(
        default="memory",
        description="`memory`: gone with the process. `sqlite`: in the state folder. `off`: no conversations.",
    )
    lifetime: Seconds = Field(
        default=DAY, gt=0, le=3650 * DAY, description="A conversation is forgotten so long after its last message."
    )
    per_caller: int = Field(
        default=100, ge=1, le=100_000, description="Conversations of one caller; the one longest unused makes room."
    )
    max_message: Bytes = Field(default=32 * KIB, ge=1, le=MIB, description="The longest message.")
    max_size: Bytes = Field(
        default=MIB,
        ge=4 * KIB,
        le=MIB,
        description="Of one conversation; its oldest turns are forgotten beyond it.",
    )
    max_total: Bytes = Field(
        default=256 * MIB, ge=MIB, description="Of all of them; the ones longest unused are forgotten beyond it."
    )
