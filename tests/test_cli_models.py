"""``hearthlink model load|unload|activate|yield|resume|list``: asked of the node on this machine, and of an edge."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from unittest import mock

import pytest

from hearthlink.__main__ import main
from hearthlink.load_bar import LoadBar
from hearthlink.output import Status
from tests.loadable import LoadableRuntime
from tests.pair import Pair, running_pair


class Verbs:
    """``hearthlink model VERB``, in this process, beside a pair whose runtime is ``runtime``."""

    def __init__(self, pair: Pair, runtime: LoadableRuntime, key: str, capsys: pytest.CaptureFixture[str]) -> None:
        self.pair = pair
        self.runtime = runtime
        self.key = key
        self._capsys = capsys

    async def __call__(self, *arguments: str) -> tuple[int, str, str]:
        """Status, standard output, standard error."""
        self._capsys.readouterr()
        status = await asyncio.to_thread(main, ["model", *arguments])
        captured = self._capsys.readouterr()
        return status, captured.out, captured.err

    async def done(self, *arguments: str) -> str:
        """What a verb that succeeds tells the person."""
        status, _, err = await self(*arguments)
        assert status == 0, err
        return err


@pytest.fixture
async def model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> AsyncIterator[Verbs]:
    monkeypatch.setenv("HEARTHLINK_STATE", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    runtime = LoadableRuntime("a", "b", loaded="a")
    settings = {"models": {"b": {"aliases": ["fast"]}}}
    with mock.patch("node.app.create", lambda *settings, **more: runtime):
        async with running_pair("http://127.0.0.1:9", state=tmp_path, node=settings) as pair:
            key = await pair.new_key(scopes=("chat", "admin"))
            yield Verbs(pair, runtime, key, capsys)


async def test_the_list_shows_what_the_node_has(model: Verbs) -> None:
    status, out, err = await model("list")
    assert status == 0, err
    rows = [line.split() for line in out.splitlines()]
    assert rows[1][:3] == ["a", "(default)", "loaded"] and rows[2] == ["b", "available", "0", "fast"]
    status, out, _ = await model("list", "--json")
    assert status == 0 and [row["id"] for row in json.loads(out)] == ["a", "b"]


async def test_load_tells_how_far_it_is_what_became_of_it_and_what_was_not_applied(model: Verbs) -> None:
    said = await model.done("load", "fast", "--context", "512", "--gpu-ratio", "0.5", "--activate")
    assert model.runtime.present == ["b"]
    assert "Loading b" in said and "b is in memory." in said
    assert "gpu.ratio" in said and "Set the ratio by hand." in said
    status, out, _ = await model("load", "b", "--json")
    assert status == 0 and json.loads(out)["status"] == "already_loaded"
    assert "Requests that name no model go to it." in await model.done("load", "b", "--activate")


async def test_activate_takes_the_seven_parameters(model: Verbs) -> None:
    await model.done(
        "activate", "b", "--temperature", "0.5", "--max-tokens", "9", "--top-p", "0.9", "--top-k", "3",
        "--repeat-penalty", "1.1", "--stop", "END", "--no-stream",
    )  # fmt: skip
    models = model.pair.node.services.models
    assert models.inference == {
        "temperature": 0.5, "maxTokens": 9, "topP": 0.9, "topK": 3, "repeatPenalty": 1.1, "stopStrings": ["END"],
        "stream": False,
    }  # fmt: skip
    await model.done("activate", "b")
    assert len(models.inference) == 7


async def test_unload_yield_and_resume(model: Verbs) -> None:
    await model.done("load", "b")
    assert "out of memory" in await model.done("unload", "b")
    await model.done("load", "b")
    said = await model.done("yield")
    assert "until `hearthlink model resume`" in said and "Out of memory: b." in said
    assert model.runtime.present == []
    status, _, err = await model("load", "b")
    assert status == Status.UNAVAILABLE and "hearthlink model resume" in err
    assert "yielded" in (await model("list"))[2]
    assert "In memory: b." in await model.done("resume")
    assert model.runtime.present == ["b"]
    assert "was not yielded" in await model.done("resume")


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("load", "nobody"), Status.NOT_FOUND, "no model of that name"),
        (("load", "nobody"), Status.NOT_FOUND, "`hearthlink model list`"),
        (("load", "b", "--gpu-ratio", "7"), Status.USAGE, "--gpu-ratio"),
        (("load", "b", "--node", "x"), Status.USAGE, "--url URL"),
        (("unload", "nobody"), Status.NOT_FOUND, "no model of that name"),
    ],
)
async def test_refusals_are_sentences_with_a_status(
    model: Verbs, arguments: tuple[str, ...], status: Status, words: str
) -> None:
    got, _, err = await model(*arguments)
    assert (got, words in err) == (status, True), err


async def test_a_load_that_fails_says_why(model: Verbs) -> None:
    model.runtime.broken.add("b")
    status, _, err = await model("load", "b")
    assert status == Status.FAILED and "The model is broken." in err
    assert model.runtime.present == ["a"]


async def test_with_url_an_edge_is_asked_which_wants_a_key_that_administers(
    model: Verbs, monkeypatch: pytest.MonkeyPatch
) -> None:
    edge = ("--url", model.pair.url)
    status, _, err = await model("list", *edge)
    assert status == Status.AUTH and "HEARTHLINK_CHAT_KEY" in err
    monkeypatch.setenv("HEARTHLINK_CHAT_KEY", model.pair.key)
    assert (await model("list", *edge))[0] == Status.AUTH, "a key for chats does not administer"
    monkeypatch.setenv("HEARTHLINK_CHAT_KEY", model.key)
    assert "in memory" in await model.done("load", "b", *edge, "--node", "default")
    assert model.runtime.present == ["b"]
    status, _, err = await model("yield", *edge, "--node", "elsewhere")
    assert status == Status.NOT_FOUND and "default" in err


async def test_without_a_node_verbs_say_where_one_was_looked_for_and_the_list_goes_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HEARTHLINK_STATE", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert await asyncio.to_thread(main, ["model", "yield"]) == Status.UNAVAILABLE
    assert str(tmp_path / "node.sock") in capsys.readouterr().err
    assert await asyncio.to_thread(main, ["model", "list"]) == 0
    assert "No node runs here." in capsys.readouterr().err


def test_without_a_terminal_the_progress_is_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    times = iter([0.0, 1.0, 6.0, 6.0, 7.0, 7.0])
    with LoadBar(lambda: next(times)) as bar:
        for progress in (None, 0.1, 0.5):
            bar.show("b", progress)
    assert capsys.readouterr().err.splitlines() == ["Loading b.", "Loading b: 50 %."]
