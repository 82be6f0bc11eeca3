"""What the edge counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Gauge, Histogram, generate_latest

from shared.contract.chat import Usage
from shared.counters import Counters

# Seconds; from an instant demo model to a long queue.
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """Registers in a registry of its own, so that two edges in one process (tests) do not meet."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.requests = Counters(
            "hearthlink_edge_requests", "Requests, by route and status", ("route", "status"), registry
        )
        self.refusals = Counters("hearthlink_edge_refusals", "Errors answered, by code", ("code",), registry)
        self.chats = Counters("hearthlink_edge_chats", "Chats ended, by outcome", ("outcome",), registry)
        self.tokens = Counters("hearthlink_edge_tokens", "Tokens settled", ("direction",), registry)
        self.first_token = Histogram(
            "hearthlink_edge_first_token_seconds",
            "From the request to the first token, queue and node included",
            buckets=_BUCKETS,
            registry=registry,
        )

    def chat_ended(self, outcome: str, usage: Usage) -> None:
        self.chats.count(outcome)
        self.tokens.count("read", amount=usage.prompt_tokens)
        self.tokens.count("written", amount=usage.completion_tokens)

    def gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        """A value read when Prometheus asks."""
        Gauge(f"hearthlink_edge_{name}", text, registry=self.registry).set_function(read)

    def render(self) -> bytes:
        return generate_latest(self.registry)
