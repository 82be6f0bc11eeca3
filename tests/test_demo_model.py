"""The demo model: is it the file that the README names, and does it answer as a toy should. Greedy answers of the real
runtime, through the pair, under the project's own system prompts."""

from __future__ import annotations

import hashlib
import os
import tomllib
from collections.abc import AsyncIterator, Iterable
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from models.corpus.conversations import conversations
from models.corpus.faults import Reader
from models.corpus.system_prompts import FACTS, KIND_OF
from models.corpus.world import load_world
from node.prompts import ChatTypes
from node.special_tokens import Neutraliser
from tests.pair import Pair
from tests.real_model import real_pair
from tests.runtime_support import DEMO

LIMIT = 6_000_000  # bytes: what a clone may carry for a toy
LONGEST = 120  # tokens of an answer; a list of three ideas takes about 70
LONG_PROMPT = 880  # tokens; the context is 1,024, and the next question and its answer have to fit
DICTIONARY = Path("/usr/share/dict/words")  # Debian's wamerican
QUESTIONS: dict[str, Any] = tomllib.loads(DEMO.with_name("questions.toml").read_text())
WORLD = load_world()
TYPES = tuple(KIND_OF)
SUGGESTING = ("whereToGo", "whatToOrder", "somethingFun")

# Shares of answers, a little under what was measured (models/README.md).
RIGHT_KIND = 0.9
BOTH_WISHES = 0.9
NEW_SUGGESTION = 0.95
REFUSED = 0.95
PLAIN_WHEN_LONG = 0.97


@pytest.fixture(scope="module")
def reader() -> Reader:
    """Looks words up where a dictionary is installed, which CI has to do."""
    if DICTIONARY.exists():
        return Reader(WORLD, DICTIONARY.read_text().split())
    assert not os.environ.get("CI"), f"{DICTIONARY} is missing; .ci/run installs it (Debian's wamerican)"
    return Reader(WORLD)


def faulty(reader: Reader, answers: Iterable[str]) -> dict[str, list[str]]:
    return {answer: faults for answer in answers if (faults := reader.faults(answer))}


def check_plain(reader: Reader, answers: Iterable[str]) -> None:
    """All but one: where it was measured there was none, but another processor rounds sums otherwise."""
    found = faulty(reader, answers)
    assert len(found) <= 1, found


# -- the file, and the text it learnt from ----------------------------------------------------------------------------


def test_the_file_is_the_one_of_the_readme() -> None:
    digest = hashlib.sha256(DEMO.read_bytes()).hexdigest()
    assert f"\n    sha256 {digest}\n" in DEMO.with_name("README.md").read_text()
    assert DEMO.stat().st_size <= LIMIT


def answers_of_the_text(seed: int, count: int) -> list[str]:
    talks = conversations(seed, count, turns=(1, 2, 4), world=WORLD)
    return [text for messages in talks for role, text in messages if role == "assistant"]


def test_the_text_is_the_same_every_time_and_has_no_fault(reader: Reader) -> None:
    answers = answers_of_the_text(3, 500)
    assert answers == answers_of_the_text(3, 500)
    assert not faulty(reader, answers)


def test_the_text_has_the_system_prompts_of_the_node() -> None:
    types = ChatTypes()
    types.load()
    system = types.get("whereToGo").prompt({"city": "Rome"}, Neutraliser().clean)
    assert system == types.get("whereToGo").system.strip() + FACTS + '{"city": "Rome"}'
    talks = conversations(1, 400, turns=(1,), world=WORLD)
    systems = {text for messages in talks for role, text in messages if role == "system"}
    assert {types.get(chat_type).system.strip() for chat_type in TYPES} <= systems


