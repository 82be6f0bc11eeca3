"""Where tailscaled's socket is looked for, and where it is not."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.tailscale.errors import NotSupported
from shared.tailscale.socket import Endpoint, find

LSOF = """#!/bin/sh
printf 'p811\\nfcwd\\nn/\\nf9\\nn/Users/anna/Group Containers/x.%s/sameuserproof-49552-%s\\n' "{folder}" feed0123
"""


def there(root: Path, path: str) -> None:
    file = root / path.lstrip("/")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder that programs are found in."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def test_what_is_named_wins(tmp_path: Path) -> None:
    there(tmp_path, "/var/run/tailscale/tailscaled.sock")
    environ = {"TS_SOCKET": "/tmp/tailscaled.sock"}
    assert find("/a.sock", environ=environ, root=str(tmp_path)) == Endpoint(path="/a.sock")
    assert find(environ=environ, root=str(tmp_path)) == Endpoint(path="/tmp/tailscaled.sock")


@pytest.mark.parametrize(
    "path",
    [
        "/var/run/tailscale/tailscaled.sock",
        "/run/tailscale/tailscaled.sock",
        "/var/packages/Tailscale/var/tailscaled.sock",
        "/var/packages/Tailscale/etc/tailscaled.sock",
        "/perm/tailscaled/tailscaled.sock",
    ],
)
def test_the_usual_places_on_linux(tmp_path: Path, path: str) -> None:
    there(tmp_path, path)
    assert find(environ={}, platform="linux", root=str(tmp_path)) == Endpoint(path=f"{tmp_path}{path}")


def test_without_any_it_is_where_it_would_be(tmp_path: Path) -> None:
    found = find(environ={}, platform="linux", root=str(tmp_path))
    assert str(found) == f"{tmp_path}/var/run/tailscale/tailscaled.sock"


@pytest.mark.parametrize("path", ["/tmp/tailscaled.sock", "/tmp/tailscale/tailscaled.sock"])
def test_a_folder_that_everybody_writes_is_not_searched(tmp_path: Path, path: str) -> None:
    there(tmp_path, path)
    assert "/tmp/tailscale" not in find(environ={}, platform="linux", root=str(tmp_path)).path.removeprefix(
        str(tmp_path)
    )


def test_windows_is_told_what_to_do_instead() -> None:
    with pytest.raises(NotSupported, match="WSL2"):
        find(environ={}, platform="win32")


def test_macos_with_a_tailscaled_of_its_own(tmp_path: Path, programs: Path) -> None:
    assert find(environ={}, platform="darwin", root=str(tmp_path)).path == f"{tmp_path}/var/run/tailscaled.socket"


def test_macos_with_the_app_of_the_store(tmp_path: Path, programs: Path) -> None:
    lsof = programs / "lsof"
    lsof.write_text(LSOF.format(folder="tailscale.ipn.macos"))
    lsof.chmod(0o755)
    found = find(environ={}, platform="darwin", root=str(tmp_path))
    assert found == Endpoint(port=49552, token="feed0123")
    assert (str(found), "feed0123" in repr(found)) == ("127.0.0.1:49552", False)


def test_macos_with_something_else_open(tmp_path: Path, programs: Path) -> None:
    lsof = programs / "lsof"
    lsof.write_text(LSOF.format(folder="other.ipn"))
    lsof.chmod(0o755)
    assert find(environ={}, platform="darwin", root=str(tmp_path)).port == 0


@pytest.fixture
def listening() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def standalone(root: Path, port: int, token: str) -> None:
    folder = root / "Library" / "Tailscale"
    folder.mkdir(parents=True)
    os.symlink(str(port), folder / "ipnport")
    (folder / f"sameuserproof-{port}").write_text(token)


def test_macos_with_the_standalone_app(tmp_path: Path, programs: Path, listening: int) -> None:
    standalone(tmp_path, listening, "feed0123\n")
    assert find(environ={}, platform="darwin", root=str(tmp_path)) == Endpoint(port=listening, token="feed0123")


def test_macos_with_what_a_standalone_app_left_behind(tmp_path: Path, programs: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    standalone(tmp_path, port, "feed0123\n")
    assert find(environ={}, platform="darwin", root=str(tmp_path)).port == 0, "nothing listens there any more"


def test_macos_with_an_empty_token(tmp_path: Path, programs: Path, listening: int) -> None:
    standalone(tmp_path, listening, "\n")
    assert find(environ={}, platform="darwin", root=str(tmp_path)).port == 0
