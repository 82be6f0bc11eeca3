"""What is told of one answer while it runs: events for whoever watches, counts for Prometheus, its text for whoever
asked for it. Nothing here happens per streamed event."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from node.api.compose import Composed
from node.api.replies import to_json
from node.api.voice import Voice
from node.services import Services
from shared.contract.errors import ApiError
from shared.link.call import Call

# Bytes of what was said, in one event: hundreds of them are kept.
_MAX_CONTENT = 64 << 10


class Story:
    """``outcome`` is a finish reason, "stopped", "cancelled", or a code of errors."""

    def __init__(self, call: Call, node: Services) -> None:
        self.outcome = "cancelled"
        self.wants_text = False
        self._call = call
        self._node = node
        self._began = time.monotonic()
        self._first_token_at: float | None = None
        self._queued = False
        self._composed: Composed | None = None
        self._captured = False
        self._text = ""

    def asked(self, composed: Composed) -> None:
        """The request is understood."""
        call, settled = self._call, composed.settled
        self._composed = composed
        self._captured = self._node.events.capturing
        self.wants_text = self._captured or composed.prompt.heard is not None
        content = {"content": _bounded(composed.inference.content)} if self._captured else {}
        self._tell(
            "request",
            request_id=call.request_id,
            surface=call.surface.name,
            model=composed.inference.model,
            chat_type=composed.chat_type,
            principal=call.principal,
            stream=call.stream,
            dropped=composed.dropped,
            added=list(settled.added),
            forced=list(settled.forced),
            **content,
        )

    def queued(self, place: int) -> None:
        """Told once: every place of everyone who waits would leave no room for what happens."""
        if not self._queued:
            self._queued = True
            self._tell("queued", position=place)

    def started(self, waited: float) -> None:
        """``waited`` seconds for a slot."""
        self._node.metrics.queue.observe(waited)
        if self._node.events.watched:
            self._tell("started", waited=round(waited, 3))

    def first_token(self, seconds: float) -> None:
        """``seconds`` since the request came."""
        self._first_token_at = time.monotonic()
        self._node.metrics.first_token.observe(seconds)
        if self._node.events.watched:
            self._tell("first_token", seconds=round(seconds, 3))

    async def heard(self, voice: Voice) -> None:
        """The answer has ended well or was stopped, and its text is known. Raises ApiError when it cannot be kept."""
        if not self.wants_text or self._composed is None:
            return
        self._text = voice.said
        if self._composed.prompt.heard is not None:
            await self._composed.prompt.heard(self._text)

    def failed(self, error: ApiError) -> None:
        self.outcome = error.code
        self._tell("error", code=error.code)

    def ended(self) -> None:
        """Once, however it ended."""
        usage = self._call.tally.usage()
        self._node.metrics.ended(self._call.surface.name, self.outcome, usage)
        if self._first_token_at is not None and self._call.stream:  # else nobody looks when tokens come
            self._node.metrics.spoke(time.monotonic() - self._first_token_at, usage)
        content = {"content": self._text.encode()[:_MAX_CONTENT].decode(errors="ignore")} if self._captured else {}
        seconds = round(time.monotonic() - self._began, 3)
        self._tell("finished", outcome=self.outcome, usage=usage.to_wire(), seconds=seconds, **content)

    def _tell(self, kind: str, **fields: Any) -> None:
        self._node.events.publish(kind, chat_id=self._call.chat_id, **fields)


def _bounded(content: Mapping[str, Any]) -> dict[str, Any]:
    """What was asked, unless it is too much for an event."""
    size = len(to_json(content))
    return dict(content) if size <= _MAX_CONTENT else {"left_out": f"{size} bytes"}
