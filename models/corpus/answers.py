"""What the assistant says about items. An answer names what was asked for before it names the item: a model this small
then has the wish in plain words right before the word that it must choose."""

from __future__ import annotations

from collections.abc import Sequence

from models.corpus.dice import Dice, capital, sentences
from models.corpus.world import Facet, Item, Kind, World

_VERBS: dict[Kind, tuple[str, ...]] = {
    "dish": ("order", "try", "I would order", "go for", "I would take"),
    "place": ("try", "head to", "I would go to", "go to", "visit"),
    "activity": ("", "", "you could", "I would say:"),
}
_BARE: dict[Kind, tuple[str, ...]] = {
    "dish": ("my pick is", "how about", "I suggest"),
    "place": ("how about", "my pick is", "I suggest"),
    "activity": ("here is an idea:", "my idea:", "try this:", "why not"),
}
_ADVERBS = ("indoors", "outside", "on foot", "in the sun", "at home", "in a bowl")


def wish(kind: Kind, facets: Sequence[Facet]) -> str:
    """ "something cheap and vegetarian to share": what ``facets`` (those that the kind has) ask for."""
    adjectives: list[str] = []
    phrases: dict[str, list[str]] = {}
    for facet in facets:
        lead = facet.leads[kind].lead
        first, _, rest = lead.partition(" ")
        if lead in _ADVERBS:
            phrases.setdefault("", []).append(lead)
        elif rest:
            phrases.setdefault(first, []).append(rest)
        else:
            adjectives.append(lead)
    words = ["somewhere" if kind == "place" else "something"]
    if adjectives:
        words.append(" and ".join(adjectives))
    for first in sorted(phrases, key=["", "with", "to", "for"].index):
        words.append(f"{first} {' and '.join(phrases[first])}".strip())
    return " ".join(words)


class Voice:
    """Writes answers. Facets that the item's kind does not have must be left out by the caller."""

    def __init__(self, world: World, dice: Dice) -> None:
        self._phrases = world.phrases
        self._dice = dice

    def suggestion(self, item: Item, facets: Sequence[Facet], before: str = "", tip: bool = True) -> str:
        """One to three sentences that suggest ``item``; ``before`` opens the first and may end it ("Sure.")."""
        asks = bool(facets) and (not before or before.endswith(":")) and self._dice.often(0.4)
        first = self._asking(item, facets) if asks else self._plain(item, facets)
        if before:
            keep = before.endswith(".") or first.startswith("I ")
            first = f"{before} {capital(first) if keep else first[:1].lower() + first[1:]}"
        third = self._third(item) if tip and not asks and "?" not in before else ""
        return sentences(first, self.reason(item, facets), third)

    def reason(self, item: Item, facets: Sequence[Facet]) -> str:
        """One sentence on how the item is and what it does for the wish."""
        dice, it, look = self._dice, item.it, self._dice.of(item.looks)
        whys = [item.does(facet.leads[item.kind].why) for facet in facets]
        being = f"{it} {item.does('is')} {look}"
        if not whys:
            return f"{being}."
        if len(whys) > 1:
            return dice.one(
                f"{it} {whys[0]} and {whys[1]}.", f"{it} {whys[1]} and {whys[0]}.", f"{being}, and {it} {whys[0]}."
            )
        return dice.one(f"{being}, and {it} {whys[0]}.", f"{it} {whys[0]}.", f"{being}, and {it} {whys[0]}.")

    def list_of(self, items: Sequence[Item], facets: Sequence[Facet]) -> str:
        """A list in markdown, one item a line."""
        kind = items[0].kind
        what = {"dish": "dishes", "place": "places", "activity": "ideas"}[kind]
        named = wish(kind, facets) if facets else ""
        if named and " for " not in named:
            what = f"ideas for {named}"
        lines = [f"- **{capital(item.name)}**: {self._dice.of(item.looks)}." for item in items]
        return f"Here are three {what}:\n\n" + "\n".join(lines)

    def why(self, item: Item, facets: Sequence[Facet]) -> str:
        look = self._dice.of(item.looks)
        what = item.noun if item.kind == "dish" else "that idea" if item.kind == "activity" else "that place"
        it = "they are" if item.plural else "it is"
        more = [f"{item.it} {item.does(facet.leads[item.kind].why)}." for facet in facets[:1]]
        return sentences(f"I like {what} because {it} {look}.", *more)

    def about(self, dish: Item) -> str:
        come = dish.does("comes")
        return sentences(f"the {dish.name} {come} from the {dish.cuisine} kitchen.", self.reason(dish, ()))

    def _plain(self, item: Item, facets: Sequence[Facet]) -> str:
        dice, kind = self._dice, item.kind
        if not facets:
            start = dice.of(_VERBS[kind] + _BARE[kind])
            end = "?" if start in ("how about", "why not") else self._end(kind)
            return f"{start} {item.noun}{end}".strip()
        named = wish(kind, facets)
        start = "if you want" if " for " in named else "for"
        return f"{start} {named}, {self._advice(item)}{self._end(kind)}"

    def _asking(self, item: Item, facets: Sequence[Facet]) -> str:
        return f"{wish(item.kind, facets)}? {capital(self._advice(item))}{self._end(item.kind)}"

    def _advice(self, item: Item) -> str:
        return f"{self._dice.of(_VERBS[item.kind])} {item.noun}".strip()

    def _end(self, kind: Kind) -> str:
        return self._dice.one(".", "!") if kind == "activity" else "."

    def _third(self, item: Item) -> str:
        dice = self._dice
        if item.kind == "activity" and dice.often(0.6):
            return f"all you need is {item.need}."
        return dice.of(self._phrases["tip"][item.kind]) if dice.often(0.35) else ""
