"""What is wished for: facets that go together, and the kind that meets them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from models.corpus.dice import Dice
from models.corpus.world import KINDS, OPPOSITES, Facet, Kind, World


def compatible(one: Facet, other: Facet) -> bool:
    """Can both be meant at once?"""
    return frozenset((one.name, other.name)) not in OPPOSITES


class Chooser:
    def __init__(self, world: World, dice: Dice) -> None:
        self._world = world
        self._dice = dice
        self._order = {name: place for place, name in enumerate(world.facets)}

    def in_order(self, facets: Iterable[Facet]) -> list[Facet]:
        """As answers name them: the same two always in the same order, which is less to learn."""
        return sorted(facets, key=lambda facet: self._order[facet.name])

    def some_facets(self, kind: Kind | None) -> list[Facet]:
        """One or two facets, two of them so that something meets both."""
        dice, facets = self._dice, list(self._world.facets.values())
        first = self.facet(facets, kind)
        if dice.often(0.42):
            return [first]
        kinds: list[Kind] = [kind] if kind else [one for one in KINDS if one in first.leads] or list(KINDS)
        where: Kind = dice.of(kinds)
        both = [
            facet
            for facet in facets
            if facet is not first
            and compatible(facet, first)
            and not {facet.name, first.name} <= set(self._world.cuisines)
            and where in facet.leads
            and (where not in first.leads or self._world.find(where, [first, facet]))
        ]
        return [first, self.facet(both, where)] if both else [first]

    def facet(self, options: Sequence[Facet], kind: Kind | None) -> Facet:
        """Mostly one that the kind has, and a cuisine no more often than all the rest allow."""
        dice = self._dice
        for _ in range(8):
            facet = dice.of(options)
            if facet.name in self._world.cuisines and dice.often(0.5):
                continue
            if kind is None or kind in facet.leads or dice.often(0.12):
                return facet
        return dice.of(options)

    def kind_for(self, facets: Sequence[Facet]) -> Kind:
        fits: list[Kind] = [kind for kind in KINDS if self._world.find(kind, facets)]
        return self._dice.of(fits or KINDS)
