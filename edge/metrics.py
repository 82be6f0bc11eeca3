"""What the edge counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from shared import metrics
from shared.contract.usage import Usage


@dataclass(frozen=True, slots=True)
class NodeState:
    """One node, as of now. The last three are None where it is not in a tailnet, or nobody knows."""

    name: str
    connected: bool
    online: bool | None = None
    relayed: bool | None = None
    round_trip: float | None = None


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

    def nodes(self, read: Callable[[], Iterable[NodeState]]) -> None:
        """Gauges of the nodes that there are when Prometheus asks: they come and go, and leave nothing behind."""
        self._registry.register(_Nodes(self._prefix, read))


class _Nodes(Collector):
    def __init__(self, prefix: str, read: Callable[[], Iterable[NodeState]]) -> None:
        self._prefix = prefix
        self._read = read

    def describe(self) -> Iterator[GaugeMetricFamily]:
        return self._gauges({})

    def collect(self) -> Iterator[GaugeMetricFamily]:
        return self._gauges({node.name: node for node in self._read()})

    def _gauges(self, nodes: Mapping[str, NodeState]) -> Iterator[GaugeMetricFamily]:
        for field, name, text in (
            ("connected", "node_connected", "1 while a link to the node stands"),
            ("online", "node_online", "1 while the tailnet lists the node's machine as online"),
            ("relayed", "node_relayed", "1 while the node is reached through a relay, not directly"),
            ("round_trip", "node_round_trip_seconds", "Of the last ping through the tailnet"),
        ):
            family = GaugeMetricFamily(self._prefix + name, text, labels=["node"])
            for node in nodes.values():
                if (value := getattr(node, field)) is not None:
                    family.add_metric([node.name], float(value))
            yield family
