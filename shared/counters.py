"""Labelled Prometheus counters that are cheap to count."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter


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
