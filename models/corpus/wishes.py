"""How people write what they want: wishes with one or two facets, and the noise of typing."""

from __future__ import annotations

import re
from collections.abc import Sequence

from models.corpus.dice import Dice, capital
from models.corpus.world import Facet, Kind, World

_GREETINGS = ("hi, ", "hey, ", "hello, ", "so, ", "ok, ", "um, ", "please, ", "good evening, ")
_SHORT = (
    ("I am", "I'm"),
    ("I have no", "I've no"),
    ("cannot", "can't"),
    ("I would", "I'd"),
    ("what is", "what's"),
    ("What is", "What's"),
    ("you are", "you're"),
    ("it is", "it's"),
    ("do not", "don't"),
    ("we are", "we're"),
    ("It is", "It's"),
    ("We are", "We're"),
)


class Typist:
    """Writes what users type."""

    def __init__(self, world: World, dice: Dice) -> None:
        self._world = world
        self._phrases = world.phrases
        self._dice = dice

    def ask(self, kind: Kind | None) -> str:
        """A question for an item of ``kind``, or for anything."""
        dice, asking = self._dice, self._phrases["asking"]
        text = dice.of(asking[kind] if kind and dice.often(0.6) else asking["any"])
        return f"{text}{self.when()}"

    def when(self) -> str:
        return f" {self._dice.of(self._phrases['moment']['when'])}" if self._dice.often(0.25) else ""

    def wish(self, facets: Sequence[Facet], kind: Kind | None) -> str:
        dice = self._dice
        if dice.often(0.16):
            return self._words(facets)
        text = self._one(facets[0], kind) if len(facets) == 1 else self._two(facets, kind)
        if dice.often(0.12):
            filler = dice.some(self._phrases["filler"]["user"], dice.number(1, 4))
            filler.insert(dice.number(0, len(filler)), capital(text if text.endswith((".", "?")) else f"{text}."))
            return " ".join(filler)
        return dice.of(_GREETINGS) + text if dice.often(0.2) else text

    def refinement(self, facet: Facet) -> str:
        """A wish that follows an answer."""
        dice = self._dice
        want, clause, word = dice.of(facet.want), dice.of(facet.clause), dice.of(facet.word)
        return dice.one(
            f"{word}", f"{word} please", f"{word}?", f"hmm {clause}", f"and {word}?", f"ok but {word}", f"no, {clause}",
            f"ok then {want}", f"ok, {want}", f"{want} instead", f"I want {want}", f"but {clause}", clause,
            f"maybe {want}?", f"{want} please", f"what about {want}?", f"can it be {word}?", f"and if {clause}?",
            f"do you have {want}?", f"{want}?", want, f"actually, {clause}", f"what if {clause}?", f"rather {want}",
            f"nice, but {clause}", f"nice, and if {clause}?", f"I forgot to say that {clause}", f"{clause} though",
            f"give me {want}", f"now {want}",
        )  # fmt: skip

    def typed(self, text: str) -> str:
        """``text`` as fingers write it: now and then with a typo, in lower case, without its end."""
        dice = self._dice
        text = capital(text)
        if dice.often(0.12):
            text = self._typo(text)
        if dice.often(0.4):
            for long, short in _SHORT:
                text = text.replace(long, short)
        if dice.often(0.02):
            text = text.upper()
        elif dice.often(0.45):
            text = text.lower()
        if dice.often(0.4):
            return text.rstrip(".?!")
        if text[-1:].isalnum() and dice.often(0.4):
            return text + dice.one("?", ".", "!", "?", ".", "!!", "??", "...", " please", " :)")
        return text

    def nonsense(self) -> str:
        """A word that does not exist."""
        dice = self._dice
        parts = dice.number(1, 3)
        starts = "b d f g k l m n p r s t v z j h w ch sh th br gl st tr qu".split()
        return "".join(
            dice.of(starts) + dice.of("a e i o u ee ou".split()) + dice.of(["", "", "n", "r", "l", "s", "x"])
            for _ in range(parts)
        )

    def mashed(self) -> str:
        """Keys hit at random."""
        dice = self._dice
        letters = "asdfghjklqwertyuiopzxcvbnm"
        words = ["".join(dice.of(letters) for _ in range(dice.number(2, 11))) for _ in range(dice.number(1, 3))]
        return " ".join(words)

    def _words(self, facets: Sequence[Facet]) -> str:
        dice = self._dice
        word, when = dice.of(facets[0].word), self.when()
        if len(facets) == 1:
            return dice.one(
                word, f"{word}{when}", f"{word} please", f"{word}?", f"{word} ideas?", f"any {word} ideas{when}?"
            )
        other = dice.of(facets[1].word)
        return dice.one(
            f"{word} {other}", f"{word}, {other}", f"{word} and {other}", f"{other} {word}{when}",
            f"{word} but {other}", f"{word} + {other}", f"{other} and {word}{when}", f"{word} and {other} please",
        )  # fmt: skip

    def _one(self, facet: Facet, kind: Kind | None) -> str:
        dice, when = self._dice, self.when()
        want, clause, ask = dice.of(facet.want), dice.of(facet.clause), self.ask(kind)
        return dice.one(
            f"{clause}, {ask}?", f"I want {want}{when}.", f"{want}{when} please", f"{ask}? {capital(clause)}.",
            f"can you suggest {want}{when}?", f"{clause}.", f"{want}?", f"I would like {want}{when}.",
            f"I am looking for {want}{when}.", f"{clause}. {capital(ask)}?", f"what about {want}{when}?",
            f"we want {want}{when}.", f"{want}{when}", f"do you have {want}?", f"I feel like {want}{when}.",
            f"how about {want}?", f"{ask} if {clause}?", f"{want}, {ask}?", f"I need {want}{when}", f"show me {want}",
            f"is there {want}{when}?", f"do you know {want}?",
        )  # fmt: skip

    def _two(self, facets: Sequence[Facet], kind: Kind | None) -> str:
        dice, when = self._dice, self.when()
        one, two = facets
        want, clause = dice.of(one.want), dice.of(one.clause)
        other, reason, word = dice.of(two.want), dice.of(two.clause), dice.of(two.word)
        ask = self.ask(kind)
        return dice.one(
            f"{clause} and {reason}. {capital(ask)}?", f"I want {want}, and {reason}.",
            f"{want} please, {reason}{when}.", f"{reason}, can you suggest {want}?", f"{want}, {other}{when}?",
            f"{clause}, {reason}. {capital(ask)}?",
            f"I am looking for {want}{when}. {capital(reason)}.", f"{reason}. I would like {want}{when}.",
            f"{clause} and {reason}.", f"{clause} and {reason}, {ask}?", f"{clause}, and {reason}.",
            f"{ask}? {capital(clause)} and {reason}.", f"{clause} but {reason}.", f"I want {want} but {reason}.",
            f"{want} but {word}?", f"{want} and {word}", f"{want}, {word}{when}", f"{want} that is {word}{when}",
            f"I need {want}, {word}{when}.", f"can you suggest {want}, {word}?", f"{want} and {other}{when}?",
        )  # fmt: skip

    def _typo(self, text: str) -> str:
        dice = self._dice
        words = text.split(" ")
        index = dice.number(0, len(words) - 1)
        word = words[index]
        if len(word) > 4 and re.fullmatch(r"[A-Za-z]+", word):
            at = dice.number(1, len(word) - 2)
            dropped, doubled = word[:at] + word[at + 1 :], word[: at + 1] + word[at:]
            swapped = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
            words[index] = dice.one(dropped, doubled, swapped)
        return " ".join(words)
