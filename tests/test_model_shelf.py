"""``hearthlink model list|rm``, and ``--model`` of ``up`` and ``node`` with a model of a hub."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hearthlink.__main__ import main
from hearthlink.models import catalogue
from hearthlink.models.catalogue import Choice
from hearthlink.models.reference import Reference, parse
from hearthlink.models.shelf import Shelf
from hearthlink.models.wanted import wanted
from hearthlink.output import Failure
from tests import command_line
from tests.command_line import finish, run, running_up, start
from tests.fake_hub import COMMIT, NOBODY, FakeHub, cut, refuse
from tests.test_model_pull import gguf

DEMO = command_line.ROOT / "models" / "demo.gguf"
MODEL = "hf:acme/demo/little-demo.gguf"


@pytest.fixture
async def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeHub]:
    monkeypatch.setenv("HEARTHLINK_STATE", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("hearthlink.models.patience.time.sleep", lambda _: None)
    monkeypatch.chdir(tmp_path)
    async with FakeHub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        for name in ("acme/one/a.gguf", "acme/two/a.gguf", "acme/two/b.gguf"):
            hub.put(name, gguf(50_000))
        for index in (1, 2):
            hub.put(f"acme/big/q4/big-0000{index}-of-00002.gguf", gguf(50_000, index))
        yield hub


class Verbs:
    """``hearthlink model VERB``, in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    async def __call__(self, *arguments: str) -> tuple[int, str, str]:
        status = await asyncio.to_thread(main, ["model", *arguments])
        captured = self._capsys.readouterr()
        return status, captured.out, captured.err

    async def listed(self) -> list[dict[str, object]]:
        status, out, err = await self("list", "--json")
        assert status == 0, err
        return json.loads(out)


@pytest.fixture
def model(capsys: pytest.CaptureFixture[str]) -> Verbs:
    return Verbs(capsys)


# -- list and rm ------------------------------------------------------------------------------------------------------


async def test_an_empty_shelf_offers_the_short_names(hub: FakeHub, model: Verbs, tmp_path: Path) -> None:
    assert await model.listed() == []
    status, out, err = await model("list")
    assert (status, out) == (0, "") and "No model was pulled yet." in err
    assert all(choice.short in err for choice in catalogue.CATALOGUE)
    assert not (tmp_path / "models").exists()


async def test_what_was_pulled_is_listed(hub: FakeHub, model: Verbs, tmp_path: Path) -> None:
    await model("pull", "hf:acme/two/b.gguf")
    await model("pull", "hf:acme/big/q4/big-00001-of-00002.gguf")
    hub.store.twists += [cut(10_000), *[refuse(503)] * 5]
    await model("pull", "hf:acme/one/a.gguf")
    (tmp_path / "models" / "mine.gguf").write_bytes(b"GGUF")  # not pulled, not listed
    (tmp_path / "models" / "odd.gguf.json").write_text('{"version": 1}')
    part, whole, shards = sorted(await model.listed(), key=lambda row: str(row["name"]))[:3]
    assert (part["name"], part["state"], part["bytes"], part["bytes_here"]) == ("a", "partial", 50_000, 10_000)
    assert part["pulled_at"] is None and part["short_name"] is None
    assert (whole["reference"], whole["state"], whole["commit"]) == ("hf:acme/two/b.gguf", "ready", hub.commit)
    assert whole["path"] == str(tmp_path / "models/acme/two/main/b.gguf") and isinstance(whole["pulled_at"], int)
    assert (shards["name"], shards["bytes"]) == ("big", 100_000)
    assert isinstance(shards["files"], list) and len(shards["files"]) == 2

    status, out, _ = await model("list")
    header, *rows = out.splitlines()
    assert status == 0 and header.split() == ["NAME", "SIZE", "STATE", "MODEL"]
    assert [row.split()[:4] for row in rows] == [
        ["a", "50.0", "kB", "20"],
        ["b", "50.0", "kB", "ready"],
        ["big", "100", "kB", "ready"],
    ]


@pytest.mark.parametrize("name", ["hf:acme/big/q4/big-00002-of-00002.gguf", "big", "big.gguf"])
async def test_a_model_is_removed_with_all_that_belongs_to_it(
    hub: FakeHub, model: Verbs, tmp_path: Path, name: str
) -> None:
    await model("pull", "hf:acme/big/q4/big-00001-of-00002.gguf")
    await model("pull", "hf:acme/two/b.gguf")
    status, out, err = await model("rm", name)
    assert (status, out) == (0, "") and "big is deleted; 10" in err
    assert [row["name"] for row in await model.listed()] == ["b"]
    assert sorted(path.name for path in (tmp_path / "models" / "acme").iterdir()) == ["two"]


async def test_what_is_left_of_a_pull_is_removed(hub: FakeHub, model: Verbs, tmp_path: Path) -> None:
    hub.store.twists += [cut(10_000), *[refuse(503)] * 5]
    await model("pull", "hf:acme/one/a.gguf")
    status, out, _ = await model("rm", "a", "--json")
    assert status == 0 and json.loads(out)["removed"] is True
    assert list((tmp_path / "models").iterdir()) == []


