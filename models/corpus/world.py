"""The small world: items (dishes, places, activities) and facets, what people ask of them."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Kind = Literal["place", "dish", "activity"]
KINDS: tuple[Kind, ...] = ("place", "dish", "activity")
_FILES: tuple[tuple[Kind, str], ...] = (("place", "places"), ("dish", "dishes"), ("activity", "activities"))
_HERE = Path(__file__).parent
# Facets that cannot be meant at once: the newer replaces the older.
OPPOSITES = frozenset(
    frozenset(pair.split())
    for pair in (
        "spicy mild,cheap fancy,light filling,warm cool,rain cool,rain outside,quiet lively,outside inside,kids date,"
        "group solo,date solo,date group,kids solo,meat vegetarian,meat vegan,fish vegetarian,fish vegan,"
        "vegetarian vegan,meat fish,breakfast late,noodles rice,soup rice,warm rain,comfort lively,comfort quiet,"
        "silly comfort,walk inside,view inside,sweet spicy,sweet mild,food coffee,walk outside,fancy date,inside rain,"
        "warm inside,cool outside,cool inside"
    ).split(",")
)


@dataclass(frozen=True, slots=True)
class Item:
    """``name`` is as an answer writes it, a dish without its article; ``looks`` complete "it is …"; ``also`` is what
    people call it; ``need`` (activities) completes "all you need is …"."""

    kind: Kind
    name: str
    suits: frozenset[str]
    looks: tuple[str, ...]
    plural: bool
    cuisine: str
    also: str
    need: str

    @property
    def noun(self) -> str:
        return f"the {self.name}" if self.kind == "dish" else self.name

    @property
    def it(self) -> str:
        return "they" if self.plural else "it"

    def does(self, predicate: str) -> str:
        """``predicate``, given for one thing ("has no meat"), agreeing with this item."""
        return plural(predicate) if self.plural else predicate


@dataclass(frozen=True, slots=True)
class Lead:
    """How answers speak of a facet: ``lead`` completes "something …", ``why`` completes "it …", items of the kind meet
    it when they suit one of ``tags``."""

    lead: str
    why: str
    tags: frozenset[str]


@dataclass(frozen=True, slots=True)
class Facet:
    name: str
    want: tuple[str, ...]
    clause: tuple[str, ...]
    word: tuple[str, ...]
    leads: dict[Kind, Lead]

    def met_by(self, item: Item) -> bool:
        lead = self.leads.get(item.kind)
        return lead is not None and bool(lead.tags & item.suits)


@dataclass(frozen=True, slots=True)
class World:
    items: dict[Kind, tuple[Item, ...]]
    facets: dict[str, Facet]
    cuisines: tuple[str, ...]
    phrases: dict[str, Any]

    def find(self, kind: Kind, facets: Sequence[Facet]) -> list[Item]:
        """The items of ``kind`` that meet all ``facets``."""
        return [item for item in self.items[kind] if all(facet.met_by(item) for facet in facets)]


def load_world() -> World:
    items: dict[Kind, tuple[Item, ...]] = {kind: _items(kind, _read(name)) for kind, name in _FILES}
    cuisines = tuple(sorted({item.cuisine for item in items["dish"]}))
    facets = {name: _facet(name, table) for name, table in _read("facets").items()}
    for cuisine in cuisines:
        facets[cuisine] = _cuisine(cuisine)
    return World(items, facets, cuisines, _read("phrases"))


def plural(predicate: str) -> str:
    """A predicate of one thing, said of several: "costs little", "is ready" become "cost little", "are ready"."""
    verb, _, rest = predicate.partition(" ")
    irregular = {"is": "are", "has": "have", "does": "do"}
    return f"{irregular.get(verb, verb.removesuffix('s'))} {rest}".strip()


def a(noun: str) -> str:
    return f"an {noun}" if noun[0] in "AEIOaeiou" else f"a {noun}"


def _read(name: str) -> dict[str, Any]:
    with (_HERE / f"{name}.toml").open("rb") as file:
        return tomllib.load(file)


def _items(kind: Kind, tables: dict[str, Any]) -> tuple[Item, ...]:
    return tuple(_item(kind, name, table) for name, table in tables.items())


def _item(kind: Kind, name: str, table: dict[str, Any]) -> Item:
    suits = set(table["suits"].split())
    cuisine = table.get("cuisine", "")
    if kind == "dish":
        suits.add(cuisine)
        if not suits & {"spicy", "sweet"}:
            suits.add("mild")
    return Item(
        kind=kind,
        name=name,
        suits=frozenset(suits),
        looks=tuple(table["is"]),
        plural=table.get("they", False),
        cuisine=cuisine,
        also=table.get("also", ""),
        need=table.get("need", ""),
    )


def _facet(name: str, table: dict[str, Any]) -> Facet:
    leads: dict[Kind, Lead] = {}
    for kind in KINDS:
        if given := table.get(kind):
            leads[kind] = Lead(given["lead"], given["why"], frozenset(given.get("tag", name).split()))
    return Facet(name, tuple(table["want"]), tuple(table["clause"]), tuple(table["word"]), leads)


def _cuisine(name: str) -> Facet:
    want = (f"{name} food", f"something {name}", f"{a(name)} meal", f"{a(name)} dish", f"some {name} food")
    clause = (f"I love {name} food", f"I am in the mood for {name} food", f"I am craving {name} food")
    word = (name, f"{name} food", f"{name} please", f"{name} restaurant")
    tags = frozenset((name,))
    dish = Lead(name, f"comes from the {name} kitchen", tags)
    place = Lead(f"with {name} food", f"serves {name} food", tags)
    return Facet(name, want, clause, word, {"dish": dish, "place": place})
