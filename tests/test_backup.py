"""``hearthlink backup`` and ``restore``: what comes back, and what is refused."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import socket
import sqlite3
import stat
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest

from edge.store.sqlite.database import connect
from node.conversations.conversation import Bounds, Message
from node.conversations.sqlite import SQLiteStorage
from shared.state import StateDir
from tests.pair import create_key
from tests.verbs import run, run_json

BOUNDS = Bounds(lifetime=3600.0, per_caller=10, size=1 << 20, total=1 << 20)


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The state folder that the verbs use, empty, and no settings from anywhere."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    return use_state(tmp_path / "state", monkeypatch)


def use_state(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder.mkdir(mode=0o700)
    monkeypatch.setenv("HEARTHLINK_STATE", str(folder))
    return folder


def key_names(state: Path) -> list[str]:
    connection = connect(state / "edge.db", busy_seconds=1.0)
    try:
        return [name for (name,) in connection.execute("SELECT name FROM keys")]
    finally:
        connection.close()


def left_in(state: Path) -> list[str]:
    """Folders that a verb worked in."""
    return [path.name for path in state.iterdir() if path.name.startswith((".backup", ".restore"))]


async def said(path: Path) -> list[str]:
    storage = await SQLiteStorage.open(path, BOUNDS)
    try:
        found = await storage.read("ada", "c")
        return [message.content for message in found.messages] if found is not None else []
    finally:
        await storage.close()


async def say(path: Path, question: str, answer: str) -> None:
    storage = await SQLiteStorage.open(path, BOUNDS)
    exchange = (Message("user", question, time.time()), Message("assistant", answer, time.time()))
    await storage.add("ada", "c", "home", exchange)
    await storage.close()


async def test_a_backup_made_while_all_is_in_use_brings_everything_back_elsewhere(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    create_key(state, name="the-key")
    node_id, token, keys = StateDir(state).node_id(), StateDir(state).node_token(), StateDir(state).signing_keys()
    (state / "node-models.json").write_text("{}")
    (state / "models").mkdir()
    (state / "models" / "large.gguf").write_bytes(b"x" * 1000)
    await say(state / "conversations.db", "one", "two")
    storage = await SQLiteStorage.open(state / "conversations.db", BOUNDS)
    edge = connect(state / "edge.db", busy_seconds=1.0)
    file = tmp_path / "copy.tar.gz"
    try:
        made = run_json(capsys, "backup", str(file))
    finally:
        await storage.close()
        edge.close()
    assert set(made["files"]) == {
        "edge.db",
        "conversations.db",
        "node-id",
        "node-token",
        "signing-keys",
        "node-models.json",
    }
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert not left_in(state)

    elsewhere = use_state(tmp_path / "elsewhere", monkeypatch)
    status, _, err = run(capsys, "restore", str(file))
    assert (status, "are restored from" in err) == (0, True), err
    again = StateDir(elsewhere)
    assert (again.node_id(), again.node_token(), again.signing_keys()) == (node_id, token, keys)
    assert key_names(elsewhere) == ["the-key"]
    assert await said(elsewhere / "conversations.db") == ["one", "two"]
    assert not (elsewhere / "models").exists()
    for name in made["files"]:
        assert stat.S_IMODE((elsewhere / name).stat().st_mode) == 0o600, name


async def test_what_is_there_is_replaced_only_when_told_to(
    state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "copy.tar.gz"
    await say(state / "conversations.db", "before", "the backup")
    run_json(capsys, "backup", str(file))
    await say(state / "conversations.db", "after", "it")
    status, _, err = run(capsys, "restore", str(file))
    assert (status, "--force" in err) == (2, True)
    assert await said(state / "conversations.db") == ["before", "the backup", "after", "it"]
    run_json(capsys, "restore", str(file), "--force")
    assert await said(state / "conversations.db") == ["before", "the backup"]


@pytest.mark.parametrize("name", ["edge.db", "conversations.db"])
async def test_a_database_that_is_in_use_is_not_replaced(
    state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    file = tmp_path / "copy.tar.gz"
    await say(state / "conversations.db", "one", "two")
    connect(state / "edge.db", busy_seconds=1.0).close()
    run_json(capsys, "backup", str(file))
    using = sqlite3.connect(state / name)
    using.execute("SELECT count(*) FROM sqlite_master").fetchone()
    try:
        status, _, err = run(capsys, "restore", str(file), "--force")
        assert status == 1
        assert f"{name} is in use. Stop edge and node" in err
    finally:
        using.close()
    run_json(capsys, "restore", str(file), "--force")


def test_nothing_is_put_under_a_node_that_runs(state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With conversations in memory it has no database open."""
    file = tmp_path / "copy.tar.gz"
    StateDir(state).node_id()
    run_json(capsys, "backup", str(file))
    with socket.socket(socket.AF_UNIX) as node:
        node.bind(str(state / "node.sock"))
        node.listen()
        status, _, err = run(capsys, "restore", str(file), "--force")
        assert (status, "A node uses" in err) == (1, True), err
    run_json(capsys, "restore", str(file), "--force")  # a socket that nobody listens on is what a crash leaves


