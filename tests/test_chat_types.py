"""Chat types as files: read, explained when broken, and taken anew while the node runs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from node.app import run_node
from node.prompts import SHIPPED, BrokenChatType, ChatTypes, read_chat_type
from shared.contract.errors import ApiError
from tests.fake_runtime import FakeRuntime
from tests.pair import Pair, node_settings, question, running_pair
from tests.waiting import wait_until

NATIVE = "/v1/chat"
SEEN_WITHIN = 2.5  # seconds: the files are looked at once a second, on a machine that does other things too
HOME = 'description = "Start here"\nsystem = "Be {}."\ntemperature = 0.6\ntop_p = 0.9\nmax_tokens = 64\n'


def write(folder: Path, name: str, text: str | bytes) -> Path:
    path = folder / f"{name}.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


# -- files ------------------------------------------------------------------------------------------------------------


def test_the_shipped_ones() -> None:
    types = ChatTypes()
    types.load()
    assert [info.name for info in types.infos()] == ["home", "somethingFun", "whatToOrder", "whereToGo"]
    for path in SHIPPED.glob("*.toml"):
        kind = read_chat_type(path)
        assert 0.6 <= kind.temperature <= 0.7 and kind.top_p == 0.9 and 1 <= kind.max_tokens <= 4096
        assert kind.description and kind.name in kind.system, "the demo model goes by the name in the prompt"


def test_every_key_of_a_file(tmp_path: Path) -> None:
    path = write(tmp_path, "order", HOME.format("kind") + 'model = "big"\nmetadata = ["city", "diet"]\n')
    kind = read_chat_type(path)
    assert (kind.name, kind.description, kind.system) == ("order", "Start here", "Be kind.")
    assert (kind.temperature, kind.top_p, kind.max_tokens, kind.model) == (0.6, 0.9, 64, "big")
    assert kind.metadata == ("city", "diet")
    info = kind.info()
    assert (info.name, info.max_tokens, info.model) == ("order", 64, "big")
    assert info.prompt_tokens == len("Be kind.") // 3 + 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("temperature = 0.7\n", ["'system'", "required"]),
        ('system = ""\n', ["'system'", "at least 1 character"]),
        ("system = 5\n", ["'system'", "string"]),
        ('system = "x"\ntemprature = 0.7\n', ["'temprature'", "Known:", "temperature"]),
        ('system = "x"\ntemperature = 3\n', ["'temperature'", "less than or equal to 2"]),
        ('system = "x"\ntemperature = nan\n', ["'temperature'"]),
        ('system = "x"\ntop_p = 0\n', ["'top_p'", "greater than 0"]),
        ('system = "x"\nmax_tokens = 0\n', ["'max_tokens'", "greater than or equal to 1"]),
        ('system = "x"\nmax_tokens = "many"\n', ["'max_tokens'", "integer"]),
        ('system = "x"\nmetadata = "city"\n', ["'metadata'"]),
        ('system = "x"\nmetadata = [1]\n', ["'metadata.0'", "string"]),
        ('system = "x"\nname = "other"\n', ["'name'", "the file's name"]),
        ('system = "x"\n\nmax_tokens 5\n', ["line 3"]),
        ('system = """never closed\n', ["TOML", "end of document"]),
        (b'system = "caf\xe9"\n', ["UTF-8"]),
        ("", ["'system'", "required"]),
    ],
)
def test_what_is_wrong_with_a_file(tmp_path: Path, text: str | bytes, says: list[str]) -> None:
    """The file, the key or line, and what would be right."""
    path = write(tmp_path, "order", text)
    with pytest.raises(BrokenChatType) as broken:
        read_chat_type(path)
    for part in (str(path), *says):
        assert part in str(broken.value)


@pytest.mark.parametrize("name", ["my order", "1st", "a.b", "-x", "x" * 65, "ørder"])
def test_a_name_that_no_caller_could_send(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, name, HOME.format("kind"))
    with pytest.raises(BrokenChatType, match="rename the file") as broken:
        read_chat_type(path)
    assert str(path) in str(broken.value) and "'name'" not in str(broken.value)


def test_a_folder_where_a_file_should_be(tmp_path: Path) -> None:
    (tmp_path / "order.toml").mkdir()
    with pytest.raises(BrokenChatType, match=r"order\.toml"):
        read_chat_type(tmp_path / "order.toml")


