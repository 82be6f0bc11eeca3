"""Whole conversations: a setting, an opening, and what may follow it. A pure function of its seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from models.corpus.answers import Voice
from models.corpus.choice import Chooser, compatible
from models.corpus.dice import Dice, capital, sentences
from models.corpus.small_talk import Exchange, SmallTalk
from models.corpus.suggestions import State, Suggestions
from models.corpus.system_prompts import SystemPrompts
from models.corpus.wishes import Typist
from models.corpus.world import KINDS, Item, Kind, World, load_world

Message = tuple[str, str]  # role, text
Conversation = list[Message]
_DIETS = ("vegetarian", "vegan", "kids", "mild")  # wishes that a later one does not push out
# Said to ask for another idea, unless the answer before was a question.
_NO = ("no", "nope", "nah", "no thanks, another one", "no, something else")


def conversations(seed: int, count: int, *, turns: Sequence[int], world: World | None = None) -> Iterator[Conversation]:
    """``count`` conversations, each with a number of exchanges drawn from ``turns``."""
    grammar = Grammar(world or load_world(), Dice(seed))
    for _ in range(count):
        yield grammar.conversation(turns)


class Grammar:
    def __init__(self, world: World, dice: Dice) -> None:
        self._world = world
        self._dice = dice
        self._typist = Typist(world, dice)
        self._talk = SmallTalk(world, dice, self._typist)
        self._voice = Voice(world, dice)
        self._prompts = SystemPrompts(world, dice)
        self._chooser = Chooser(world, dice)
        self._suggestions = Suggestions(world, dice, self._voice, self._chooser)

    def conversation(self, turns: Sequence[int]) -> Conversation:
        setting = self._prompts.setting()
        state = State(setting)
        found: Conversation = [("system", setting.system)] if setting.system else []
        for number in range(self._dice.of(turns)):
            user, answer = self._exchange(state, number)
            state.answer = answer
            found += [("user", self._typist.typed(user)), ("assistant", answer)]
        return found

    def _exchange(self, state: State, number: int) -> Exchange:
        dice = self._dice
        if state.answer.endswith("?") and dice.often(0.4) and (reply := self._reply(state)):
            return reply
        opening = number == 0 or dice.often(0.2) or (state.last is None and dice.often(0.8))
        return self._opening(state) if opening else self._follow_up(state)

    def _opening(self, state: State) -> Exchange:
        kind, talk, chance = state.setting.kind, self._talk, self._dice.number(1, 1000)
        if chance <= 370:
            return self._wish(state)
        if chance <= 470:
            return self._ask(state)
        if chance <= 530:
            return self._food(state)
        if chance <= 570:
            return self._list(state)
        if chance <= 595:
            return self._compare(state)
        if chance <= 645:
            return talk.hello(kind)
        if chance <= 790:
            return talk.about_model(kind)
        if chance <= 910:
            return talk.elsewhere(kind)
        if chance <= 930:
            return talk.numbers(kind)
        if chance <= 980:
            return talk.unclear(kind)
        return talk.joke(kind) if chance <= 992 else talk.details()

    def _follow_up(self, state: State) -> Exchange:
        talk, last, chance = self._talk, state.last, self._dice.number(1, 1000)
        kind = last.kind if last else state.setting.kind
        if chance <= 300:
            return self._again(state)
        if chance <= 620:
            return self._refine(state)
        if chance <= 700 and last:
            return self._why(state, last)
        if chance <= 760:
            return talk.accepted(kind)
        if chance <= 840:
            return talk.goodbye()
        if chance <= 880:
            return talk.details()
        if chance <= 910:
            return self._list(state)
        if last and last.kind == "dish":
            return talk.drink() if chance <= 940 else self._question(state, last)
        return self._switch(state) if state.setting.kind is None else talk.about_model(state.setting.kind)

    # What is wished for.

    def _wish(self, state: State) -> Exchange:
        kind = state.setting.kind
        state.facets = self._chooser.some_facets(kind)
        user = self._typist.wish(self._dice.shuffled(state.facets), kind)
        if kind is None and self._dice.often(0.6):
            return user, self._suggestions.mixed(state)
        return user, self._suggestions.suggest(state, kind or self._chooser.kind_for(state.facets))

    def _ask(self, state: State) -> Exchange:
        kind, dice = state.setting.kind, self._dice
        state.facets = []
        if kind is None and dice.often(0.55):
            user = self._typist.ask(None)
            if dice.often(0.5):
                return user, sentences(dice.of(self._world.phrases["switch"]["answer"]), self._talk.question(None))
            return user, self._suggestions.mixed(state)
        if kind is not None:
            return self._typist.ask(kind), self._suggestions.suggest(state, kind)
        asked = dice.of(KINDS)
        user = dice.of(self._world.phrases["asking"][asked]) + self._typist.when()
        return user, self._suggestions.suggest(state, asked)

    def _food(self, state: State) -> Exchange:
        """A food by its own name: known to a dish or a place, or to none."""
        dice = self._dice
        either: Sequence[Kind] = ("dish", "place")
        kind = state.setting.kind or dice.of(either)
        state.facets = []
        if kind == "activity":
            name = dice.of([item.also for item in self._world.items["dish"]])
            state.facets = [self._world.facets["food"]]
            return dice.one(name, f"I want {name}", f"{name} please"), self._suggestions.suggest(state, kind)
        if dice.often(0.25):
            name, items = dice.of(self._world.phrases["unknown"]["food"]), ()
        else:
            name = dice.of([item.also for item in self._world.items[kind] if item.also])
            items = [item for item in self._world.items[kind] if item.also == name]
        user = dice.one(
            f"I want {name}", name, f"{name} please", f"I am craving {name}", f"I would like {name}", f"{name}?",
            f"I feel like {name}", f"what about {name}?", f"I love {name}", f"can I get {name}?",
            f"do you like {name}?", f"where can I get {name}?" if kind == "place" else f"is {name} a good idea?",
            f"{name}{self._typist.when()}?",
        )  # fmt: skip
        if not items:
            before = dice.of(self._world.phrases["unknown"]["answer"])
            item = self._suggestions.pick(state, self._suggestions.unused(state, self._world.items[kind]), ())
            return user, self._suggestions.say(state, item, (), before)
        before = f"{capital(name)} is a good idea." if dice.often(0.6) and not name.endswith("s") else "Good choice."
        return user, self._suggestions.say(state, dice.of(items), (), before)

    def _compare(self, state: State) -> Exchange:
        dice, kind = self._dice, state.setting.kind
        if kind == "activity":
            return self._ask(state)
        if dice.often(0.4):
            dish = dice.of(self._world.items["dish"])
            state.last, state.facets = dish, []
            state.show(dish)
            be = "are" if dish.plural else "is"
            user = dice.one(
                f"what {be} the {dish.name}?", f"tell me about the {dish.name}", f"how {be} the {dish.name}?",
                f"{be} the {dish.name} good?", f"do you know {dish.name}?", f"I want the {dish.name}",
            )  # fmt: skip
            return user, self._voice.about(dish)
        one, two = dice.some(self._world.items[kind or "dish"], 2)
        chosen = dice.one(one, two)
        state.last, state.facets = chosen, []
        state.used |= {one.name, two.name}
        state.show(chosen)
        user = dice.one(
            f"{one.name} or {two.name}?", f"which is better, {one.name} or {two.name}?", f"{one.name} vs {two.name}",
            f"should I take {one.name} or {two.name}?", f"I cannot decide between {one.name} and {two.name}",
        )  # fmt: skip
        lead = dice.one("I would take", "I would pick", "my vote goes to")
        return user, sentences(f"{lead} {chosen.noun}.", self._voice.reason(chosen, ()))

    def _list(self, state: State) -> Exchange:
        dice, lists = self._dice, self._world.phrases["list"]
        kind = state.setting.kind or dice.of(KINDS)
        user = dice.of(lists["user"] if state.setting.kind and dice.often(0.7) else lists[kind])
        state.facets = self._suggestions.meant(state, kind)[:1]
        if dice.often(0.5):
            asked = [facet for facet in self._chooser.some_facets(kind)[:1] if kind in facet.leads]
            state.facets = asked or state.facets
            if state.facets:
                user = dice.one(
                    f"{user}, {dice.of(state.facets[0].word)}", f"{user} for {dice.of(state.facets[0].want)}"
                )
        items = self._suggestions.unused(state, self._world.find(kind, state.facets))
        if len(items) < 3:
            state.facets, items = [], self._suggestions.unused(state, self._world.items[kind])
        if len(items) < 3:
            items = list(self._world.items[kind])
        chosen: list[Item] = []
        for _ in range(3):
            chosen.append(self._suggestions.pick(state, [item for item in items if item not in chosen], state.facets))
        state.last = None
        return user, self._voice.list_of(chosen, state.facets)

    # What follows an answer.

    def _reply(self, state: State) -> Exchange | None:
        """To a question at the end of the last answer; None when it has no answer of its own."""
        dice, reply, last = self._dice, self._world.phrases["reply"], state.last
        if state.answer.endswith("Do you want a place, a dish or a fun idea?"):
            return self._switch(state)
        if last is None:
            return None
        takes = {
            "Would you like another idea?": self._again,
            "Do you want something else?": self._again,
            "Shall I suggest a drink?": lambda _: self._talk.drink(),
            "Shall I tell you more?": lambda state: self._why(state, last),
        }
        for question, take in takes.items():
            if state.answer.endswith(question):
                if dice.often(0.3):
                    wishes = "enjoy your meal" if last.kind == "dish" else "have a lovely time"
                    return dice.of(reply["no"]), f"All right, {wishes}!"
                return dice.of(reply["yes"]), take(state)[1]
        return None

    def _again(self, state: State) -> Exchange:
        user = self._dice.of(self._world.phrases["again"]["user"])
        if user in _NO and state.answer.endswith("?"):
            user = "something else"
        kind = state.last.kind if state.last else state.setting.kind or self._dice.of(KINDS)
        return user, self._suggestions.suggest(state, kind, self._instead(state))

    def _refine(self, state: State) -> Exchange:
        kind = state.last.kind if state.last else state.setting.kind or self._dice.of(KINDS)
        known = {facet.name for facet in state.facets}
        options = [facet for facet in self._world.facets.values() if facet.name not in known]
        new = self._chooser.facet(options, kind)
        kept = [facet for facet in state.facets if compatible(facet, new)]
        if new.name in self._world.cuisines:
            kept = [facet for facet in kept if facet.name not in self._world.cuisines]
        kept.sort(key=lambda facet: facet.name not in _DIETS)
        # The newest of the older wishes stays with the new one, if anything can meet both.
        state.facets = [new, *kept[:1]] if kept and self._world.find(kind, [new, *kept[:1]]) else [new]
        return self._typist.refinement(new), self._suggestions.suggest(state, kind, self._instead(state))

    def _instead(self, state: State) -> str:
        """How an answer begins that replaces a suggestion. Naming it first puts it right before the name that must
        differ from it."""
        last = state.last
        if last is None:
            return self._dice.of(self._world.phrases["again"]["lead"]) if self._dice.often(0.5) else ""
        return f"You do not want to {last.name}? Then" if last.kind == "activity" else f"Not {last.noun}? Then"

    def _why(self, state: State, last: Item) -> Exchange:
        user = self._dice.of(self._world.phrases["why"]["user"])
        return user, self._voice.why(last, [facet for facet in state.facets if facet.met_by(last)])

    def _question(self, state: State, dish: Item) -> Exchange:
        dice, it, be = self._dice, dish.it, "are" if dish.plural else "is"
        name = dice.one("spicy", "vegetarian", "cheap", "filling", "healthy", "sweet", "vegan", "mild")
        user = dice.one(f"{be} {it} {name}?", f"is it {name}?", f"is that {name}?", f"is it very {name}?")
        facet = self._world.facets[name]
        if facet.met_by(dish):
            return user, sentences(f"yes, {it} {dish.does(facet.leads['dish'].why)}.", self._voice.reason(dish, ()))
        return user, sentences(f"no, the {dish.name} {be} not {name}.", dice.of(self._world.phrases["tip"]["home"][2:]))

    def _switch(self, state: State) -> Exchange:
        kind = self._dice.of(KINDS)
        user = self._dice.of(self._world.phrases["kind"][kind])
        return user, self._suggestions.suggest(state, kind, self._dice.of(self._world.phrases["switch"]["answer"]))
