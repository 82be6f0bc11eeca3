"""What is no wish: greetings, thanks, questions about the model, and all that it cannot do."""

from __future__ import annotations

from typing import Any

from models.corpus.dice import Dice, sentences
from models.corpus.wishes import Typist
from models.corpus.world import Kind, World

Exchange = tuple[str, str]


class SmallTalk:
    """Each method gives what the user says, not yet typed, and the answer in a chat about ``kind`` (None: home)."""

    def __init__(self, world: World, dice: Dice, typist: Typist) -> None:
        self._phrases: dict[str, Any] = world.phrases
        self._dice = dice
        self._typist = typist

    def hello(self, kind: Kind | None) -> Exchange:
        dice, hello = self._dice, self._phrases["hello"]
        if dice.often(0.2):
            return dice.of(hello["how"]), sentences(dice.of(hello["fine"]), self._invitation(kind))
        user = dice.of(hello["user"])
        if dice.often(0.15):
            name = (
                self._typist.nonsense() if dice.often(0.5) else dice.one("Anna", "Tom", "Maria", "Ben", "Priya", "Ali")
            )
            user = dice.one(f"hi, I am {name.title()}", f"my name is {name.title()}", f"hello, I'm {name.title()}")
        for time in ("morning", "evening", "afternoon"):
            if time in user:
                return user, sentences(f"Good {time}!", self._invitation(kind))
        return user, sentences(dice.of(hello["answer"]), self._invitation(kind))

    def goodbye(self) -> Exchange:
        turn = self._phrases[self._dice.one("thanks", "thanks", "bye")]
        return self._dice.of(turn["user"]), self._dice.of(turn["answer"])

    def accepted(self, kind: Kind | None) -> Exchange:
        turn = self._phrases["yes"]
        return self._dice.of(turn["user"]), self._dice.of(turn[kind or "home"])

    def about_model(self, kind: Kind | None) -> Exchange:
        """Also insults, praise, danger, other languages and whatever else has an answer of its own."""
        dice = self._dice
        turn = dice.of(self._phrases["talk"])
        answer = dice.of(turn["answer"])
        return dice.of(turn["user"]), answer if turn.get("alone") else sentences(answer, self.offer(kind))

    def elsewhere(self, kind: Kind | None) -> Exchange:
        dice, turn = self._dice, self._phrases["elsewhere"]
        topic, other = self._topic(), self._topic()
        words = {name: dice.of(turn[name]) for name in ("person", "language", "thing", "time")}
        city = dice.of(self._phrases["facts"]["city"])
        user = dice.of(turn["user"]).format(topic=topic, topic2=other, city=city, **words)
        return user, sentences(dice.of(turn["answer"]), self.offer(kind))

    def numbers(self, kind: Kind | None) -> Exchange:
        dice = self._dice
        one, two = dice.number(0, 999), dice.number(0, 99)
        task = f"{one} {dice.one('+', '-', '*', '/', 'x', 'plus', 'times', 'minus', 'divided by')} {two}"
        user = dice.one(task, f"what is {task}", f"{task} = ?", f"calculate {task}", f"how much is {task}")
        answer = next(turn["answer"] for turn in self._phrases["talk"] if "do the math" in turn["user"])
        return user, sentences(dice.of(answer), self.offer(kind))

    def unclear(self, kind: Kind | None) -> Exchange:
        dice, turn = self._dice, self._phrases["unclear"]
        user = dice.of(turn["user"]) if dice.often(0.4) else self._typist.mashed()
        if dice.often(0.25):
            user = " ".join(self._typist.nonsense() for _ in range(dice.number(1, 6)))
        return user, sentences(dice.of(turn["answer"]), dice.of(self._phrases["question"][kind or "home"]))

    def joke(self, kind: Kind | None) -> Exchange:
        dice, jokes = self._dice, self._phrases["jokes"]
        return dice.of(jokes["user"]), sentences(dice.one("", dice.of(jokes["lead"])), dice.of(jokes["texts"]))

    def details(self) -> Exchange:
        dice, turn = self._dice, self._phrases["details"]
        return dice.of(turn["user"]), sentences(dice.of(turn["answer"]), dice.of(turn["advice"]))

    def drink(self) -> Exchange:
        dice, drinks = self._dice, self._phrases["drinks"]
        name = dice.of(drinks["names"])
        return dice.of(drinks["user"]), dice.one(f"I would have {name}.", f"How about {name}?", f"Try {name}.")

    def offer(self, kind: Kind | None) -> str:
        return self._dice.of(self._phrases["offer"][kind or "home"])

    def question(self, kind: Kind | None) -> str:
        return self._dice.of(self._phrases["question"][kind or "home"])

    def _invitation(self, kind: Kind | None) -> str:
        return sentences(self.offer(kind) if self._dice.often(0.7) else "", self.question(kind))

    def _topic(self) -> str:
        dice = self._dice
        if dice.often(0.65):
            return dice.of(self._phrases["elsewhere"]["topics"])
        return " ".join(self._typist.nonsense() for _ in range(dice.number(1, 2)))
