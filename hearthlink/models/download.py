"""One file from the hub into its part: from where the last try ended, hashed on the way, and nothing that is not it."""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import Callable
from io import FileIO
from pathlib import Path

import httpx2

from hearthlink.models import amounts
from hearthlink.models.hub import Hub, RemoteFile, strong_etag
from hearthlink.models.meter import Meter
from hearthlink.models.patience import Passing, Patience
from hearthlink.models.reference import Reference
from hearthlink.output import Failure, printable
from node.runtimes.gguf import MAGIC

_READ_BYTES = 1 << 20
# A file that changes at the store again and again while it is loaded will not stop doing so.
_MAX_RESTARTS = 3
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18}|\*)")
_LONG_CHECK_BYTES = 1 << 28  # hashing takes about a second from here on: the person is told why nothing moves
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class Download:
    """One run of loading ``remote`` into the file ``part``. ``validator`` is the store's ETag of what ``part`` holds
    already; ``remember`` is called with a new one before the first byte that belongs to it.

    After a Failure ``part`` is gone when it was worthless, and is otherwise where the next run goes on from.
    """

    def __init__(
        self,
        hub: Hub,
        reference: Reference,
        remote: RemoteFile,
        part: Path,
        meter: Meter,
        validator: str,
        remember: Callable[[str], None],
    ) -> None:
        self._hub = hub
        self._reference = reference
        self._remote = remote
        self._part = part
        self._meter = meter
        self._validator = validator
        self._remember = remember
        self._digest = hashlib.sha256()
        self._have = 0
        self._start = b""  # the first bytes, as many as the magic has
        self._restarts = 0

    def run(self) -> str:
        """Load until ``part`` is the whole file; its sha256, which is the promised one. Raises Failure, OSError."""
        patience = Patience(self._meter.note)
        with FileIO(self._part, "a+") as file:
            self._take_up(file)
            while self._have < self._remote.size:
                before = self._have
                try:
                    self._load(file)
                except Passing as trouble:
                    patience.wait(trouble, self._have - before)
            os.fsync(file.fileno())
        return self._checked()

    def _take_up(self, file: FileIO) -> None:
        """Hash what is there from an earlier run."""
        if (there := os.fstat(file.fileno()).st_size) > _LONG_CHECK_BYTES:
            self._meter.note(f"Checking the {amounts.size(there)} of {self._remote.path} that are here.")
        file.seek(0)
        while chunk := file.read(_READ_BYTES):
            self._hash(chunk)
        if self._have > self._remote.size or not MAGIC.startswith(self._start):
            self._meter.advance(-min(self._have, self._remote.size))
            self._empty(file)

    def _load(self, file: FileIO) -> None:
        """One request. Raises Passing when the file is not whole after it."""
        try:
            with self._hub.open(self._reference, self._remote, self._have, self._validator) as response:
                self._place(file, response)
                for chunk in response.iter_raw():  # as it comes: what was read is kept when the rest does not come
                    self._write(file, chunk)
                where = response.url
        except httpx2.TransportError as error:
            raise self._hub.unreachable(error) from None
        if self._have < self._remote.size:
            raise Passing(f"{where.host} ended {self._remote.path} after {self._have} of {self._remote.size} bytes.")

    def _place(self, file: FileIO, response: httpx2.Response) -> None:
        """Make the end of the file the place where the body of ``response`` begins. Raises Passing, Failure."""
        etag = strong_etag(response.headers)
        at = _offset(response)
        if response.status_code == 416 or (at and self._validator and etag and etag != self._validator):
            self._restart(file, response)
            raise Passing(f"{self._remote.path} is another file now at {response.url.host}: beginning again.")
        if at not in (0, self._have):
            raise Passing(f"{response.url.host} sent another part than was asked for.")
        if announced := _total(response):
            self._agree(announced)
        if at == 0 and self._have:
            self._restart(file, response)
        if etag != self._validator:
            self._validator = etag
            self._remember(etag)

    def _agree(self, announced: int) -> None:
        """Raise Failure when the store means another file than the hub."""
        if announced != self._remote.size:
            self._discard()
            raise Failure(
                f"The hub says that {self._remote.path} has {self._remote.size} bytes, and its store wants to send"
                f" {announced}. Nothing of it was kept. Try again later; the hub may be in the middle of a change."
            )

    def _restart(self, file: FileIO, response: httpx2.Response) -> None:
        self._restarts += 1
        if self._restarts > _MAX_RESTARTS:
            raise Failure(
                f"{response.url.host} does not let a download of {self._remote.path} go on: it had to begin again"
                f" {_MAX_RESTARTS} times. Try again later."
            )
        self._meter.advance(-self._have)
        self._empty(file)

    def _empty(self, file: FileIO) -> None:
        file.truncate(0)
        self._digest, self._have, self._start = hashlib.sha256(), 0, b""
        if self._validator:
            self._validator = ""
            self._remember("")

    def _hash(self, chunk: bytes) -> None:
        self._digest.update(chunk)
        self._have += len(chunk)
        self._start += chunk[: len(MAGIC) - len(self._start)]

    def _write(self, file: FileIO, chunk: bytes) -> None:
        """Append ``chunk``. Raises Failure when it cannot belong to the file, or cannot be written."""
        if self._have + len(chunk) > self._remote.size:
            self._discard()
            raise Failure(
                f"More came than the {self._remote.size} bytes of {self._remote.path}: that is not the file. It was"
                " thrown away. Try again; if it comes back, ask whoever runs the hub or the proxy in between."
            )
        if not MAGIC.startswith((self._start + chunk)[: len(MAGIC)]):
            self._discard()
            raise not_gguf(self._remote.path, f"does not begin with the letters {MAGIC.decode()}")
        rest = memoryview(chunk)
        try:
            while rest:
                rest = rest[file.write(rest) :]
        except OSError as error:
            raise self._unwritten(error) from None
        self._hash(chunk)
        self._meter.advance(len(chunk))

    def _unwritten(self, error: OSError) -> Failure:
        if error.errno not in _FULL:
            return Failure(f"{self._part} cannot be written: {error.strerror}.")
        return no_space(self._part.parent, self._remote.size - self._have)

    def _checked(self) -> str:
        found = self._digest.hexdigest()
        if self._remote.sha256 and found != self._remote.sha256:
            self._discard()
            raise Failure(
                f"{self._remote.path} arrived with the sha256 {found}, and {self._remote.sha256} was promised. It was"
                " thrown away. Try again; if it comes back, somebody in between changes it, or it is damaged on the"
                " hub."
            )
        return found

    def _discard(self) -> None:
        self._part.unlink(missing_ok=True)


