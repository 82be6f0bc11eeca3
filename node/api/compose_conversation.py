"""One more message in a conversation that the node keeps: what was said before stands in front of it, cut from its
oldest turn where the model's context ends."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from node.api.conversations import conversations_of
from node.api.system import system_prompt
from node.api.way import Asking, Prompt
from node.conversations.conversations import Exchange
from node.runtime import Inference, Runtime
from node.services import Services
from shared.asgi.request_id import new_id
from shared.contract import sse
from shared.contract.body import BYTES_PER_TOKEN
from shared.contract.conversation import ConversationBody
from shared.contract.errors import ApiError
from shared.link.call import Call

# Of the context, at least this share is left to the answer where it may be that long.
_ANSWER_SHARE = 4
# Tokens of a chat template around one message, rounded up.
_PER_MESSAGE = 8
# The runtime is asked so often how long a prompt is; each time a proportional cut comes closer.
_MOST_COUNTS = 4


@asynccontextmanager
async def conversing(body: ConversationBody, call: Call, node: Services) -> AsyncIterator[Exchange]:
    """The conversation that ``body`` names, or a new one, for one question. Raises ApiError ``not_supported``,
    ``payload_too_large``, ``concurrency_limited``."""
    conversations = conversations_of(node)
    if len(body.message.encode()) > conversations.max_message:
        most = conversations.max_message
        text = f"The message is longer than {most} bytes (node.conversations.max_message). Send a shorter one."
        raise ApiError("payload_too_large", text, param="message")
    async with conversations.exchange(call.principal, body.conversation_id or new_id()) as exchange:
        yield exchange


def write_conversation(body: ConversationBody, asking: Asking) -> Prompt:
    """``asking.held`` is the Exchange."""
    exchange: Exchange = asking.held
    asked_at = time.time()
    system = system_prompt(asking, body.metadata, own=False)
    messages = [{"role": "system", "content": system}] if system is not None else []
    # What the model said is cleaned as well: somebody may have had it say what a caller may not.
    messages += [{"role": said.role, "content": asking.clean(said.content)} for said in exchange.history]
    messages.append({"role": "user", "content": asking.clean(body.message)})
    parameters = {"temperature": body.temperature, "top_p": body.top_p, "stop": body.stop, "seed": body.seed}
    prompt = Prompt(
        {"messages": messages},
        {name: value for name, value in parameters.items() if value is not None},
        heard=lambda text: exchange.keep(body.chat_type, asked_at, body.message, text),
    )
    _tell(prompt, exchange.id, 0)

    def seen(inference: Inference, tokens: int) -> Inference:
        prompt.tokens = tokens
        _tell(prompt, exchange.id, len(messages) - len(inference.messages))
        return inference

    async def fit(inference: Inference) -> Inference:
        model = asking.node.models.status().model(inference.model) or asking.model  # which may be loaded by now
        return seen(*await _cut(inference, model.context, asking.node.runtime))

    def shorten(inference: Inference) -> Inference | None:
        turns = _turns(inference)
        if not turns:
            return None
        shorter = _from(inference, turns[0], [*turns, len(inference.messages) - 1][(len(turns) + 1) // 2])
        return seen(shorter, _estimate(shorter))

    prompt.fit, prompt.shorten = fit, shorten
    return prompt


def _tell(prompt: Prompt, id: str, cut: int) -> None:
    """Say in the answer which conversation it belongs to, and how many of its messages the model did not see."""
    told: dict[str, Any] = {"conversation_id": id, "truncated_messages": cut}
    prompt.fields.update(told)
    prompt.first = sse.encode(json.dumps(told, separators=(",", ":")), "conversation")


async def _cut(inference: Inference, context: int, runtime: Runtime) -> tuple[Inference, int]:
    """Without the oldest turns, where all of them would not leave room for an answer in ``context`` (tokens, 0 =
    unknown), and the tokens of that prompt, counted or guessed. The chat type's prompt and the question stay."""
    room = context - min(inference.max_tokens, context // _ANSWER_SHARE)
    for attempt in range(_MOST_COUNTS):
        turns = _turns(inference)
        if not context or not turns or _most(inference) <= room:
            break
        counted = await runtime.count_prompt(inference) if attempt < _MOST_COUNTS - 1 else None
        tokens = counted if counted is not None else _estimate(inference)
        if tokens <= room:
            return inference, tokens
        inference = _without(inference, turns, tokens - room, tokens / max(1, _size(inference)))
    return inference, _estimate(inference)


def _turns(inference: Inference) -> list[int]:
    """Where the questions of the turns stand that may be left out."""
    return [index for index, message in enumerate(inference.messages[:-1]) if message["role"] == "user"]


def _from(inference: Inference, first: int, end: int) -> Inference:
    """Without the messages from ``first`` to before ``end``."""
    return replace(inference, content={"messages": [*inference.messages[:first], *inference.messages[end:]]})


def _without(inference: Inference, turns: Sequence[int], excess: int, tokens_per_byte: float) -> Inference:
    """Without as many of the oldest turns as hold ``excess`` tokens, one at least. ``turns`` are the places of their
    questions."""
    messages = inference.messages
    first, last = turns[0], len(messages) - 1
    ends = [*turns[1:], last]
    end, gone = first, 0.0
    for following in ends:
        gone += sum(_bytes(message) for message in messages[end:following]) * tokens_per_byte
        end = following
        if gone >= excess:
            break
    return _from(inference, first, end)


def _bytes(message: dict[str, Any]) -> int:
    return len(message["content"].encode()) + _PER_MESSAGE * BYTES_PER_TOKEN


def _size(inference: Inference) -> int:
    return sum(map(_bytes, inference.messages))


def _estimate(inference: Inference) -> int:
    return _size(inference) // BYTES_PER_TOKEN


def _most(inference: Inference) -> int:
    """No prompt has more tokens: one stands for a byte at least, and templates bring 256 of their own at most."""
    return sum(len(message["content"].encode()) + 2 * _PER_MESSAGE for message in inference.messages) + 256
