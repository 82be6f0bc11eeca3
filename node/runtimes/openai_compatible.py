"""Servers that need little or nothing beyond the common API: OpenAI's own, mlx_lm, Docker Model Runner."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

from node.runtime import PARAMETERS, Inference
from node.runtimes.client import Client
from node.runtimes.dialect import Dialect, Survey
from node.runtimes.transport import Reply
from shared.contract.snapshot import ModelInfo


class OpenAI(Dialect):
    name = "OpenAI"
    parameters = MappingProxyType(
        {name: name for name in PARAMETERS if name not in ("top_k", "min_p", "repeat_penalty", "echo", "suffix")}
    )

    @classmethod
    async def answers(cls, client: Client, models: Reply) -> bool:
        return urlsplit(client.base).hostname == "api.openai.com"

    def body(self, inference: Inference, model: ModelInfo) -> dict[str, Any]:
        body = super().body(inference, model)
        if inference.api == "chat":
            # Its newer models refuse the older name; everyone else knows that one.
            body["max_completion_tokens"] = body.pop("max_tokens")
        return body


class MLX(Dialect):
    name = "mlx_lm"
    parameters = MappingProxyType(
        {
            name: name
            for name in (
                "temperature", "top_p", "top_k", "min_p", "stop", "seed", "logit_bias", "logprobs", "top_logprobs",
                "tools", "tool_choice",
            )
        }
        | {"repeat_penalty": "repetition_penalty"}
    )  # fmt: skip

    @classmethod
    async def answers(cls, client: Client, models: Reply) -> bool:
        return models.server.startswith("BaseHTTP")


class DockerModelRunner(Dialect):
    """llama.cpp unless its URL names another engine; it loads whatever is named, and tells nothing of that."""

    name = "Docker Model Runner"
    parameters = MappingProxyType({name: name for name in PARAMETERS if name not in ("echo", "suffix")})
    places = ("http://127.0.0.1:12434/engines/v1",)
    loads_unasked = True

    @classmethod
    async def answers(cls, client: Client, models: Reply) -> bool:
        return "/engines/" in urlsplit(client.base).path

    async def survey(self, items: list[dict[str, Any]]) -> Survey:
        survey = await super().survey(items)
        return replace(survey, models=tuple(replace(model, state="available") for model in survey.models))
