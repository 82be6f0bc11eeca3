"""Reading the text that Prometheus reads: the few samples that say how busy a server is."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping

_SAMPLE = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{(.*)\})?[ \t]+(\S+)", re.M)
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


class Samples:
    """The samples of one answer of /metrics."""

    def __init__(self, text: str) -> None:
        self._found = [(match[1], match[2] or "", match[3]) for match in _SAMPLE.finditer(text)]

    def total(self, *names: str, **labels: str) -> float | None:
        """The sum of the first of ``names`` that is there, whole names only, over everything but ``labels``: a server
        of several engines has a sample of each. None when there is none."""
        for name in names:
            values = list(self._of(name, labels))
            if values:
                return sum(values)
        return None

    def label(self, name: str, label: str) -> str:
        """Of the first sample of ``name``; "" where there is none."""
        return next((_labels(text).get(label, "") for found, text, _ in self._found if found == name), "")

    def _of(self, name: str, labels: Mapping[str, str]) -> Iterator[float]:
        for found, text, value in self._found:
            if found != name or not labels.items() <= _labels(text).items():
                continue
            try:
                number = float(value)
            except ValueError:
                continue
            if math.isfinite(number):
                yield number


def _labels(text: str) -> Mapping[str, str]:
    return dict(_LABEL.findall(text))
