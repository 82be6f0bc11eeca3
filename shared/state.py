"""The state folder: what a process has to keep over a restart, and the secrets that nobody had to configure.

    node-token     what the edge shows the node        signing-keys   keys of the edge's tokens, as JSON
    node-id        the node's name on the link         edge.db        the edge's SQLite database

Each file is made when it is first asked for, mode 0600 in a folder of mode 0700; one that root makes belongs to the
owner of the folder. Only signing-keys ever changes, whole and under a lock on the folder, so that a reader sees the
keys of before or those of after.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from shared.contract.secrets import NODE_TOKEN
from shared.ownership import belongs_to_folder, make_empty
from shared.signing_keys import SigningKeys

_SIGNING_KEYS = "signing-keys"
_SECRET_BYTES = 32  # 256 bits, 43 characters as urlsafe text
_MAX_FILE_BYTES = 64 * 1024  # far above what is written here; a larger file is not ours
_OTHERS = stat.S_IROTH | stat.S_IWOTH
# Whoever holds the lock writes one small file; a second process that still waits then is told so.
_LOCK_SECONDS = 5.0
_LOCK_POLL_SECONDS = 0.01


class StateError(Exception):
    """State that cannot be used; the message says which file, why, and what to do. No secret is in it."""


class StateDir:
    """The folder ``path``, made when missing. Holds nothing open, so there is nothing to close.

    All methods do file I/O and are for start-up, and every one raises StateError. On the loop of an edge that runs are
    only ``signing_keys_version``, and ``signing_keys`` without ``patience`` when that changed: one small file is read,
    and written once if it is gone or an earlier version's.
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
                make_empty(path)
        except OSError as error:
            raise _cannot(path, "made", error) from None
        return path

    def node_token(self) -> str:
        """The token between edge and node: ``hln_`` and 43 urlsafe characters."""
        token = self._content("node-token", lambda: NODE_TOKEN + secrets.token_urlsafe(_SECRET_BYTES))
        if len(token) < _SECRET_BYTES or not token.startswith(NODE_TOKEN) or not token.isascii() or " " in token:
            raise self._spoilt("node-token", "does not hold a node token", " and restart edge and node")
        return token

    def signing_keys(self, *, patience: float = _LOCK_SECONDS) -> SigningKeys:
        """Keys of the edge's tokens. A list of them, as an earlier version wrote it, is written anew; while another
        process changes the file it waits ``patience`` seconds for that."""
        content = self._content(_SIGNING_KEYS, lambda: SigningKeys.new().to_json())
        if content.startswith("["):
            with self._locked(patience):
                content = self._content(_SIGNING_KEYS, lambda: SigningKeys.new().to_json())
                if content.startswith("["):
                    return self._replace_keys(self._parsed(lambda: SigningKeys.from_list(content, int(time.time()))))
        return self._parsed(lambda: SigningKeys.from_json(content))

    def signing_keys_version(self) -> tuple[int, int] | None:
        """Another one whenever the file of ``signing_keys`` was replaced, written to or given another mode: a look that
        costs microseconds and raises nothing, for whoever watches it. None while it cannot be seen."""
        try:
            found = os.stat(self.path / _SIGNING_KEYS)
        except OSError:
            return None
        return found.st_ino, found.st_ctime_ns

    def rotate_signing_keys(self, now: int, longest: int) -> SigningKeys:
        """Put ``SigningKeys.rotated`` in place of what is there. Raises ValueError as that does."""
        self.signing_keys()
        with self._locked():
            return self._replace_keys(self.signing_keys().rotated(now, longest))

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
        with _draft(path, content) as draft, contextlib.suppress(FileExistsError):
            os.link(draft, path)

    def _replace_keys(self, keys: SigningKeys) -> SigningKeys:
        path = self.path / _SIGNING_KEYS
        try:
            with _draft(path, keys.to_json()) as draft:
                _as_before(draft, path.stat())
                os.replace(draft, path)
            _sync_folder(self.path)
        except OSError as error:
            raise _cannot(path, "replaced", error) from None
        return keys

    def _parsed(self, parse: Callable[[], SigningKeys]) -> SigningKeys:
        try:
            return parse()
        except ValueError:
            then = "; tokens that are out become invalid"
            raise self._spoilt(_SIGNING_KEYS, "does not hold signing keys", then) from None

    @contextlib.contextmanager
    def _locked(self, patience: float = _LOCK_SECONDS) -> Iterator[None]:
        """Alone among the processes that change a file here. The lock is on the folder, so it leaves nothing behind."""
        try:
            folder = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise _cannot(self.path, "opened", error) from None
        try:
            until = time.monotonic() + patience
            while not _taken(folder):
                if time.monotonic() >= until:
                    raise StateError(f"Another process is changing the secrets in {self.path}. Try again in a moment.")
                time.sleep(_LOCK_POLL_SECONDS)
            yield
        finally:
            os.close(folder)

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


@contextlib.contextmanager
def _draft(path: Path, content: str) -> Iterator[Path]:
    """A file beside ``path`` with ``content``, on the disk; gone after the block, unless it was moved."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with open(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w", encoding="ascii") as file:
            belongs_to_folder(file.fileno(), path.parent)
            file.write(content + "\n")
            file.flush()
            os.fsync(file.fileno())
        yield draft
    finally:
        draft.unlink(missing_ok=True)


def _as_before(draft: Path, before: os.stat_result) -> None:
    """What root replaces stays its owner's, and a group that may read it still may."""
    if (before.st_uid, before.st_gid) != (os.geteuid(), os.getegid()):
        os.chown(draft, before.st_uid, before.st_gid)
    os.chmod(draft, stat.S_IMODE(before.st_mode))


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _taken(folder: int) -> bool:
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def _cannot(path: Path, verb: str, error: OSError) -> StateError:
    return StateError(
        f"{path} cannot be {verb}: {error.strerror}. Run Hearthlink as the user who owns it, or set HEARTHLINK_STATE."
    )
