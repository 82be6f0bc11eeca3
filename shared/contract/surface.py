"""One row per API: path, body model, terminal marker, error framing, where usage stands."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from shared.contract import sse
from shared.contract.chat import AnyChatBody, ChatBody, CompletionBody
from shared.contract.errors import ApiError

DONE = b"data: [DONE]\n\n"


def _named_error(error: ApiError, request_id: str) -> bytes:
    return sse.encode(error.envelope(request_id), event="error")


def _data_error(error: ApiError, request_id: str) -> bytes:
    # OpenAI's SDKs raise on a truthy "error" key; an event name would be foreign there.
    return sse.encode(error.envelope(request_id))


@dataclass(frozen=True, slots=True)
class Surface:
    """How one API looks on the wire. ``named_events``: queued, loading and error are events of their own.
    ``terminal`` ends a good stream; ``frame_error(error, request_id)`` ends a bad one; never both."""

    name: str
    path: str
    body: type[AnyChatBody]
    named_events: bool
    terminal: bytes
    frame_error: Callable[[ApiError, str], bytes]


SURFACES: Mapping[str, Surface] = MappingProxyType(
    {
        surface.name: surface
        for surface in (
            Surface("chat", "/v1/chat", ChatBody, True, DONE, _named_error),
            Surface("openai.chat", "/v1/chat/completions", CompletionBody, False, DONE, _data_error),
        )
    }
)
