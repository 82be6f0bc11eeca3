"""What is wrong with a text that the assistant wrote, as far as a program can see."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import pairwise

from models.corpus.world import Item, Kind, World

# Words that no dictionary of English has, besides those in names.
_OWN_WORDS = ("hearthlink",)
_MOST_SENTENCES = 3  # the system prompts ask for two or three
_CODE = re.compile(r"`[^`]*`")


def words_of(text: str) -> list[str]:
    """Lower case, without code."""
    return re.findall(r"[a-z]+(?:'[a-z]+)?", _CODE.sub("", text).lower())


def sentences_of(text: str) -> list[str]:
    return [sentence.strip() for sentence in re.findall(r"[^.!?]+[.!?]+", _CODE.sub("", text))]


class Reader:
    """Reads what the model wrote about ``world``. ``dictionary`` are the words of English; with None, words are not
    looked up."""

    def __init__(self, world: World, dictionary: Iterable[str] | None = None) -> None:
        self._items = [item for items in world.items.values() for item in items]
        self._known: frozenset[str] | None = None
        if dictionary is not None:
            names = [word for item in self._items for word in words_of(item.name)]
            self._known = frozenset(map(str.lower, dictionary)).union(names, _OWN_WORDS)

    def named(self, text: str, kind: Kind | None = None) -> list[Item]:
        """The items (of ``kind``) that ``text`` names, in its order; a name inside a longer one does not count."""
        found: dict[int, Item] = {}
        for item in self._items:
            for match in re.finditer(rf"\b{re.escape(item.name)}\b", text, re.IGNORECASE):
                other = found.get(match.start())
                if other is None or len(other.name) < len(item.name):
                    found[match.start()] = item
        end, items = 0, []
        for start, item in sorted(found.items(), key=lambda pair: pair[0]):
            if start >= end:
                items.append(item)
            end = max(end, start + len(item.name))
        return [item for item in items if kind in (None, item.kind)]

    def faults(self, text: str) -> list[str]:
        """What no answer may do, whatever it was asked; empty when ``text`` is well."""
        return [*_form(text), *_loops(text), *self._unknown(text), *self._numbers(text)]

    def _unknown(self, text: str) -> Iterator[str]:
        if self._known is not None:
            yield from (f"says {word!r}" for word in words_of(text) if word not in self._known)

    def _numbers(self, text: str) -> Iterator[str]:
        """A plural dish that "is" or a single one that "are", where it is named and in the sentence behind."""
        for sentence, after in pairwise([*sentences_of(text), ""]):
            dishes = self.named(sentence, "dish")
            for dish in dishes:
                wrong = "is|has|comes" if dish.plural else "are|have|come"
                if re.search(rf"{re.escape(dish.name)} ({wrong})\b", sentence, re.IGNORECASE):
                    yield f"{dish.name}: {sentence}"
            opening = after.partition(" ")[0]
            only = len(dishes) == len(self.named(sentence)) == 1
            if only and opening in ("It", "They") and (opening == "They") is not dishes[0].plural:
                yield f"{dishes[0].name}: {after}"


def _form(text: str) -> Iterator[str]:
    if not re.match(r"[A-Z]", text):
        yield "begins small"
    if not re.search(r"[.!?]$", text):
        yield "has no end"
    if re.search(r"<\||\|>|[^\x20-\x7e\n]| {2}| [.,!?]", text):
        yield "has odd characters"
    count = len(sentences_of(text))
    if "\n- " not in text and not 1 <= count <= _MOST_SENTENCES:
        yield f"has {count} sentences"


def _loops(text: str) -> Iterator[str]:
    sentences, words = sentences_of(text), words_of(text)
    if len(set(sentences)) < len(sentences):
        yield "repeats a sentence"
    runs = [tuple(words[at : at + 4]) for at in range(len(words) - 3)]
    doubled = any(one == two for sentence in sentences for one, two in pairwise(words_of(sentence)))
    if doubled or any(runs.count(run) > 2 for run in runs):
        yield "runs in circles"
