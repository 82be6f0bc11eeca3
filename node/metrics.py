"""What the node counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Gauge, Histogram, generate_latest

from shared.contract.chat import Usage
from shared.counters import Counters

# Seconds; from an instant demo model to a long prefill on a CPU.
_FIRST_TOKEN_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """Registers in a registry of its own, so that two nodes in one process (tests) do not meet."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.answers = Counters(
            "hearthlink_node_answers", "Answers ended, by outcome", ("surface", "outcome"), registry
        )
        self.tokens = Counters("hearthlink_node_tokens", "Tokens read and written", ("direction",), registry)
        self.first_token = Histogram(
            "hearthlink_node_first_token_seconds",
            "From the request to the runtime's first token, queue included",
            buckets=_FIRST_TOKEN_BUCKETS,
            registry=self.registry,
        )

    def ended(self, surface: str, outcome: str, usage: Usage) -> None:
        """Count one answer, however it ended."""
        self.answers.count(surface, outcome)
        self.tokens.count("read", amount=usage.prompt_tokens)
        self.tokens.count("written", amount=usage.completion_tokens)

    def gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        """A value read when Prometheus asks."""
        Gauge(f"hearthlink_node_{name}", text, registry=self.registry).set_function(read)

    def render(self) -> bytes:
        return generate_latest(self.registry)
