"""The model of ``up`` and ``node``: named by flag, environment or file, pulled when it is missing."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest

from bench.random_model import make
from hearthlink import options
from hearthlink.models import catalogue
from hearthlink.models.catalogue import Choice
from hearthlink.models.reference import Reference
from hearthlink.models.wanted import Wanted
from hearthlink.output import Failure
from tests import command_line
from tests.command_line import finish, run, running_up, start
from tests.fake_hub import COMMIT, NOBODY, FakeHub, cut, refuse
from tests.pulling import MODEL

DEMO = command_line.ROOT / "models" / "demo.gguf"
BIG = "hf:acme/big/q4/big-00001-of-00003.gguf"
VARIABLE = "HEARTHLINK_NODE__RUNTIME__MODEL"


@pytest.fixture
def big(hub: FakeHub, tmp_path: Path) -> FakeHub:
    """``hub`` with ``BIG``, a model that llama.cpp loads, in three shards."""
    folder = tmp_path / "offered"
    folder.mkdir()
    make(folder / "big.gguf", parameters=1_000_000, context=512, shard_tensors=5)
    for path in sorted(folder.iterdir()):
        hub.put(f"acme/big/q4/{path.name}", path.read_bytes())
    assert len([name for name in hub.files if "/big/" in name]) == 3
    return hub


# -- which model that is ----------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Choice:
    """The only short name: ``tiny-1``."""
    for name in ("HOME", "HEARTHLINK_STATE"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.chdir(tmp_path)
    choice = Choice(Reference("acme", "one", "a.gguf", COMMIT), "tiny-1", "0" * 64, 50_000)
    monkeypatch.setattr(catalogue, "CATALOGUE", (choice,))
    return choice


def meant(model: str) -> Wanted | None:
    """What ``--model`` means."""
    return options.wanted_model(options.settings_from(None, options.runtime_flags(model, None)))


def test_a_short_name_is_pulled_unless_a_file_is_called_so(tiny: Choice, tmp_path: Path) -> None:
    there = tmp_path / f"models/acme/one/{COMMIT}/a.gguf"
    assert meant("tiny-1") == meant(f"hf:acme/one@{COMMIT}/a.gguf") == Wanted(there, tiny)
    Path("tiny-1").touch()
    assert meant("tiny-1") == Wanted(tmp_path / "tiny-1")
    assert meant("none.gguf") == Wanted(tmp_path / "none.gguf")
    with pytest.raises(Failure, match="no file and no model called 'tiny-2'"):
        meant("tiny-2")


def test_file_and_environment_name_a_model_as_the_flag_does(
    tiny: Choice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = Wanted(tmp_path / f"models/acme/one/{COMMIT}/a.gguf", tiny)
    file = tmp_path / "etc" / "hearthlink.toml"
    file.parent.mkdir()
    file.write_text('[node.runtime]\nmodel = "tiny-1"\n')
    (tmp_path / "tiny-1").touch()  # beside the working folder's file, not the settings'
    assert options.wanted_model(options.settings_from(file)) == there
    (tmp_path / "tiny-1").rename(file.parent / "tiny-1")
    assert options.wanted_model(options.settings_from(file)) == Wanted(file.parent / "tiny-1")
    monkeypatch.setenv(VARIABLE, "tiny-1")
    assert options.wanted_model(options.settings_from(file)) == there
    monkeypatch.setenv(VARIABLE, "tiny-2")
    with pytest.raises(Failure, match=rf"^node.runtime.model \(env {VARIABLE}\): There is no file and no model called"):
        options.wanted_model(options.settings_from(file))


@pytest.mark.usefixtures("tiny")
def test_no_model_is_looked_for_where_a_server_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert options.wanted_model(options.settings_from(None)) is None  # `auto` looks around first
    monkeypatch.setenv(VARIABLE, "tiny-2")
    assert options.wanted_model(options.settings_from(None, options.runtime_flags(None, "http://127.0.0.1:9"))) is None


# -- up and node ------------------------------------------------------------------------------------------------------


async def test_up_pulls_the_model_and_answers_with_it(hub: FakeHub, tmp_path: Path) -> None:
    hub.put("acme/demo/little-demo.gguf", DEMO.read_bytes())
    hub.store.twists.append(cut(2_000_000))
    environ = {"HF_ENDPOINT": hub.url}
    async with running_up("--model", "hf:acme/demo/little-demo.gguf", state=tmp_path, environ=environ) as up:
        assert "little-demo (embedded)" in up.out
        assert "little-demo: " in up.err and "Trying again in" in up.err
        asked = await run("chat", "we are bored", "--type", "somethingFun", "--url", up.url, state=tmp_path)
        assert asked.status == 0 and len(asked.out.split()) > 3, asked
    # It is here now: nobody has to be asked, and its name in the list is enough.
    async with running_up("--model", "little-demo", state=tmp_path, environ={"HF_ENDPOINT": NOBODY}) as up:
        assert "little-demo (embedded)" in up.out and "to load" not in up.err


async def test_up_answers_with_the_shards_that_the_file_names(big: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "hearthlink.toml").write_text(f'[node.runtime]\nmodel = "{BIG}"\n')
    async with running_up(state=tmp_path, environ={"HF_ENDPOINT": big.url}) as up:
        assert "big (embedded)" in up.out and "big: 1.7 MB to load" in up.err
        asked = await run("chat", "hello", "--url", up.url, "--json", state=tmp_path)
        assert asked.status == 0 and json.loads(asked.out)["model"] == "big", asked


async def test_node_pulls_what_the_environment_names(big: FakeHub, tmp_path: Path) -> None:
    environ = {"HF_ENDPOINT": big.url, VARIABLE: BIG, "HEARTHLINK_LOGS__FORMAT": "text"}
    process = await start("node", "--listen", "127.0.0.1:0", state=tmp_path, environ=environ)
    assert process.stderr is not None
    said = ""
    try:
        async with asyncio.timeout(command_line.PATIENCE):
            while "It answers as big." not in said:
                line = await process.stderr.readline()
                assert line, said
                said += line.decode()
        process.terminate()
    finally:
        ended = await finish(process)
    assert ended.status == 0 and "big: 1.7 MB to load" in said


@pytest.mark.parametrize(
    ("verb", "arguments", "status", "sentence"),
    [
        ("up", ("--port", "0", "--model", "hf:acme/demo/none.gguf"), 3, "There is no repository acme/demo"),
        ("up", ("--port", "0", "--model", "hf:acme"), 2, "does not name a model on a hub"),
        ("up", ("--port", "0", "--model", "none.gguf"), 3, "a model to pull with --model hf:owner/repo/file.gguf or"),
        ("up", ("--port", "0", "--model", "none"), 3, "There is no file and no model called 'none'"),
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
    ended = await finish(
        await start("node", "--listen", "127.0.0.1:0", "--model", MODEL, state=tmp_path, environ=environ)
    )
    assert ended.status == 5 and "HTTP 429" in ended.err, ended


async def test_a_bare_node_says_who_knows_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(command_line, "COMMAND", (sys.executable, "-m", "node"))
    refused = await run(state=tmp_path, environ={VARIABLE: MODEL})
    assert refused.status == 78 and f"node.runtime.model = '{MODEL}' is the name of a model" in refused.err
    assert "`hearthlink node`" in refused.err and f"`hearthlink model pull {MODEL}`" in refused.err


async def test_config_check_knows_the_models(tmp_path: Path) -> None:
    checked = await run("config", "check", "--json", state=tmp_path, environ={VARIABLE: "none"})
    assert checked.status == 2 and f"(env {VARIABLE}): There is no file and no model" in checked.out
    assert (await run("config", "check", state=tmp_path, environ={VARIABLE: "smollm2-360m"})).status == 0
