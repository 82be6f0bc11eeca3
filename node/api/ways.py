"""Which surface is answered how, one row each. How to add one stands at the top of ``node.api.way``."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from node.api.compose_chat import write_chat, write_chat_completion
from node.api.compose_completion import write_completion
from node.api.compose_conversation import conversing, write_conversation
from node.api.compose_embedding import shape_embedding, write_embedding
from node.api.compose_messages import OF_MESSAGES, write_messages
from node.api.compose_rerank import shape_rerank, write_rerank
from node.api.compose_responses import write_responses
from node.api.way import Way
from node.formats.completions import COMPLETIONS
from node.formats.conversation import CONVERSATION
from node.formats.messages import MESSAGES
from node.formats.openai import CHAT
from node.formats.responses import RESPONSES
from node.runtime import Api

WAYS: Mapping[str, Way] = MappingProxyType(
    {
        "chat": Way("chat", write_chat, CHAT),
        "openai.chat": Way("chat", write_chat_completion, CHAT),
        "openai.completions": Way("completions", write_completion, COMPLETIONS),
        "openai.embeddings": Way("embeddings", write_embedding, shape=shape_embedding, parameters=frozenset()),
        "openai.responses": Way("responses", write_responses, RESPONSES),
        "anthropic.messages": Way("messages", write_messages, MESSAGES, parameters=OF_MESSAGES),
        "rerank": Way("rerank", write_rerank, shape=shape_rerank, parameters=frozenset()),
        "conversation": Way("chat", write_conversation, CONVERSATION, before=conversing),
    }
)


def surfaces_of(apis: frozenset[Api]) -> tuple[str, ...]:
    """Names of the surfaces that a runtime with these routes has a way for."""
    return tuple(name for name, way in WAYS.items() if way.api in apis)
