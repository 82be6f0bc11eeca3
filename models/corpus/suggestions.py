"""Which item an answer suggests: one that meets what is meant, and that the conversation has not had."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from models.corpus.answers import Voice, wish
from models.corpus.choice import Chooser, compatible
from models.corpus.dice import Dice, sentences
from models.corpus.system_prompts import Setting
from models.corpus.world import KINDS, Facet, Item, Kind, World


@dataclass(slots=True)
class State:
    """What has been said so far: ``used`` are the names suggested, ``shown`` the newest of each kind, ``last`` the one
    that a question would be about."""

    setting: Setting
    used: set[str] = field(default_factory=set)
    facets: list[Facet] = field(default_factory=list)
    shown: dict[Kind, Item] = field(default_factory=dict)
    last: Item | None = None
    answer: str = ""  # the last one

    def show(self, item: Item) -> None:
        self.used.add(item.name)
        self.shown[item.kind] = item


class Suggestions:
    """Each method takes the state and writes the suggestion into it."""

    def __init__(self, world: World, dice: Dice, voice: Voice, chooser: Chooser) -> None:
        self._world = world
        self._dice = dice
        self._voice = voice
        self._chooser = chooser

    def suggest(self, state: State, kind: Kind, before: str = "") -> str:
        dice, meant = self._dice, self.meant(state, kind)
        stuck = self._world.phrases["stuck"]
        free = [item for item in self._world.find(kind, meant) if item.name not in state.used]
        if not meant and state.facets:
            before = dice.of(self._world.phrases["mismatch"]["answer"])
        elif not free:
            before = dice.of(stuck["more"] if self._world.find(kind, meant) else stuck["one"])
            meant = [facet for facet in meant if facet in state.facets[:1]] if len(meant) > 1 else []
            free = [item for item in self._world.find(kind, meant) if item.name not in state.used]
        if not free:
            meant, free = [], self.unused(state, self._world.items[kind])
        if state.setting.city and not state.used and not before and dice.often(0.6):
            before = f"In {state.setting.city},"
        return self.say(state, self.pick(state, free, meant), meant, before)

    def say(self, state: State, item: Item, facets: Sequence[Facet], before: str) -> str:
        state.show(item)
        state.last = item
        tip = not before.endswith(".")
        return self._voice.suggestion(item, facets, before, tip)

    def mixed(self, state: State) -> str:
        """In the home chat: two kinds to choose from."""
        dice = self._dice
        found: list[tuple[list[Item], list[Facet]]] = []
        for kind in dice.shuffled(KINDS):
            meant = [facet for facet in state.facets if kind in facet.leads]
            free = [item for item in self._world.find(kind, meant) if item.name not in state.used]
            if free and len(meant) == len(state.facets):
                found.append((free, self._chooser.in_order(meant)))
        if len(found) < 2:
            return self.suggest(state, found[0][0][0].kind if found else self._chooser.kind_for(state.facets))
        one, two = (self.pick(state, free, meant) for free, meant in found[:2])
        facets, state.last = found[0][1], two
        lead = f"for {wish(one.kind, facets)}, " if facets else ""
        verbs = {"dish": "order", "place": "go to", "activity": ""}
        first, second = (f"{verbs[item.kind]} {item.noun}".strip() for item in (one, two))
        options = dice.one(f"{lead}you could {first} or {second}.", f"{lead}you could {first}, or {second}.")
        return sentences(options, dice.of(self._world.phrases["tip"]["home"]))

    def meant(self, state: State, kind: Kind) -> list[Facet]:
        """The facets of the talk that ``kind`` has, and those of the app's facts that fit beside them."""
        meant = [facet for facet in state.facets if kind in facet.leads]
        if kind == state.setting.kind:
            for name in state.setting.facets:
                facet = self._world.facets[name]
                fits = all(compatible(facet, other) for other in meant)
                if len(meant) < 2 and facet not in meant and fits and self._world.find(kind, [*meant, facet]):
                    meant.append(facet)
        return self._chooser.in_order(meant)

    def pick(self, state: State, items: Sequence[Item], facets: Sequence[Facet]) -> Item:
        """One of ``items``, taken down as shown. When one of the kind was shown before, the next in a fixed circle of
        all: a model learns this from the last name alone, where "any but those before" would be lost on it. Else, in
        four cases of ten, the first in an order that goes by ``facets``, in four of ten of the others the second, and
        so on."""
        before = state.shown.get(items[0].kind)
        if before:
            chosen = min(items, key=lambda item: (_place(item.name) <= _place(before.name), _place(item.name)))
        else:
            wanted = "+".join(sorted(facet.name for facet in facets))
            order = sorted(items, key=lambda item: _place(f"{wanted}/{item.name}"))
            chosen = next((item for item in order if self._dice.often(0.4)), order[0])
        state.show(chosen)
        return chosen

    def unused(self, state: State, items: Sequence[Item]) -> list[Item]:
        return [item for item in items if item.name not in state.used] or list(items)


def _place(name: str) -> int:
    """In an order that means nothing."""
    return zlib.crc32(name.encode())
