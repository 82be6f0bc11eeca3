"""The models of this machine: files in ``$STATE/models/OWNER/REPO/REVISION/``, each model with a record beside it.

x.gguf               the model, or its first shard        x.gguf.json        its record
x.gguf.part          what came so far                     x.gguf.part.json   the record of what is on its way
x.gguf.lock          held while the model is pulled or removed
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from hearthlink.models import catalogue
from hearthlink.models.record import Record
from hearthlink.models.reference import NoReferenceError, Reference, is_reference, parse
from hearthlink.output import Failure, Status

FOLDER = "models"


@dataclass(frozen=True, slots=True)
class Entry:
    """A model on the shelf. ``here`` are the bytes on disk; ``path`` is what a runtime loads once it is ready."""

    record: Record
    path: Path
    state: Literal["ready", "partial"]
    here: int

    @property
    def name(self) -> str:
        return self.record.reference.name

    @property
    def short(self) -> str:
        return catalogue.by_reference(self.record.reference).short


class Shelf:
    """The folder of models below ``state``, the state folder. Nothing is made before something is put there."""

    def __init__(self, state: Path) -> None:
        self.folder = state / FOLDER

    def path(self, reference: Reference, file: str | None = None) -> Path:
        """Where ``file`` of the model belongs, by default the one that a runtime loads."""
        revision = quote(reference.revision, safe="")
        return self.folder / reference.owner / reference.repo / revision / (file or reference.file)

    def part(self, reference: Reference, file: str) -> Path:
        path = self.path(reference, file)
        return path.with_name(f"{path.name}.part")

    def sidecar(self, reference: Reference) -> Path:
        path = self.path(reference)
        return path.with_name(f"{path.name}.json")

    def pending(self, reference: Reference) -> Path:
        path = self.path(reference)
        return path.with_name(f"{path.name}.part.json")

    def is_ready(self, reference: Reference) -> bool:
        """Whether a runtime can load the model now."""
        record = Record.load(self.sidecar(reference))
        return record is not None and self._is_whole(record)

    def entries(self) -> list[Entry]:
        """Every model, by name. A file that nobody pulled here is not one."""
        references = set()
        for path in self._sidecars():
            record = Record.load(path)
            if record and path in (self.sidecar(record.reference), self.pending(record.reference)):
                references.add(record.reference)
        found = (self.entry(reference) for reference in references)
        return sorted((entry for entry in found if entry), key=lambda entry: (entry.name.lower(), str(entry.path)))

    def entry(self, reference: Reference) -> Entry | None:
        """The model as it is on the shelf; None when nothing of it is."""
        record = Record.load(self.sidecar(reference))
        if record is not None and self._is_whole(record):
            return Entry(record, self.path(reference), "ready", record.size)
        record = Record.load(self.pending(reference)) or record
        if record is None:
            return None
        here = sum(_size(path) for path in self._files(reference))
        return Entry(record, self.path(reference), "partial", here)

    def find(self, text: str) -> Entry:
        """The model that ``text`` means: short name, reference, or name in the list. Raises Failure."""
        reference = _meant(text)
        if reference is None:
            found = [entry for entry in self.entries() if text in (entry.name, f"{entry.name}.gguf")]
        else:
            found = [entry] if (entry := self.entry(reference)) else []
        if not found:
            raise Failure(f"No model {text!r} is here. `hearthlink model list` shows those that are.", Status.NOT_FOUND)
        if len(found) > 1:
            several = " or ".join(str(entry.record.reference) for entry in found)
            raise Failure(f"Several models are called {text!r}. Say which: {several}.", Status.USAGE)
        return found[0]

    def remove(self, reference: Reference) -> int:
        """Delete the model and what is left of pulling it; the bytes that it took. Raises Failure or OSError."""
        with self.locked(reference):
            freed = 0
            # The record first: without it nobody takes half a model for a whole one.
            for path in (self.sidecar(reference), *self._files(reference), self.pending(reference)):
                freed += _size(path)
                path.unlink(missing_ok=True)
        return freed

    @contextmanager
    def locked(self, reference: Reference) -> Iterator[None]:
        """Keep others away from the model. Raises Failure when somebody works on it, OSError."""
        path = self.path(reference)
        lock = path.with_name(f"{path.name}.lock")
        descriptor = _lock(lock)
        if descriptor is None:
            raise Failure(
                f"Another hearthlink is pulling or removing {reference}. Wait until it is done, then try again.",
                Status.UNAVAILABLE,
            )
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
            os.close(descriptor)
            self._prune(path.parent)

    def _sidecars(self) -> Iterator[Path]:
        endings = (".gguf.json", ".gguf.part.json")
        for folder, _, names in os.walk(self.folder):
            yield from (Path(folder, name) for name in names if name.lower().endswith(endings))

    def _files(self, reference: Reference) -> list[Path]:
        files = [self.path(reference, file) for file in reference.files]
        return files + [self.part(reference, file) for file in reference.files]

    def _is_whole(self, record: Record) -> bool:
        return record.pulled_at is not None and all(
            _size(self.path(record.reference, file.path)) == file.size for file in record.files
        )

    def _prune(self, folder: Path) -> None:
        """Remove folders that became empty, up to the shelf's own."""
        with contextlib.suppress(OSError):  # not empty
            while folder != self.folder and self.folder in folder.parents:
                folder.rmdir()
                folder = folder.parent


def _meant(text: str) -> Reference | None:
    """The model that a short name or reference names. Raises Failure."""
    try:
        choice = catalogue.by_short_name(text)
        return parse(text) if is_reference(text) else choice.reference if choice else None
    except NoReferenceError as error:
        raise Failure(str(error), Status.USAGE) from None


def _lock(path: Path) -> int | None:
    """A descriptor that holds the lock file ``path``, made with its folder; None when somebody else holds it. Raises
    OSError."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:  # its last holder has just removed the empty folder
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Its last holder may have unlinked it between our two calls: then nobody else will see this one.
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            return None
        except FileNotFoundError:
            pass
        os.close(descriptor)


def _size(path: Path) -> int:
    """Bytes of ``path``, 0 when it is not there."""
    try:
        return path.stat().st_size
    except OSError:
        return 0
