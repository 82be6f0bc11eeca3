"""The state folder: what a process has to keep over a restart, and the secrets that nobody had to configure.

    node-token     what the edge shows the node        signing-keys   JSON list, oldest first, the last one signs
    node-id        the node's name on the link         edge.db        the edge's SQLite database

Each file is made when it is first asked for, mode 0600 in a folder of mode 0700.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import stat
from collections.abc import Callable
from pathlib import Path

from shared.contract.secrets import NODE_TOKEN

_SECRET_BYTES = 32  # 256 bits, 43 characters as urlsafe text
_MAX_FILE_BYTES = 64 * 1024  # far above what is written here; a larger file is not ours
_OTHERS = stat.S_IROTH | stat.S_IWOTH


class StateError(Exception):
    """State that cannot be used; the message says which file, why, and what to do. No secret is in it."""


class StateDir:
    """The folder ``path``, made when missing. Holds nothing open, so there is nothing to close.

    All methods do file I/O and are for start-up. Every one raises StateError.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            mode = path.stat().st_mode
        except OSError as error:
            raise StateError(
                f"The state folder {path} cannot be made: {error.strerror}. Set HEARTHLINK_STATE to a folder that this"
                " user may write."
            ) from None
        if mode & stat.S_IWOTH:
            raise StateError(f"Every user may write the state folder {path}. Run: chmod 700 '{path}'")

    @property
    def database(self) -> Path:
        """The edge's database. An empty file of mode 0600 is made first, which SQLite then gives its journal too."""
        path = self.path / "edge.db"
        try:
            with contextlib.suppress(FileExistsError):
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        except OSError as error:
            raise _cannot(path, "made", error) from None
        return path

    def node_token(self) -> str:
        """The token between edge and node: ``hln_`` and 43 urlsafe characters."""
        token = self._content("node-token", lambda: NODE_TOKEN + secrets.token_urlsafe(_SECRET_BYTES))
        if len(token) < _SECRET_BYTES or not token.startswith(NODE_TOKEN) or not token.isascii() or " " in token:
            raise self._spoilt("node-token", "does not hold a node token", " and restart edge and node")
        return token

    def signing_keys(self) -> list[str]:
        """Keys of the edge's tokens, oldest first; the last one signs."""
        content = self._content("signing-keys", lambda: json.dumps([secrets.token_urlsafe(_SECRET_BYTES)]))
        try:
            keys = json.loads(content)
        except ValueError:
            keys = None
        if isinstance(keys, list) and keys and all(isinstance(key, str) and len(key) >= _SECRET_BYTES for key in keys):
            return keys
        raise self._spoilt("signing-keys", "is not a JSON list of keys", "; tokens that are out become invalid")

    def node_id(self) -> str:
        """The node's lasting name on the link: 16 hex digits."""
        node_id = self._content("node-id", lambda: secrets.token_hex(8))
        if not (node_id.isascii() and node_id.isalnum() and len(node_id) <= 64):
            raise self._spoilt("node-id", "does not hold a node id", "")
        return node_id

    def _content(self, name: str, make: Callable[[], str]) -> str:
        """What the file holds; made first when it is missing. Of two processes at once, both get the winner's."""
        path = self.path / name
        try:
            if not path.exists():
                self._create(path, make())
            return self._read(path)
        except OSError as error:
            raise _cannot(path, "used", error) from None
        except UnicodeDecodeError:
            raise self._spoilt(name, "is not text", "") from None

    def _create(self, path: Path, content: str) -> None:
        """Written whole under another name, then linked: a reader sees all or nothing, and a second writer loses."""
        draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        try:
            with open(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w", encoding="ascii") as file:
                file.write(content + "\n")
                file.flush()
                os.fsync(file.fileno())
            with contextlib.suppress(FileExistsError):
                os.link(draft, path)
        finally:
            draft.unlink(missing_ok=True)

    def _read(self, path: Path) -> str:
        with path.open(encoding="utf-8") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if mode & _OTHERS:
                raise StateError(
                    f"Every user here can read the secret {path} (mode {mode:04o}). Run: chmod 600 '{path}'"
                )
            return file.read(_MAX_FILE_BYTES).strip()

    def _spoilt(self, name: str, what: str, then: str) -> StateError:
        path = self.path / name
        return StateError(f"{path} {what}. Restore it, or delete it to have a new one made{then}.")


def _cannot(path: Path, verb: str, error: OSError) -> StateError:
    return StateError(
        f"{path} cannot be {verb}: {error.strerror}. Run Hearthlink as the user who owns it, or set HEARTHLINK_STATE."
    )