@pytest.mark.parametrize("folder", ["empty", "missing"])
def test_a_folder_without_chat_types(tmp_path: Path, folder: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(BrokenChatType, match=r"holds no chat type.*\.toml"):
        ChatTypes(tmp_path / folder).load()


async def test_a_node_does_not_start_with_a_broken_file(tmp_path: Path) -> None:
    folder = tmp_path / "types"
    folder.mkdir()
    path = write(folder, "home", 'sistem = "x"\n')
    settings = node_settings(tmp_path, "http://127.0.0.1:9", {"chat_types": str(folder)})
    with pytest.raises(BrokenChatType, match=r"home\.toml") as broken:
        async with run_node(settings):
            pass
    assert str(path) in str(broken.value)


# -- edits ------------------------------------------------------------------------------------------------------------


def test_edits_are_taken_and_broken_ones_are_not(tmp_path: Path) -> None:
    path = write(tmp_path, "home", HOME.format("kind"))
    types = ChatTypes(tmp_path)
    types.load()
    assert not types.refresh(), "nothing was changed"
    write(tmp_path, "home", HOME.format("brief"))
    assert types.refresh()
    assert types.get("home").system == "Be brief."
    write(tmp_path, "home", "system = ")
    assert types.refresh()
    assert types.get("home").system == "Be brief."
    assert str(path) in types.broken["home"]
    assert not types.refresh(), "told once"
    write(tmp_path, "home", HOME.format("kind again"))
    assert types.refresh()
    assert (types.get("home").system, types.broken) == ("Be kind again.", {})


def test_files_come_and_go(tmp_path: Path) -> None:
    write(tmp_path, "home", HOME.format("kind"))
    types = ChatTypes(tmp_path)
    types.load()
    write(tmp_path, "new", "sys = 1")
    assert types.refresh()
    with pytest.raises(ApiError, match="There are: home"):
        types.get("new")
    assert "new" in types.broken
    (tmp_path / "new.toml").unlink()
    assert types.refresh()
    assert types.broken == {}
    (tmp_path / "home.toml").unlink()
    assert types.refresh()
    assert types.infos() == ()


# -- through a live pair ----------------------------------------------------------------------------------------------


@asynccontextmanager
async def serving(folder: Path, state: Path) -> AsyncIterator[tuple[Pair, FakeRuntime]]:
    node = {"chat_types": str(folder)}
    async with FakeRuntime() as runtime, running_pair(runtime.url, state=state, node=node) as pair:
        yield pair, runtime


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "types"
    folder.mkdir()
    write(folder, "home", HOME.format("kind"))
    return folder


async def system_of(pair: Pair, runtime: FakeRuntime, chat_type: str = "home") -> str:
    """The system prompt that the runtime gets for the next chat."""
    async with pair.post(NATIVE, question(chat_type=chat_type)) as response:
        assert response.status == 200, await response.text()
    return runtime.chats[-1].json["messages"][0]["content"]


async def health(pair: Pair) -> dict[str, Any]:
    async with pair.client.get(pair.node.listener.url + "/healthz") as response:
        assert response.status == 200
        return await response.json()


async def listed(pair: Pair) -> dict[str, Any]:
    async with pair.get("/v1/chat/types") as response:
        return {row["name"]: row for row in (await response.json())["data"]}


async def test_an_edit_is_in_the_next_chat(folder: Path, tmp_path: Path) -> None:
    async with serving(folder, tmp_path) as (pair, runtime):
        assert await system_of(pair, runtime) == "Be kind."
        write(folder, "home", HOME.format("brief").replace("64", "32"))
        write(folder, "late", HOME.format("late"))
        await seen(pair, lambda: "late" in known(pair) and known(pair)["home"].max_tokens == 32)
        assert await system_of(pair, runtime) == "Be brief."
        assert runtime.chats[-1].json["max_tokens"] == 32
        assert await system_of(pair, runtime, "late") == "Be late."
        assert set(await listed(pair)) == {"home", "late"}
        (folder / "late.toml").unlink()
        await seen(pair, lambda: "late" not in known(pair))
        async with pair.post(NATIVE, question(chat_type="late")) as response:
            assert (response.status, (await response.json())["error"]["code"]) == (404, "chat_type_not_found")


def known(pair: Pair) -> dict[str, Any]:
    """What the edge knows of the node's chat types."""
    snapshot = pair.edge.services.upstreams.all[0].snapshot
    assert snapshot is not None
    return {info.name: info for info in snapshot.chat_types}


async def seen(pair: Pair, condition: Callable[[], bool]) -> None:
    await wait_until(condition, SEEN_WITHIN, what=lambda: known(pair))


async def test_a_broken_edit_keeps_the_old_and_is_told(folder: Path, tmp_path: Path) -> None:
    async with serving(folder, tmp_path) as (pair, runtime):
        types = pair.node.services.chat_types
        assert (await health(pair))["broken_chat_types"] == {}
        path = write(folder, "home", 'system = "Be rude."\nmax_tokens = "few"\n')
        await wait_until(lambda: types.broken, SEEN_WITHIN)
        assert await system_of(pair, runtime) == "Be kind."
        told = (await health(pair))["broken_chat_types"]
        assert str(path) in told["home"] and "'max_tokens'" in told["home"]
        async with pair.client.get(pair.url + "/healthz") as response:
            assert str(folder) not in await response.text(), "for the owner only"
        write(folder, "home", HOME.format("mended"))
        await wait_until(lambda: not types.broken, SEEN_WITHIN)
        assert await system_of(pair, runtime) == "Be mended."
        assert (await health(pair))["broken_chat_types"] == {}