def no_space(folder: Path, needed: int) -> Failure:
    """What to say when ``needed`` more bytes do not fit into ``folder``."""
    free = free_bytes(folder)
    return Failure(
        f"There is no space for the model: {amounts.size(needed)} more are needed in {folder}, and"
        f" {amounts.size(free)} are free there. Free some (`hearthlink model rm` helps), or set HEARTHLINK_STATE to a"
        " folder on a larger disk."
    )


def not_gguf(path: str, why: str) -> Failure:
    return Failure(
        f"{printable(path)} is no model: it {why}. It was thrown away. A page to sign in to a network looks like this,"
        " too."
    )


def free_bytes(folder: Path) -> int:
    """What this user may still write in ``folder``. Raises OSError."""
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize


def _offset(response: httpx2.Response) -> int:
    """The offset that the body of ``response`` begins at; -1 when it does not say so."""
    if response.status_code != 206:
        return 0
    found = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", "").strip())
    return int(found[1]) if found else -1


def _total(response: httpx2.Response) -> int:
    """The size of the whole file as the store announces it; 0 when it does not."""
    if response.status_code == 206:
        found = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", "").strip())
        return int(found[2]) if found and found[2] != "*" else 0
    length = response.headers.get("content-length", "")
    return int(length) if length.isascii() and length.isdigit() and len(length) < 19 else 0