async def test_a_name_has_to_mean_one_model(hub: FakeHub, model: Verbs) -> None:
    status, _, err = await model("rm", "a")
    assert status == 3 and "No model 'a' is here" in err
    assert (await model("rm", "smollm2-360m"))[0] == 3
    assert (await model("rm", "hf:acme"))[0] == 2
    await model("pull", "hf:acme/one/a.gguf")
    await model("pull", "hf:acme/two/a.gguf")
    status, _, err = await model("rm", "a")
    assert status == 2 and "hf:acme/one/a.gguf or hf:acme/two/a.gguf" in err
    assert (await model("rm", "hf:acme/one/a.gguf"))[0] == 0
    assert (await model("rm", "a"))[0] == 0


def test_one_works_on_a_model_at_a_time(tmp_path: Path) -> None:
    shelf, reference = Shelf(tmp_path), parse(MODEL)
    with shelf.locked(reference):
        with pytest.raises(Failure, match="Another hearthlink is pulling or removing"):
            shelf.remove(reference)
        with shelf.locked(parse("hf:acme/demo/other.gguf")):
            pass
    with shelf.locked(reference):
        pass
    assert list(tmp_path.rglob("*.gguf*")) == []


# -- up and node ------------------------------------------------------------------------------------------------------


async def test_up_pulls_the_model_and_answers_with_it(hub: FakeHub, tmp_path: Path) -> None:
    hub.put("acme/demo/little-demo.gguf", DEMO.read_bytes())
    hub.store.twists.append(cut(2_000_000))
    environ = {"HF_ENDPOINT": hub.url}
    async with running_up("--model", MODEL, state=tmp_path, environ=environ) as up:
        assert "little-demo (embedded)" in up.out
        assert "little-demo: " in up.err and "Trying again in" in up.err
        asked = await run("chat", "we are bored", "--type", "somethingFun", "--url", up.url, state=tmp_path)
        assert asked.status == 0 and len(asked.out.split()) > 3, asked
    # It is here now: nobody has to be asked, and its name in the list is enough.
    async with running_up("--model", "little-demo", state=tmp_path, environ={"HF_ENDPOINT": NOBODY}) as up:
        assert "little-demo (embedded)" in up.out and "to load" not in up.err


def test_a_short_name_is_pulled_unless_a_file_is_called_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    choice = Choice(Reference("acme", "one", "a.gguf", COMMIT), "tiny-1", "0" * 64, 50_000)
    monkeypatch.setattr(catalogue, "CATALOGUE", (choice,))
    monkeypatch.chdir(tmp_path)
    assert wanted("tiny-1", tmp_path).choice == choice
    assert wanted("tiny-1", tmp_path).path == tmp_path / f"models/acme/one/{COMMIT}/a.gguf"
    assert wanted(f"hf:acme/one@{COMMIT}/a.gguf", tmp_path).choice == choice
    Path("tiny-1").touch()
    assert wanted("tiny-1", tmp_path).choice is None and wanted("tiny-1", tmp_path).path == tmp_path / "tiny-1"
    assert wanted("tiny-2", tmp_path).path == tmp_path / "tiny-2"


@pytest.mark.parametrize(
    ("verb", "arguments", "status", "sentence"),
    [
        ("up", ("--port", "0", "--model", "hf:acme/demo/none.gguf"), 3, "There is no repository acme/demo"),
        ("up", ("--port", "0", "--model", "hf:acme"), 2, "does not name a model on a hub"),
        ("up", ("--port", "0", "--model", "none.gguf"), 3, "a model to pull with --model hf:owner/repo/file.gguf or"),
        ("node", ("--model", "hf:acme/demo/none.gguf"), 78, "There is no repository acme/demo"),
    ],
)
async def test_a_model_that_cannot_be_had_is_said_before_anything_starts(
    hub: FakeHub, tmp_path: Path, verb: str, arguments: tuple[str, ...], status: int, sentence: str
) -> None:
    refused = await run(verb, *arguments, state=tmp_path, environ={"HF_ENDPOINT": hub.url})
    assert (refused.status, refused.out) == (status, "") and sentence in refused.err, refused
    assert "Starting" not in refused.err


async def test_a_node_that_cannot_reach_the_hub_may_be_started_again(hub: FakeHub, tmp_path: Path) -> None:
    """Its supervisor restarts it for every status but 78."""
    hub.hub.heads = True
    hub.hub.twists.append(refuse(429, Retry_After="3600"))
    environ = {"HF_ENDPOINT": hub.url}
    arguments = ("node", "--listen", "127.0.0.1:0", "--model", "hf:acme/two/b.gguf")
    ended = await finish(await start(*arguments, state=tmp_path, environ=environ))
    assert ended.status == 5 and "HTTP 429" in ended.err, ended
