"""The servers that are known here, and which of them one is."""

from __future__ import annotations

from node.runtimes.client import Client
from node.runtimes.dialect import Dialect
from node.runtimes.llama_cpp import LlamaCpp
from node.runtimes.lm_studio import LMStudio
from node.runtimes.ollama import Ollama
from node.runtimes.openai_compatible import MLX, DockerModelRunner, OpenAI
from node.runtimes.sglang import SGLang
from node.runtimes.transport import Reply
from node.runtimes.vllm import VLLM

# In the order of preference when several run on one machine.
DIALECTS: tuple[type[Dialect], ...] = (LMStudio, LlamaCpp, VLLM, SGLang, Ollama, DockerModelRunner, MLX, OpenAI)


async def recognise(client: Client, models: Reply) -> type[Dialect]:
    """The dialect of the server that said ``models`` when it was asked for /models. Raises OSError or TimeoutError."""
    for dialect in DIALECTS:
        if await dialect.answers(client, models):
            return dialect
    return Dialect


def dialect_of(kind: str) -> type[Dialect] | None:
    """What ``node.runtime.kind`` names; None for those that are found out by asking."""
    return next((dialect for dialect in DIALECTS if dialect.kind == kind != Dialect.kind), None)
