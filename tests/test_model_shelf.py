"""``hearthlink model list|rm``, and ``--model`` of ``up`` and ``node`` with a model of a hub."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hearthlink.__main__ import main
from hearthlink.models import catalogue
from hearthlink.models.reference import parse
from hearthlink.models.shelf import Shelf
from hearthlink.output import Failure
from tests import command_line
from tests.fake_hub import FakeHub, cut, refuse
from tests.pulling import gguf

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
