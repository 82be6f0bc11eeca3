"""One row per API: path, body model, terminal marker, error framing, where usage stands."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from shared.contract import sse
from shared.contract.body import AnyBody
from shared.contract.chat import ChatBody
from shared.contract.chat_completions import ChatCompletionBody
from shared.contract.completions import CompletionBody
from shared.contract.conversation import ConversationBody
from shared.contract.embeddings import EmbeddingBody
from shared.contract.errors import ApiError
from shared.contract.messages import MessagesBody
from shared.contract.rerank import RerankBody
from shared.contract.responses import ResponsesBody
from shared.contract.snapshot import ModelKind

DONE = b"data: [DONE]\n\n"
MESSAGE_STOP = sse.encode(b'{"type":"message_stop"}', event="message_stop")


def _named_error(error: ApiError, request_id: str) -> bytes:
    return sse.encode(error.envelope(request_id), event="error")


def _data_error(error: ApiError, request_id: str) -> bytes:
    # OpenAI's SDKs raise on a truthy "error" key; an event name would be foreign there.
    return sse.encode(error.envelope(request_id))


def _responses_error(error: ApiError, request_id: str) -> bytes:
    # OpenAI's event has these fields; its SDKs raise on a truthy "error" key. How many events went before is not known
    # to whoever ends the stream.
    said = {"code": error.code, "message": error.message, "param": error.param}
    return _typed_error({**said, "error": {"type": error.kind.type, **said}, "sequence_number": 0}, request_id)


def _anthropic_error(error: ApiError, request_id: str) -> bytes:
    kind = "overloaded_error" if error.status == 503 else "api_error" if error.status >= 500 else error.kind.type
    return _typed_error({"error": {"type": kind, "message": error.message, "code": error.code}}, request_id)


def _typed_error(fields: Mapping[str, Any], request_id: str) -> bytes:
    frame = {"type": "error", **fields, "request_id": request_id}
    return sse.encode(json.dumps(frame, ensure_ascii=False, separators=(",", ":")), event="error")


@dataclass(frozen=True, slots=True)
class Surface:
    """How one API looks on the wire. ``named_events``: queued, loading and error are events of their own.
    ``terminal`` ends a good stream; ``frame_error(error, request_id)`` ends a bad one; never both. ``streams``: it has
    streams at all. ``kind`` of model answers it. ``last_events`` end a good stream where no marker does."""

    name: str
    path: str
    body: type[AnyBody]
    named_events: bool
    terminal: bytes
    frame_error: Callable[[ApiError, str], bytes]
    streams: bool = True
    kind: ModelKind = "chat"
    last_events: tuple[bytes, ...] = ()

    def ends(self, events: bytes) -> bool:
        """Whether the last of ``events``, which are whole, is the end of a good stream."""
        if self.terminal:
            return events.endswith(self.terminal)
        return events.removesuffix(b"\n\n").rpartition(b"\n\n")[2].startswith(self.last_events)

    def lacking(self) -> ApiError:
        """For a node whose runtime has no way for it."""
        text = f"The node's model runtime has no way to answer {self.path}. Its owner may add a model that has one."
        return ApiError("not_supported", text, should_retry=False)


SURFACES: Mapping[str, Surface] = MappingProxyType(
    {
        surface.name: surface
        for surface in (
            Surface("chat", "/v1/chat", ChatBody, True, DONE, _named_error),
            Surface("conversation", "/api/chat", ConversationBody, True, DONE, _named_error),
            Surface("openai.chat", "/v1/chat/completions", ChatCompletionBody, False, DONE, _data_error),
            Surface("openai.completions", "/v1/completions", CompletionBody, False, DONE, _data_error),
            Surface(
                "openai.responses",
                "/v1/responses",
                ResponsesBody,
                False,
                b"",
                _responses_error,
                last_events=(b"event: response.completed\n", b"event: response.incomplete\n"),
            ),
            Surface("anthropic.messages", "/v1/messages", MessagesBody, False, MESSAGE_STOP, _anthropic_error),
            Surface("rerank", "/v1/rerank", RerankBody, False, b"", _data_error, streams=False, kind="rerank"),
            Surface(
                "openai.embeddings",
                "/v1/embeddings",
                EmbeddingBody,
                False,
                b"",
                _data_error,
                streams=False,
                kind="embedding",
            ),
        )
    }
)
