"""What a deployable counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from shared.contract.chat import Usage

# Seconds until the first token; from an instant demo model to a long queue, or a long prompt on a CPU.
_FIRST_TOKEN_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)

# Seconds for which an event loop stood still: from what a person notices to what a supervisor ends.
_BLOCKED_BUCKETS = (0.25, 0.5, 1, 2.5, 5, 10, 30)


class Counters:
    """A counter with labels. ``labels()`` of prometheus_client checks, converts and locks at every call; here each
    combination is looked up once. Keep label values few: routes, codes, outcomes."""

    def __init__(self, name: str, text: str, labels: tuple[str, ...], registry: CollectorRegistry) -> None:
        self._counter = Counter(name, text, labels, registry=registry)
        self._children: dict[tuple[str | int, ...], Counter] = {}

    def count(self, *labels: str | int, amount: float = 1) -> None:
        child = self._children.get(labels)
        if child is None:
            child = self._children[labels] = self._counter.labels(*labels)
        child.inc(amount)


class Metrics:
    """Names begin with ``hearthlink_PART_``. They are in a registry of its own, so that two of a part in one process
    (tests) do not meet."""

    def __init__(self, part: str, *, tokens: str, first_token: str) -> None:
        """``tokens`` and ``first_token`` say what exactly is counted and measured."""
        self._prefix = f"hearthlink_{part}_"
        self._registry = CollectorRegistry()
        self._tokens = self.counters("tokens", tokens, "direction")
        self.first_token = Histogram(
            f"{self._prefix}first_token_seconds", first_token, buckets=_FIRST_TOKEN_BUCKETS, registry=self._registry
        )

        self.loop_blocked = Histogram(
            f"{self._prefix}loop_blocked_seconds",
            "Times that the event loop stood still for more than 250 ms, and for how long",
            buckets=_BLOCKED_BUCKETS,
            registry=self._registry,
        )

    def counters(self, name: str, text: str, *labels: str) -> Counters:
        return Counters(self._prefix + name, text, labels, self._registry)

    def gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        """A value read when Prometheus asks."""
        Gauge(self._prefix + name, text, registry=self._registry).set_function(read)

    def count_tokens(self, usage: Usage) -> None:
        self._tokens.count("read", amount=usage.prompt_tokens)
        self._tokens.count("written", amount=usage.completion_tokens)

    def render(self) -> bytes:
        return generate_latest(self._registry)