async def test_a_database_that_is_damaged_can_be_replaced(
    state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "copy.tar.gz"
    await say(state / "conversations.db", "one", "two")
    run_json(capsys, "backup", str(file))
    (state / "conversations.db").write_bytes(b"damaged" * 1000)
    run_json(capsys, "restore", str(file), "--force")
    assert await said(state / "conversations.db") == ["one", "two"]


def test_a_backup_never_replaces_a_file_and_of_nothing_there_is_none(
    state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "copy.tar.gz"
    status, _, err = run(capsys, "backup", str(file))
    assert (status, "nothing to back up" in err, file.exists()) == (3, True, False)
    StateDir(state).node_id()
    file.write_text("precious")
    status, _, err = run(capsys, "backup", str(file))
    assert (status, "exists already" in err, file.read_text()) == (2, True, "precious")
    status, _, err = run(capsys, "backup", str(tmp_path / "no" / "folder"))
    assert (status, "cannot be written" in err) == (1, True)


@pytest.mark.parametrize("refusal", [errno.EPERM, errno.EOPNOTSUPP])
def test_a_backup_goes_where_there_are_no_hard_links(
    state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, refusal: int
) -> None:
    """As on the FAT and exFAT of memory sticks."""

    def link(*arguments: Any, **options: Any) -> None:
        raise OSError(refusal, os.strerror(refusal))

    node_id = StateDir(state).node_id()
    folder = tmp_path / "stick"
    folder.mkdir()
    file = folder / "copy.tar.gz"
    with monkeypatch.context() as stick:
        stick.setattr(os, "link", link)
        run_json(capsys, "backup", str(file))
        status, _, err = run(capsys, "backup", str(file))
    assert (status, "exists already" in err) == (2, True)
    assert [path.name for path in folder.iterdir()] == ["copy.tar.gz"]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    elsewhere = use_state(tmp_path / "elsewhere", monkeypatch)
    run_json(capsys, "restore", str(file))
    assert StateDir(elsewhere).node_id() == node_id


def archive(file: Path, manifest: Any, members: dict[str, bytes]) -> None:
    with tarfile.open(file, "w:gz") as tar:
        for name, content in {"manifest.json": json.dumps(manifest).encode(), **members}.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def listed(name: str, content: bytes) -> dict[str, Any]:
    return {name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}}


@pytest.mark.parametrize(
    ("manifest", "members", "said"),
    [
        ({"format": 1, "files": listed("../outside", b"x")}, {"../outside": b"x"}, "not part of a state folder"),
        ({"format": 1, "files": listed("models", b"x")}, {"models": b"x"}, "not part of a state folder"),
        ({"format": 1, "files": listed("node-id", b"x")}, {"node-id": b"y"}, "node-id is damaged"),
        ({"format": 1, "files": listed("node-id", b"xx")}, {"node-id": b"x"}, "node-id is damaged"),
        ({"format": 1, "files": listed("node-id", b"x")}, {}, "node-id"),
        ({"format": 2, "version": "9.0", "files": {}}, {}, "version 9.0 wrote it, in another format"),
        ({"format": 1}, {}, "files"),
        ([], {}, "whole backup"),
        (
            {"format": 1, "files": listed("edge.db", b"x" * 500)},
            {"edge.db": b"x" * 500},
            "in the backup is damaged",
        ),
    ],
)
def test_what_is_no_backup_changes_nothing(
    state: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    manifest: Any,
    members: dict[str, bytes],
    said: str,
) -> None:
    file = tmp_path / "copy.tar.gz"
    archive(file, manifest, members)
    status, _, err = run(capsys, "restore", str(file))
    assert status == 1
    assert said in err
    assert "Nothing was changed." in err
    assert list(state.iterdir()) == []
    assert not (tmp_path / "outside").exists()


def test_what_is_no_archive_at_all_and_what_is_cut_changes_nothing(
    state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "copy.tar.gz"
    StateDir(state).node_id()
    run_json(capsys, "backup", str(file))
    whole = file.read_bytes()
    for content in (b"hello", b"", whole[: len(whole) // 2]):
        file.write_bytes(content)
        status, _, err = run(capsys, "restore", str(file), "--force")
        assert (status, "no whole backup" in err) == (1, True), err
    status, _, err = run(capsys, "restore", str(tmp_path / "nowhere"))
    assert (status, "No such file" in err) == (1, True)
