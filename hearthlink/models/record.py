"""The note beside a model: where it came from and what its files are. JSON, written whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hearthlink.models.reference import NoReferenceError, Reference, parse

_VERSION = 1
_MAX_BYTES = 1 << 20  # far above 500 shards; a larger file is not ours


@dataclass(frozen=True, slots=True)
class FileNote:
    """One file: ``size`` in bytes, the hub's ``etag``, ``sha256`` as promised by the hub or, once the file is whole, as
    found (``verified``). ``validator`` is the store's ETag of a part that is on disk."""

    path: str
    size: int
    etag: str = ""
    sha256: str = ""
    validator: str = ""
    verified: bool = False


@dataclass(frozen=True, slots=True)
class Record:
    """A model that is here (``pulled_at``, Unix seconds), or on its way (None)."""

    reference: Reference
    commit: str
    files: tuple[FileNote, ...]
    pulled_at: int | None = None

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    def with_file(self, file: FileNote) -> Record:
        """The same with another note for the file of that path."""
        return replace(self, files=tuple(file if old.path == file.path else old for old in self.files))

    def file(self, path: str) -> FileNote | None:
        return next((file for file in self.files if file.path == path), None)

    def save(self, path: Path) -> None:
        """Raises OSError."""
        body = {"version": _VERSION, "reference": str(self.reference), "commit": self.commit}
        body |= {"pulled_at": self.pulled_at, "files": [asdict(file) for file in self.files]}
        draft = path.with_name(f".{secrets.token_hex(8)}.json")
        try:
            with draft.open("x", encoding="utf-8") as file:
                json.dump(body, file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            os.replace(draft, path)
        finally:
            draft.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path) -> Record | None:
        """The record in ``path``; None when there is none that can be used."""
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError, NoReferenceError):
            with path.open(encoding="utf-8") as file:
                body = json.loads(file.read(_MAX_BYTES))
            return _record(body) if body["version"] == _VERSION else None
        return None


def _record(body: Any) -> Record:
    reference = parse(body["reference"])
    files = tuple(_note(fields) for fields in body["files"])
    if tuple(file.path for file in files) != reference.files:
        raise ValueError
    at = body["pulled_at"]
    return Record(reference, str(body["commit"]), files, None if at is None else int(at))


def _note(fields: dict[str, Any]) -> FileNote:
    texts = {name: str(fields[name]) for name in ("path", "etag", "sha256", "validator")}
    return FileNote(size=int(fields["size"]), verified=fields["verified"] is True, **texts)
