"""What llama.cpp b11549 writes on ``/v1/responses`` and ``/v1/messages``, for a fake runtime's ``routes``.

Text and ends were recorded from that build; calls and thoughts are as its server-task.cpp writes them. Nothing is added
that it leaves out: no index, no number, no model before the end.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from tests.fake_scripts import Script

if TYPE_CHECKING:
    from tests.fake_runtime import Exchange

RESPONSES = "/v1/responses"
MESSAGES = "/v1/messages"
USAGE = (7, 5)  # tokens of the prompt, of which two were cached, and of the answer
WORDS = ("one ", 'a "quote" ', "søster ", "日本 ", "🌍\n")
TEXT = "".join(WORDS)
THOUGHT = ("hm, ", "so")
ARGUMENTS = ('{"city":', '"Paris"}')


def named(kind: str, **fields: Any) -> bytes:
    data = json.dumps({"type": kind, **fields}, ensure_ascii=False, separators=(",", ":")).encode()
    return b"event: %s\ndata: %s\n\n" % (kind.encode(), data)


def responses_text(words: Iterable[str] = WORDS) -> list[bytes]:
    item = {"content": [], "id": "msg_x", "role": "assistant", "status": "in_progress", "type": "message"}
    return [
        named("response.output_item.added", item=item),
        named("response.content_part.added", item_id="msg_x", part={"type": "output_text", "text": ""}),
        *(named("response.output_text.delta", item_id="msg_x", delta=word) for word in words),
    ]


def responses_thought() -> list[bytes]:
    item = {"id": "rs_x", "summary": [], "type": "reasoning", "content": [], "encrypted_content": ""}
    return [
        named("response.output_item.added", item={**item, "status": "in_progress"}),
        *(named("response.reasoning_text.delta", delta=word, item_id="rs_x") for word in THOUGHT),
    ]


def responses_call(id: str = "c1", name: str = "get_weather") -> list[bytes]:
    item = {"id": f"fc_{id}", "arguments": "", "call_id": f"call_{id}", "name": name, "type": "function_call"}
    return [
        named("response.output_item.added", item={**item, "status": "in_progress"}),
        *(named("response.function_call_arguments.delta", delta=piece, item_id=f"fc_{id}") for piece in ARGUMENTS),
    ]


def responses_begin() -> list[bytes]:
    response = {"id": "resp_x", "object": "response", "status": "in_progress"}
    return [named("response.created", response=response), named("response.in_progress", response=response)]


def responses_end(completion_tokens: int = USAGE[1]) -> list[bytes]:
    """llama.cpp repeats each item as a whole first, which says nothing new."""
    usage = {
        "input_tokens": USAGE[0],
        "output_tokens": completion_tokens,
        "total_tokens": USAGE[0] + completion_tokens,
        "input_tokens_details": {"cached_tokens": 2},
    }
    done = {"type": "message", "status": "completed", "id": "msg_x", "content": [], "role": "assistant"}
    response = {"id": "resp_x", "object": "response", "created_at": 1, "status": "completed", "model": "fake-model"}
    return [
        named("response.output_item.done", item=done),
        named("response.completed", response={**response, "output": [done], "usage": usage}),
    ]


def messages_begin() -> list[bytes]:
    message = {"id": "chatcmpl-x", "type": "message", "role": "assistant", "content": [], "model": "fake-model"}
    usage = {"cache_read_input_tokens": 2, "input_tokens": USAGE[0] - 2, "output_tokens": 0}
    return [named("message_start", message={**message, "stop_reason": None, "stop_sequence": None, "usage": usage})]


def messages_text(words: Iterable[str] = WORDS, index: int = 0) -> list[bytes]:
    return [
        named("content_block_start", index=index, content_block={"type": "text", "text": ""}),
        *(named("content_block_delta", index=index, delta={"type": "text_delta", "text": word}) for word in words),
    ]


def messages_thought() -> list[bytes]:
    return [
        named("content_block_start", index=0, content_block={"type": "thinking", "thinking": ""}),
        *(
            named("content_block_delta", index=0, delta={"type": "thinking_delta", "thinking": word})
            for word in THOUGHT
        ),
    ]


def messages_call(index: int = 0, id: str = "c1", name: str = "get_weather") -> list[bytes]:
    return [
        named("content_block_start", index=index, content_block={"type": "tool_use", "id": id, "name": name}),
        *(
            named("content_block_delta", index=index, delta={"type": "input_json_delta", "partial_json": piece})
            for piece in ARGUMENTS
        ),
    ]


def messages_end(reason: str = "end_turn", sequence: str | None = None, blocks: int = 1) -> list[bytes]:
    delta = {"stop_reason": reason, "stop_sequence": sequence}
    return [
        *(named("content_block_stop", index=index) for index in range(blocks)),
        named("message_delta", delta=delta, usage={"output_tokens": USAGE[1]}),
        named("message_stop"),
    ]


def as_llama_cpp(pieces: Iterable[bytes]) -> Script:
    """Streams ``pieces``, one chunk each. A body without anything in it is the node's question whether there is such a
    route, and refused."""
    whole = list(pieces)

    async def script(exchange: Exchange) -> None:
        if not exchange.json.get("stream"):
            refusal = {"code": 400, "message": "'input' is required", "type": "invalid_request_error"}
            await exchange.respond(400, {"error": refusal})
            return
        await exchange.start_stream()
        for piece in whole:
            await exchange.send(piece)
        await exchange.end_stream()

    return script


def good_routes() -> Mapping[str, Script]:
    """Both routes, saying ``TEXT``."""
    return {
        RESPONSES: as_llama_cpp([*responses_begin(), *responses_text(), *responses_end()]),
        MESSAGES: as_llama_cpp([*messages_begin(), *messages_text(), *messages_end()]),
    }
