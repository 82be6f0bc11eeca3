"""What the node counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shared import metrics
from shared.contract.errors import CODES
from shared.contract.usage import Usage

# Seconds between two tokens: from a small model on a large GPU to a large one on a CPU.
_INTER_TOKEN_BUCKETS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 2, 5)
# Seconds in the queue.
_QUEUE_BUCKETS = (0.01, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
# Seconds for a model: from a small one that the disk's cache holds to a hundred gigabytes from a slow disk.
_LOAD_BUCKETS = (0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900)
_LOADS = frozenset({"loaded", "load_failed", "unloaded"})


class Metrics(metrics.Metrics):
    def __init__(self) -> None:
        super().__init__(
            "node",
            tokens="Tokens read and written",
            first_token="From the request to the runtime's first token, queue included",
        )
        self.answers = self.counters("answers", "Answers ended, by outcome", "surface", "outcome")
        self.errors = self.counters("errors", "Answers that ended in an error, by code", "code")
        self.loads = self.counters("loads", "Models loaded, not loaded and unloaded, by who wanted it", "event", "by")
        self.queue = self.histogram("queue_seconds", "From a request's arrival to its turn", _QUEUE_BUCKETS)
        self.inter_token = self.histogram(
            "inter_token_seconds", "Between two tokens: the mean of each answer", _INTER_TOKEN_BUCKETS
        )
        self.load = self.histogram("load_seconds", "Until a model was in memory", _LOAD_BUCKETS)

    def ended(self, surface: str, outcome: str, usage: Usage) -> None:
        """Count one answer, however it ended."""
        self.answers.count(surface, outcome)
        if outcome in CODES:
            self.errors.count(outcome)
        self.count_tokens(usage)

    def spoke(self, seconds: float, usage: Usage) -> None:
        """An answer took ``seconds`` from its first token to its end."""
        if usage.completion_tokens > 1:
            self.inter_token.observe(seconds / (usage.completion_tokens - 1))

    def heard(self, event: Mapping[str, Any]) -> None:
        """Count what the node tells of its models; ``event`` is one of ``node.events``."""
        kind = event["kind"]
        if kind in _LOADS:
            self.loads.count(kind, str(event.get("by", "")))
            if kind == "loaded" and (seconds := event.get("seconds")) is not None:
                self.load.observe(seconds)