def test_every_name_is_said_often() -> None:
    """A name that a model rarely saw comes out misspelt. Training takes 70,000 conversations."""
    text = "\n".join(answers_of_the_text(4, 2000)).lower()
    said = {item.name: text.count(item.name.lower()) for items in WORLD.items.values() for item in items}
    assert min(said.values()) >= 3, said


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("try the onion soup.", "begins small"),
        ("Try the onion soup", "has no end"),
        ("Try the onion soup.<|im_end|>", "has odd characters"),
        ("Try it. Take it. Have it. Eat it.", "has 4 sentences"),
        ("Try the onion soup. Try the onion soup.", "repeats a sentence"),
        ("Try the the onion soup.", "runs in circles"),
        ("Have a warm and soft bun, a warm and soft bun and a warm and soft bun.", "runs in circles"),
        ("Try the onnion soup.", "says 'onnion'"),
        ("The bean tacos is smoky.", "bean tacos: The bean tacos is smoky."),
        ("Try the bean tacos. It is smoky.", "bean tacos: It is smoky."),
        ("Try the onion soup. They are sweet.", "onion soup: They are sweet."),
    ],
)
def test_faults_are_seen(text: str, fault: str) -> None:
    english = "Try take have eat it the they is are a and warm soft bun smoky sweet".split()
    assert fault in Reader(WORLD, english).faults(text)


# -- the model --------------------------------------------------------------------------------------------------------


class Chat:
    """Greedy answers of a pair. ``prompt_tokens`` is how long the last prompt was."""

    def __init__(self, pair: Pair) -> None:
        self._pair = pair
        self.prompt_tokens = 0

    async def __call__(self, chat_type: str | None, *said: str, system: str = "", **fields: Any) -> str:
        """The answer to the last of ``said``: the user and the model in turn. Without a chat type, ``system`` is the
        system prompt. The answer must end by itself."""
        roles = ("user", "assistant")
        messages = [{"role": roles[number % 2], "content": text} for number, text in enumerate(said)]
        if system:
            messages.insert(0, {"role": "system", "content": system})
        path = "/v1/chat" if chat_type else "/v1/chat/completions"
        body: dict[str, Any] = {"messages": messages, "temperature": 0, "max_tokens": 200, **fields}
        if chat_type:
            body["chat_type"] = chat_type
        async with self._pair.post(path, body) as response:
            assert response.status == 200, await response.text()
            answer = await response.json()
        (choice,) = answer["choices"]
        assert choice["finish_reason"] == "stop", choice
        assert answer["usage"]["completion_tokens"] <= LONGEST, choice
        self.prompt_tokens = answer["usage"]["prompt_tokens"]
        return choice["message"]["content"]

    async def each(self, chat_type: str | None, texts: Iterable[str], system: str = "") -> dict[str, str]:
        """The answers to single messages."""
        return {text: await self(chat_type, text, system=system) for text in texts}

    async def talk(self, chat_type: str, users: Iterable[str]) -> list[str]:
        """The answers to ``users``, messages of one conversation."""
        said: list[str] = []
        for user in users:
            said += [user, await self(chat_type, *said, user)]
        return said[1::2]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def chat(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Chat]:
    async with real_pair(DEMO, tmp_path_factory.mktemp("state")) as real:
        real.without_door()
        yield Chat(real.pair)


model_test = pytest.mark.asyncio(loop_scope="module")


def check_share(least: float, good: dict[str, bool]) -> None:
    share = sum(good.values()) / len(good)
    assert share >= least, f"{share:.2f}: " + "\n".join(text for text in good if not good[text])


@model_test
@pytest.mark.parametrize("chat_type", TYPES)
async def test_answers_are_plain_and_of_the_right_kind(chat: Chat, reader: Reader, chat_type: str) -> None:
    answers = await chat.each(chat_type, QUESTIONS["plain"][chat_type])
    assert len(answers) >= 25
    check_plain(reader, answers.values())
    assert len(set(answers.values())) >= 20
    if kind := KIND_OF[chat_type]:
        check_share(
            RIGHT_KIND, {f"{text} {answer}": bool(reader.named(answer, kind)) for text, answer in answers.items()}
        )


