"""Conversations in memory and in SQLite: one suite for both."""

from __future__ import annotations

import sqlite3
import stat
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from node.conversations.conversation import PER_MESSAGE, Bounds, Message, Storage
from node.conversations.conversations import Conversations
from node.conversations.memory import MemoryStorage
from node.conversations.sqlite import SQLiteStorage
from shared.contract.errors import ApiError
from shared.state import StateError

MakeStorage = Callable[..., Awaitable[Storage]]
WIDE: dict[str, Any] = {"lifetime": 3600.0, "per_caller": 10, "size": 1 << 20, "total": 1 << 20}


@pytest.fixture(params=["memory", "sqlite"])
async def make_storage(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[MakeStorage]:
    made: list[Storage] = []

    async def make(**bounds: Any) -> Storage:
        within = Bounds(**{**WIDE, **bounds})
        storage: Storage
        if request.param == "memory":
            storage = MemoryStorage(within)
        else:
            storage = await SQLiteStorage.open(tmp_path / "conversations.db", within)
        made.append(storage)
        return storage

    yield make
    for storage in made:
        await storage.close()


async def say(storage: Storage, principal: str, id: str, question: str = "Where to?", answer: str = "Home.") -> None:
    now = time.time()
    await storage.add(principal, id, "home", (Message("user", question, now), Message("assistant", answer, now)))


def _turn(text: int) -> int:
    """Bytes that a question and its answer of ``text`` bytes together count for."""
    return text + 2 * PER_MESSAGE


async def texts(storage: Storage, principal: str, id: str) -> list[str] | None:
    found = await storage.read(principal, id)
    return None if found is None else [message.content for message in found.messages]


async def test_what_was_said_is_read_back_in_order_with_its_times(make_storage: MakeStorage) -> None:
    storage = await make_storage()
    began = time.time()
    await say(storage, "ada", "c", "one", "two")
    await say(storage, "ada", "c", "three ☂", "four")
    found = await storage.read("ada", "c")
    assert found is not None
    assert [(message.role, message.content) for message in found.messages] == [
        ("user", "one"),
        ("assistant", "two"),
        ("user", "three ☂"),
        ("assistant", "four"),
    ]
    assert all(began <= message.at <= time.time() for message in found.messages)
    assert (found.heading.id, found.heading.chat_type, found.heading.messages) == ("c", "home", 4)
    assert began <= found.heading.created_at <= found.heading.updated_at <= time.time()


async def test_one_principal_sees_nothing_of_another(make_storage: MakeStorage) -> None:
    storage = await make_storage()
    await say(storage, "ada", "c", "a secret")
    assert await storage.read("bob", "c") is None
    assert await storage.headings("bob") == []
    assert [found async for found in storage.every("bob")] == []
    assert not await storage.forget("bob", "c")
    assert await storage.forget_all("bob") == 0
    await say(storage, "bob", "c", "mine")
    assert await texts(storage, "ada", "c") == ["a secret", "Home."]
    assert await texts(storage, "bob", "c") == ["mine", "Home."]


async def test_the_newest_stands_first(make_storage: MakeStorage) -> None:
    storage = await make_storage()
    for id in ("a", "b", "c", "a"):
        await say(storage, "ada", id)
    assert [heading.id for heading in await storage.headings("ada")] == ["a", "c", "b"]
    assert [found.heading.id async for found in storage.every("ada")] == ["a", "c", "b"]


async def test_what_is_forgotten_is_gone(make_storage: MakeStorage) -> None:
    storage = await make_storage()
    for id in ("a", "b", "c"):
        await say(storage, "ada", id)
    assert await storage.forget("ada", "b")
    assert not await storage.forget("ada", "b")
    assert await texts(storage, "ada", "b") is None
    assert await storage.forget_all("ada") == 2
    assert await storage.headings("ada") == []
    await say(storage, "ada", "b", "new")
    assert await texts(storage, "ada", "b") == ["new", "Home."]


async def test_past_its_lifetime_a_conversation_is_not_there_and_a_new_one_begins(
    make_storage: MakeStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = await make_storage(lifetime=100.0)
    await say(storage, "ada", "old", "one")
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 99)
    assert await texts(storage, "ada", "old") == ["one", "Home."]
    await say(storage, "ada", "other")
    monkeypatch.setattr(time, "time", lambda: now + 101)
    assert await texts(storage, "ada", "old") is None
    assert [heading.id for heading in await storage.headings("ada")] == ["other"]
    await say(storage, "ada", "old", "two")
    assert await texts(storage, "ada", "old") == ["two", "Home."]
    monkeypatch.setattr(time, "time", lambda: now + 500)
    await storage.sweep()
    monkeypatch.setattr(time, "time", lambda: now)
    assert await storage.headings("ada") == []


async def test_what_is_past_its_lifetime_is_not_there_to_be_forgotten(
    make_storage: MakeStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = await make_storage(lifetime=100.0)
    await say(storage, "ada", "old")
    await say(storage, "ada", "older")
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 101)
    await say(storage, "ada", "new")
    assert not await storage.forget("ada", "old")
    assert await storage.forget_all("ada") == 1


async def test_messages_count_for_more_than_their_text(make_storage: MakeStorage) -> None:
    storage = await make_storage(size=4 << 10)
    for _ in range(100):
        await say(storage, "ada", "c", "?", "!")
    assert len(await texts(storage, "ada", "c") or ()) == (4 << 10) // _turn(2) * 2


async def test_beyond_the_size_of_one_conversation_its_oldest_turns_go(make_storage: MakeStorage) -> None:
    storage = await make_storage(size=2 * _turn(40) + 20)
    for number in range(5):
        await say(storage, "ada", "c", f"q{number}" + "x" * 18, f"a{number}" + "x" * 18)
    found = await texts(storage, "ada", "c")
    assert found is not None
    assert [text[:2] for text in found] == ["q3", "a3", "q4", "a4"]
    await say(storage, "ada", "c", "z" * 500, "short")  # alone over the bound: what was just said stays
    assert await texts(storage, "ada", "c") == ["z" * 500, "short"]
    await say(storage, "ada", "c", "after", "it")
    assert await texts(storage, "ada", "c") == ["after", "it"]


async def test_of_one_caller_the_longest_unused_makes_room(make_storage: MakeStorage) -> None:
    storage = await make_storage(per_caller=2)
    for id in ("a", "b", "a", "c"):
        await say(storage, "ada", id)
    await say(storage, "bob", "x")
    assert [heading.id for heading in await storage.headings("ada")] == ["c", "a"]
    assert len(await storage.headings("bob")) == 1


async def test_of_all_callers_the_longest_unused_makes_room(make_storage: MakeStorage) -> None:
    storage = await make_storage(total=2 * _turn(40) + 20)
    for principal in ("ada", "bob", "cy"):
        await say(storage, principal, "c", "x" * 20, "y" * 20)
    assert await storage.headings("ada") == []
    assert len(await storage.headings("bob")) == len(await storage.headings("cy")) == 1


async def test_a_second_question_in_a_conversation_waits_for_the_first_answer(make_storage: MakeStorage) -> None:
    conversations = Conversations(await make_storage(), 1000)
    async with conversations.exchange("ada", "c") as exchange:
        with pytest.raises(ApiError, match="is being answered") as refused:
            async with conversations.exchange("ada", "c"):
                raise AssertionError("both would not know of each other")
        assert refused.value.code == "concurrency_limited"
        async with conversations.exchange("ada", "other"), conversations.exchange("bob", "c"):
            pass
        await exchange.keep("home", time.time(), "one", "two")
    async with conversations.exchange("ada", "c") as exchange:
        assert [message.content for message in exchange.history] == ["one", "two"]


async def test_what_is_forgotten_while_it_is_answered_stays_forgotten(make_storage: MakeStorage) -> None:
    conversations = Conversations(await make_storage(), 1000)
    await say(conversations.storage, "ada", "one")
    await say(conversations.storage, "bob", "one")
    for id in ("one", "new"):
        async with conversations.exchange("ada", id) as exchange:
            assert await conversations.forget("ada", id)
            await exchange.keep("home", time.time(), "one", "two")
        assert await texts(conversations.storage, "ada", id) is None
        assert not await conversations.forget("ada", id)
    async with conversations.exchange("ada", "one") as exchange, conversations.exchange("bob", "one") as other:
        assert await conversations.forget_all("ada") == 0
        await exchange.keep("home", time.time(), "one", "two")
        await other.keep("home", time.time(), "one", "two")
    assert await texts(conversations.storage, "ada", "one") is None
    assert await texts(conversations.storage, "bob", "one") == ["Where to?", "Home.", "one", "two"]


async def test_a_file_of_conversations_outlives_the_process_and_is_the_owners_alone(tmp_path: Path) -> None:
    path, bounds = tmp_path / "conversations.db", Bounds(**WIDE)
    storage = await SQLiteStorage.open(path, bounds)
    await say(storage, "ada", "c", "one")
    await storage.close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    storage = await SQLiteStorage.open(path, bounds)
    assert await texts(storage, "ada", "c") == ["one", "Home."]
    await storage.forget_all("ada")
    await storage.close()
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT count(*) FROM messages").fetchone() == (0,)
    connection.close()


@pytest.mark.parametrize("content", [b"this is no database, but as long as the head of one is" * 20, None])
async def test_a_file_that_cannot_be_used_says_what_to_do(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "conversations.db"
    if content is None:
        connection = sqlite3.connect(path)
        connection.execute("PRAGMA user_version = 99")
        connection.close()
    else:
        path.write_bytes(content)
    with pytest.raises(StateError, match=r"move the file away"):
        await SQLiteStorage.open(path, Bounds(**WIDE))
