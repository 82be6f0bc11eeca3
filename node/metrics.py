"""What the node counts, for Prometheus."""

from __future__ import annotations

from shared import metrics
from shared.contract.chat import Usage


class Metrics(metrics.Metrics):
    def __init__(self) -> None:
        super().__init__(
            "node",
            tokens="Tokens read and written",
            first_token="From the request to the runtime's first token, queue included",
        )
        self.answers = self.counters("answers", "Answers ended, by outcome", "surface", "outcome")

    def ended(self, surface: str, outcome: str, usage: Usage) -> None:
        """Count one answer, however it ended."""
        self.answers.count(surface, outcome)
        self.count_tokens(usage)