@model_test
@pytest.mark.parametrize("system", ["", "You are a helpful assistant."])
async def test_answers_without_a_chat_type_are_plain(chat: Chat, reader: Reader, system: str) -> None:
    answers = await chat.each(None, QUESTIONS["plain"]["other"], system)
    check_plain(reader, answers.values())


@model_test
async def test_two_wishes_are_both_met(chat: Chat, reader: Reader) -> None:
    met: dict[str, bool] = {}
    for chat_type in SUGGESTING:
        asked = {pair["text"]: pair["facets"].split() for pair in QUESTIONS["pairs"][chat_type]}
        answers = await chat.each(chat_type, asked)
        check_plain(reader, answers.values())
        for text, facets in asked.items():
            items = reader.named(answers[text], KIND_OF[chat_type])
            met[f"{text} {answers[text]}"] = bool(items) and all(WORLD.facets[name].met_by(items[0]) for name in facets)
    check_share(BOTH_WISHES, met)


@model_test
async def test_another_suggestion_is_another_one(chat: Chat, reader: Reader) -> None:
    new: dict[str, bool] = {}
    for chat_type in TYPES:
        for users in QUESTIONS["follow"][chat_type]:
            answers = await chat.talk(chat_type, users)
            check_plain(reader, answers)
            for at in range(1, len(answers)):
                before = {item.name for answer in answers[:at] for item in reader.named(answer)}
                items = reader.named(answers[at])
                new[f"{users[: at + 1]} {answers[: at + 1]}"] = bool(items) and items[-1].name not in before
    check_share(NEW_SUGGESTION, new)


@model_test
@pytest.mark.parametrize("chat_type", [*TYPES, None])
async def test_what_it_cannot_do_it_says(chat: Chat, reader: Reader, chat_type: str | None) -> None:
    answers = await chat.each(chat_type, QUESTIONS["refused"]["texts"])
    check_plain(reader, answers.values())
    check_share(REFUSED, {f"{text} {answer}": not reader.named(answer) for text, answer in answers.items()})


@model_test
@pytest.mark.parametrize("chat_type", [*TYPES, None])
async def test_it_says_how_to_get_a_real_model(chat: Chat, reader: Reader, chat_type: str | None) -> None:
    answers = await chat.each(chat_type, QUESTIONS["refused"]["real_model"])
    check_plain(reader, answers.values())
    for answer in answers.values():
        assert "`scripts/up --model " in answer


@model_test
@pytest.mark.parametrize("chat_type", SUGGESTING)
async def test_a_list_is_a_list(chat: Chat, reader: Reader, chat_type: str) -> None:
    answer = await chat(chat_type, "Give me three ideas")
    assert not reader.faults(answer)
    names = [item.name for item in reader.named(answer, KIND_OF[chat_type])]
    assert answer.count("\n- **") == len(set(names)) == 3


@model_test
async def test_what_the_app_knows_counts(chat: Chat, reader: Reader) -> None:
    answer = await chat("whereToGo", "any ideas?", metadata={"city": "Lisbon", "weather": "heavy rain"})
    (place,) = reader.named(answer, "place")
    assert WORLD.facets["rain"].met_by(place), answer


@model_test
@pytest.mark.parametrize("chat_type", TYPES)
async def test_long_conversations_stay_plain(chat: Chat, reader: Reader, chat_type: str) -> None:
    """The page sends the whole conversation each time, up to the end of the context."""
    users = cycle(["any ideas?", "something else", "why?", "something cheaper", "another one", "thanks"])
    said = [user := next(users), await chat(chat_type, user)]
    while chat.prompt_tokens < LONG_PROMPT:
        said += [user := next(users), await chat(chat_type, *said, user)]
    answers = said[1::2]
    check_share(PLAIN_WHEN_LONG, {f"{at}: {answer}": not reader.faults(answer) for at, answer in enumerate(answers)})
