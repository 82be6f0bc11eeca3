"""What a deployable counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from shared.contract.usage import Usage

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
        self.first_token = self.histogram("first_token_seconds", first_token, _FIRST_TOKEN_BUCKETS)
        self.loop_blocked = self.histogram(
            "loop_blocked_seconds",
            "Times that the event loop stood still for more than 250 ms, and for how long",
            _BLOCKED_BUCKETS,
        )

    def counters(self, name: str, text: str, *labels: str) -> Counters:
        return Counters(self._prefix + name, text, labels, self._registry)

    def histogram(self, name: str, text: str, buckets: Sequence[float]) -> Histogram:
        return Histogram(self._prefix + name, text, buckets=buckets, registry=self._registry)

    def gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        """A value read when Prometheus asks."""
        Gauge(self._prefix + name, text, registry=self._registry).set_function(read)

    def gauges(self, name: str, text: str, label: str, read: Callable[[], Mapping[str, float]]) -> None:
        """A value for each of those that there are when Prometheus asks, by ``label``: they come and go, and leave
        nothing behind."""
        self._registry.register(_Gauges(self._prefix + name, text, label, read))

    def count_tokens(self, usage: Usage) -> None:
        self._tokens.count("read", amount=usage.prompt_tokens)
        self._tokens.count("written", amount=usage.completion_tokens)

    def render(self) -> bytes:
        return generate_latest(self._registry)

    def to_json(self) -> dict[str, Any]:
        """The same for people, by name without the prefix: a number, numbers by label ({"stop": 3}, one dict within
        another for two labels), or of a histogram count, mean, p50 and p95, the last two read off its buckets."""
        found: dict[str, Any] = {}
        for family in self._registry.collect():
            read = _distribution if family.type == "histogram" else _values
            found[family.name.removeprefix(self._prefix)] = read(family.samples)
        return found


class _Gauges(Collector):
    def __init__(self, name: str, text: str, label: str, read: Callable[[], Mapping[str, float]]) -> None:
        self._about = name, text, label
        self._read = read

    def describe(self) -> Iterator[GaugeMetricFamily]:
        name, text, label = self._about
        yield GaugeMetricFamily(name, text, labels=[label])

    def collect(self) -> Iterator[GaugeMetricFamily]:
        (family,) = self.describe()
        for key, value in self._read().items():
            family.add_metric([key], value)
        yield family


def _values(samples: Sequence[Sample]) -> Any:
    found: dict[str, Any] = {}
    for sample in samples:
        if sample.name.endswith("_created"):  # when the counter was made, which prometheus_client adds
            continue
        if not sample.labels:
            return sample.value
        *outer, last = sample.labels.values()
        inner = found
        for key in outer:
            inner = inner.setdefault(key, {})
        inner[last] = sample.value
    return found


def _distribution(samples: Sequence[Sample]) -> dict[str, float | None]:
    """Of a histogram without labels."""
    buckets = [(float(sample.labels["le"]), sample.value) for sample in samples if sample.name.endswith("_bucket")]
    total = next(sample.value for sample in samples if sample.name.endswith("_sum"))
    number = buckets[-1][1]
    mean = round(total / number, 6) if number else None
    return {"count": number, "mean": mean, "p50": _quantile(buckets, 0.5), "p95": _quantile(buckets, 0.95)}


def _quantile(buckets: Sequence[tuple[float, float]], share: float) -> float | None:
    """As PromQL's histogram_quantile: as if a bucket's values lay evenly in it; past the last bound, that bound. None
    without values."""
    wanted = share * buckets[-1][1]
    below, before = 0.0, 0.0
    for bound, upto in buckets[:-1]:
        if upto >= wanted > 0:
            return round(below + (bound - below) * (wanted - before) / (upto - before), 6)
        below, before = bound, upto
    return below if wanted else None
