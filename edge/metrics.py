"""What the edge counts, for Prometheus."""

from __future__ import annotations

from shared import metrics
from shared.contract.chat import Usage


class Metrics(metrics.Metrics):
    def __init__(self) -> None:
        super().__init__(
            "edge",
            tokens="Tokens settled",
            first_token="From the request to the first token, queue and node included",
        )
        self.requests = self.counters("requests", "Requests, by route and status", "route", "status")
        self.refusals = self.counters("refusals", "Errors answered, by code", "code")
        self.chats = self.counters("chats", "Chats ended, by outcome", "outcome")

    def chat_ended(self, outcome: str, usage: Usage) -> None:
        self.chats.count(outcome)
        self.count_tokens(usage)
