from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from shared.state import StateDir, StateError


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_everything_is_made_once_and_private(tmp_path: Path) -> None:
    state = StateDir(tmp_path / "a" / "state")
    assert mode(state.path) == 0o700
    token, keys, node_id = state.node_token(), state.signing_keys(), state.node_id()
    assert token.startswith("hln_") and len(token) == 4 + 43
    assert len(keys) == 1 and len(keys[0]) == 43
    assert state.database == state.path / "edge.db"
    again = StateDir(state.path)
    assert (again.node_token(), again.signing_keys(), again.node_id()) == (token, keys, node_id)
    assert again.database.exists()
    names = ["edge.db", "node-id", "node-token", "signing-keys"]
    assert sorted(os.listdir(state.path)) == names, "no draft is left behind"
    assert {mode(state.path / name) for name in names} == {0o600}


def test_processes_that_race_agree(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from shared.state import StateDir; sys.stdin.read();"
        "s = StateDir(Path(sys.argv[1])); print(s.node_token(), s.signing_keys(), s.node_id())"
    )
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "state")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for racer in racers:
        assert racer.stdin
        racer.stdin.close()
    said = set()
    for racer in racers:
        assert racer.stdout
        said.add(racer.stdout.read())
        assert racer.wait(30) == 0
        racer.stdout.close()
    assert len(said) == 1


def test_a_writer_that_comes_second_takes_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = StateDir(tmp_path), StateDir(tmp_path)
    token = first.node_token()
    real = Path.exists
    monkeypatch.setattr(Path, "exists", lambda path: path.name != "node-token" and real(path))
    assert second.node_token() == token
    assert os.listdir(tmp_path) == ["node-token"]


def test_a_secret_that_everybody_can_read_is_refused(tmp_path: Path) -> None:
    state = StateDir(tmp_path)
    token = state.node_token()
    (tmp_path / "node-token").chmod(0o644)
    with pytest.raises(StateError) as caught:
        state.node_token()
    assert f"chmod 600 '{tmp_path / 'node-token'}'" in str(caught.value)
    assert token not in str(caught.value)
    (tmp_path / "node-token").chmod(0o640)
    assert state.node_token() == token, "a group is the administrator's decision"


def test_a_folder_that_everybody_can_write_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(StateError, match="chmod 700"):
        StateDir(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "{}", "null", '["short"]', "[1]", "not json"])
def test_spoilt_signing_keys_say_what_to_do(tmp_path: Path, content: str) -> None:
    file = tmp_path / "signing-keys"
    file.write_text(content)
    file.chmod(0o600)
    with pytest.raises(StateError, match=r"is not a JSON list of keys.*delete it"):
        StateDir(tmp_path).signing_keys()


def test_several_signing_keys_keep_their_order(tmp_path: Path) -> None:
    keys = ["a" * 43, "b" * 43]
    file = tmp_path / "signing-keys"
    file.write_text(json.dumps(keys))
    file.chmod(0o600)
    assert StateDir(tmp_path).signing_keys() == keys


@pytest.mark.parametrize("content", [b"", b"hln_", b"hlk_" + b"a" * 43, b"hln_\xff" + b"a" * 43])
def test_a_spoilt_node_token_says_what_to_do(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "node-token"
    file.write_bytes(content)
    file.chmod(0o600)
    with pytest.raises(StateError, match="delete it to have a new one made"):
        StateDir(tmp_path).node_token()


def test_a_state_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="HEARTHLINK_STATE"):
        StateDir(tmp_path / "file" / "state")
