"""Chance, as the grammar asks for it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Dice:
    """A seeded source of chance: the same seed gives the same throws."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def one(self, *options: T) -> T:
        return options[int(self._random.random() * len(options))]

    def of(self, options: Sequence[T]) -> T:
        return options[int(self._random.random() * len(options))]

    def some(self, options: Sequence[T], count: int) -> list[T]:
        return self._random.sample(options, count)

    def often(self, share: float) -> bool:
        return self._random.random() < share

    def number(self, low: int, high: int) -> int:
        return self._random.randint(low, high)

    def shuffled(self, options: Sequence[T]) -> list[T]:
        return self._random.sample(options, len(options))


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def sentences(*parts: str) -> str:
    """The parts that are not empty, each with a capital first letter."""
    return " ".join(capital(part) for part in parts if part)
