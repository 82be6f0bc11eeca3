"""Answers of ``POST /api/chat``: as a stream those of a chat; as one object the text, and what it belongs to."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from node.formats.events import to_json
from node.formats.openai import CHAT, WholeAnswer


class ConversationAnswer(WholeAnswer):
    def body(self, extra: Mapping[str, Any], reason: str | None = None) -> bytes:
        """``{"response", "model", "finish_reason", "usage"}`` with the ``extra`` fields."""
        reading = self.reading
        return to_json(
            {
                "response": self.text(),
                **extra,
                "model": reading.model,
                "finish_reason": reason or reading.finish_reason or "stop",
                "usage": reading.tally.usage().to_wire(),
            }
        )


CONVERSATION = dataclasses.replace(CHAT, collecting=ConversationAnswer)
