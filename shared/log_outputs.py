"""Where lines of a log end: a stream of the process, a file that is rotated, the journal of systemd.

Each is made anywhere, then used by the thread of its ``LogWriter`` alone.
"""

from __future__ import annotations

import bisect
import contextlib
import errno
import io
import itertools
import json
import os
import re
import select
import socket
import stat
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from shared.log_writer import Output

# How long a descriptor that takes nothing is waited for before looking again whether close() has given up.
_BLOCKED_SECONDS = 0.25
# Who calls, when and how much is for the owner to know.
_MODE = 0o600
# Where systemd-journald takes entries (systemd's docs, "Native Journal Protocol").
JOURNAL_SOCKET = "/run/systemd/journal/socket"
_JOURNAL_SECONDS = 1.0  # that it may take to accept one
_INFO = b"6"  # its priority, as in syslog
_IDENTIFIER = b"hearthlink"
# Characters of a line: an entry larger than the socket's buffer (net.core.wmem_default, 208 KiB) is never taken.
_LONGEST_LINE = 32 << 10
# A field's name: capitals, digits and _, not _ first, up to 64 bytes; anything else is dropped by journald.
_NOT_IN_FIELD = re.compile(r"[^A-Z0-9_]")
_LONGEST_FIELD = 64


class Stream(Output):
    """``stream``, which stays the caller's. Waits for a reader that is slow."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._given_up = False
        self._torn = False  # the last thing written is half a line

    def write(self, lines: Sequence[str]) -> int:
        text = "\n".join(lines) + "\n"
        try:
            descriptor = self._stream.fileno()
        except (io.UnsupportedOperation, AttributeError):
            self._stream.write(text)
            self._stream.flush()
            return len(lines)
        # Past the stream's own buffer: a thread that is blocked inside it would abort the interpreter at exit.
        head = b"\n" if self._torn else b""
        data = head + _bytes(text)
        written = 0
        while written < len(data):
            try:
                written += os.write(descriptor, data[written:])
            except BlockingIOError:
                if self._given_up:
                    raise
                select.select([], [descriptor], [], _BLOCKED_SECONDS)
            except OSError:
                if written:
                    self._torn = data[written - 1 : written] != b"\n"
                if (whole := data.count(b"\n", len(head), written)) > 0:
                    return whole
                raise
        self._torn = False
        return len(lines)

    def give_up(self) -> None:
        self._given_up = True


class RotatingFile(Output):
    """The file ``path``, opened at the first line. When a write would make it larger than ``rotate_at`` bytes it is put
    aside as ``path.1``, what was ``path.1`` becomes ``path.2``, and so on up to ``keep``.

    Others may append to it, and may move it away: the next lines begin a new one. A line that the disk had no room for
    leaves no half of itself.
    """

    def __init__(self, path: Path, *, rotate_at: int, keep: int) -> None:
        self._path = path
        self._rotate_at = rotate_at
        self._keep = keep
        self._descriptor: int | None = None

    def open(self) -> None:
        """Raises OSError; what is no ordinary file is refused with EINVAL."""
        self.close()
        # Without O_NONBLOCK, opening a pipe waits for its reader.
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
        descriptor = os.open(self._path, flags, _MODE)
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise OSError(errno.EINVAL, "is not an ordinary file")
            self._give_to_owner(descriptor, found)
            if found.st_size and os.pread(descriptor, 1, found.st_size - 1) != b"\n":
                os.write(descriptor, b"\n")  # a process died in the middle of a line
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor

    def write(self, lines: Sequence[str]) -> int:
        encoded = [_bytes(line) + b"\n" for line in lines]
        try:
            descriptor, room = self._ready(len(encoded[0]))
            ends = list(itertools.accumulate(map(len, encoded)))
            count = max(1, bisect.bisect_right(ends, room))  # a file takes one line, however long
            data = b"".join(encoded[:count])
            written = os.write(descriptor, data)
            if written == len(data):
                return count
            whole = data.rfind(b"\n", 0, written) + 1
            with contextlib.suppress(OSError):  # opening it again ends the line that this leaves
                os.ftruncate(descriptor, os.fstat(descriptor).st_size - (written - whole))
            if not whole:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return data.count(b"\n", 0, whole)
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def _ready(self, size: int) -> tuple[int, int]:
        """The descriptor of a file that has room for ``size`` more bytes, and how many it has room for."""
        if self._descriptor is None or not self._in_place(self._descriptor):
            self.open()
        assert self._descriptor is not None
        present = os.fstat(self._descriptor).st_size
        if present and present + size > self._rotate_at:
            self._put_aside()
            self.open()
            present = 0
        return self._descriptor, self._rotate_at - present

    def _give_to_owner(self, descriptor: int, found: os.stat_result) -> None:
        """A file that root begins, at the command line, is for the edge to go on with: its folder's owner."""
        if found.st_size or found.st_uid != 0 or os.geteuid() != 0:
            return
        folder = os.stat(self._path.parent)
        if folder.st_uid != 0:
            os.fchown(descriptor, folder.st_uid, folder.st_gid)

    def _in_place(self, descriptor: int) -> bool:
        """Whether whoever looks for ``path`` finds this file."""
        try:
            found, ours = os.stat(self._path), os.fstat(descriptor)
        except FileNotFoundError:
            return False
        return (found.st_dev, found.st_ino) == (ours.st_dev, ours.st_ino)

    def _put_aside(self) -> None:
        names = [f"{self._path}.{number}" for number in range(1, self._keep + 1)]
        for older, newer in zip(reversed(names), [*reversed(names[:-1]), str(self._path)], strict=True):
            with contextlib.suppress(FileNotFoundError):
                os.replace(newer, older)


class Journal(Output):
    """systemd's journal, by its native protocol: one entry a line, whose members, where it is a JSON object, can be
    asked for by name (``journalctl HEARTHLINK_ROUTE=/v1/chat``)."""

    def __init__(self, path: str = JOURNAL_SOCKET) -> None:
        self._path = path
        self._socket: socket.socket | None = None

    def write(self, lines: Sequence[str]) -> int:
        if self._socket is None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.settimeout(_JOURNAL_SECONDS)
        for written, line in enumerate(lines):
            try:
                self._socket.sendto(entry(line), self._path)
            except OSError:
                if written:
                    return written
                raise
        return len(lines)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()


def entry(line: str) -> bytes:
    """``line`` as journald reads it; what is too long is cut, and has no members then."""
    line = line[:_LONGEST_LINE]
    fields = [_field(b"MESSAGE", line), _field(b"PRIORITY", _INFO), _field(b"SYSLOG_IDENTIFIER", _IDENTIFIER)]
    return b"".join([*fields, *_members(line)])


def _members(line: str) -> Iterator[bytes]:
    try:
        members = json.loads(line)
    except ValueError:
        return
    for name, value in members.items() if isinstance(members, dict) else ():
        field = f"HEARTHLINK_{_NOT_IN_FIELD.sub('_', name.upper())}"
        yield _field(field[:_LONGEST_FIELD].encode(), _text(value))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _field(name: bytes, value: str | bytes) -> bytes:
    data = value if isinstance(value, bytes) else _bytes(value)
    if b"\n" not in data:
        return name + b"=" + data + b"\n"
    return name + b"\n" + struct.pack("<Q", len(data)) + data + b"\n"


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")
