from __future__ import annotations

import contextlib
import fcntl
import json
import os
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from edge.store.sqlite.database import exclusive, open_for_admin
from shared.signing_keys import LONGEST_TOKEN, OldKey
from shared.state import StateDir, StateError


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_everything_is_made_once_and_private(tmp_path: Path) -> None:
    state = StateDir(tmp_path / "a" / "state")
    assert mode(state.path) == 0o700
    token, keys, node_id = state.node_token(), state.signing_keys(), state.node_id()
    assert token.startswith("hln_") and len(token) == 4 + 43
    assert keys.old == () and [len(key) for key in keys.verifying] == [43, 43]
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
        "s = StateDir(Path(sys.argv[1])); print(s.node_token(), s.signing_keys().to_json(), s.node_id())"
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
    with pytest.raises(StateError, match=r"does not hold signing keys.*delete it"):
        StateDir(tmp_path).signing_keys()


def test_a_list_of_an_earlier_version_is_taken_over_once(tmp_path: Path) -> None:
    file = tmp_path / "signing-keys"
    file.write_text(json.dumps(["a" * 43, "b" * 43]))
    file.chmod(0o640)
    keys = StateDir(tmp_path).signing_keys()
    assert keys.current == "b" * 43 and [old.key for old in keys.old] == ["a" * 43]
    assert keys.old[0].until > time.time() + LONGEST_TOKEN - 60, "its tokens keep until their own end"
    assert StateDir(tmp_path).signing_keys() == keys, "the next key is drawn once"
    assert (mode(file), os.listdir(tmp_path)) == (0o640, ["signing-keys"])


def test_a_rotation_replaces_the_file_whole(tmp_path: Path) -> None:
    state = StateDir(tmp_path)
    before, seen = state.signing_keys(), state.signing_keys_version()
    now = int(time.time())
    after = state.rotate_signing_keys(now, 600)
    assert (after.current, after.old) == (before.next, (OldKey(before.current, now + 600),))
    assert StateDir(tmp_path).signing_keys() == after
    assert state.signing_keys_version() not in (None, seen)
    assert (mode(tmp_path / "signing-keys"), os.listdir(tmp_path)) == (0o600, ["signing-keys"])


def test_rotations_in_a_row_are_refused_and_change_nothing(tmp_path: Path) -> None:
    state, now = StateDir(tmp_path), int(time.time())
    keys = state.rotate_signing_keys(now, 600)
    with pytest.raises(ValueError, match="rotated a moment ago"):
        state.rotate_signing_keys(now + 2, 600)
    assert state.signing_keys() == keys
    assert state.rotate_signing_keys(now + 10, 600).old[1].key == keys.current


def test_of_rotations_at_once_one_is_done(tmp_path: Path) -> None:
    first, now = StateDir(tmp_path).signing_keys(), int(time.time())

    def rotate(_: int) -> bool:
        try:
            StateDir(tmp_path).rotate_signing_keys(now, 600)
        except ValueError:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(rotate, range(4))) == [False, False, False, True]
    keys = StateDir(tmp_path).signing_keys()
    assert (keys.current, [old.key for old in keys.old]) == (first.next, [first.current])
    assert os.listdir(tmp_path) == ["signing-keys"]


@pytest.mark.skipif(os.geteuid() != 0, reason="who is not root replaces files of its own alone")
def test_what_root_rotates_stays_the_edge_s(tmp_path: Path) -> None:
    StateDir(tmp_path).signing_keys()
    os.chown(tmp_path / "signing-keys", 12345, 23456)
    StateDir(tmp_path).rotate_signing_keys(int(time.time()), 600)
    found = (tmp_path / "signing-keys").stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (12345, 23456, 0o600)


@pytest.mark.skipif(os.geteuid() != 0, reason="who is not root makes files of its own alone")
def test_what_root_makes_is_the_edge_s(tmp_path: Path) -> None:
    """An owner's command may be the first to need a file. SQLite gives its journal to whom the database belongs."""
    os.chown(tmp_path, 12345, 23456)
    state = StateDir(tmp_path)
    for made in (state.node_token, state.node_id, state.signing_keys):
        made()
    with exclusive(state.database), contextlib.closing(open_for_admin(state.database)) as connection:
        connection.execute("INSERT INTO resets VALUES ('key_1')")
        found = {path.name: path.stat() for path in tmp_path.iterdir()}
    assert {"edge.db", "edge.db-wal", "edge.db-shm", "edge.db.lock", "node-id", "node-token", "signing-keys"} == set(
        found
    )
    for name, file in found.items():
        assert (file.st_uid, file.st_gid, stat.S_IMODE(file.st_mode)) == (12345, 23456, 0o600), name


def test_a_rotation_waits_for_the_one_before_and_says_when_that_takes_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = StateDir(tmp_path)
    keys = state.signing_keys()
    monkeypatch.setattr("shared.state._LOCK_SECONDS", 0.05)
    folder = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    with pytest.raises(StateError, match="Another process is changing"):
        state.rotate_signing_keys(int(time.time()), 600)
    os.close(folder)
    assert state.signing_keys() == keys
    state.rotate_signing_keys(int(time.time()), 600)


def test_no_version_of_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert StateDir(tmp_path).signing_keys_version() is None


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
