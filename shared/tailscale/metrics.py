"""The counters of tailscaled, in Prometheus' text form: of the whole machine, not of one peer."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

_LINE = re.compile(r"([A-Za-z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True, slots=True)
class Sample:
    name: str
    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True, slots=True)
class Metrics:
    samples: tuple[Sample, ...]

    @classmethod
    def read(cls, body: str) -> Metrics:
        """Lines that are not samples are passed over."""
        return cls(tuple(_samples(body)))

    def total(self, name: str, **labels: str) -> float:
        """The sum of the samples that have these labels, among others: 0 where there is none."""
        return sum(
            sample.value
            for sample in self.samples
            if sample.name == name and labels.items() <= dict(sample.labels).items()
        )

    @property
    def relayed_bytes(self) -> float:
        """Through a relay, both ways. Growth while a peer is spoken to means that the path is relayed."""
        directions = ("tailscaled_inbound_bytes_total", "tailscaled_outbound_bytes_total")
        return sum(self.total(name, path="derp") for name in directions)

    @property
    def dropped_by_policy(self) -> float:
        """Packets from peers that the policy kept out. Growth means that somebody knocks who may not come in."""
        return self.total("tailscaled_inbound_dropped_packets_total", reason="acl")


def _samples(body: str) -> Iterator[Sample]:
    for line in body.split("\n"):
        if not (match := _LINE.match(line)):
            continue
        name, labels, value = match.groups()
        try:
            yield Sample(name, dict(_LABEL.findall(labels or "")), float(value))
        except ValueError:
            continue
