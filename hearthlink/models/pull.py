"""A whole model onto the shelf: what the hub has, what of it is here, whether it fits, load, check, put in place."""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

from hearthlink.models import amounts
from hearthlink.models.catalogue import Choice
from hearthlink.models.download import Download, free_bytes, no_space, not_gguf
from hearthlink.models.hub import Hub, RemoteFile
from hearthlink.models.meter import Meter
from hearthlink.models.patience import Passing, Patience
from hearthlink.models.record import FileNote, Record
from hearthlink.models.reference import Reference
from hearthlink.models.shelf import Entry, Shelf
from hearthlink.output import Failure, Status
from node.runtimes.gguf import NotGGUFError, read_header

# Left free on the disk: the databases and logs of edge and node are in the same state folder.
RESERVE_BYTES = 64_000_000


def pull(shelf: Shelf, hub: Hub, choice: Choice, meter: Meter) -> Entry:
    """Load the model, or what is missing of it, and check it; the entry is ready. The hub is asked in any case, so that
    a branch that moved is followed; until the new files are whole the old ones stay in place.

    Raises Failure, which says how much is kept for the next pull to go on from.
    """
    try:
        with shelf.locked(choice.reference):
            work = _Pull(shelf, hub, choice, meter)
            work.plan()
            if work.missing:
                work.check_space()
                work.load()
            work.put_in_place()
            entry = shelf.entry(choice.reference)
    except OSError as error:
        where = error.filename or shelf.folder
        raise Failure(
            f"The model cannot be kept on this machine: {where}: {error.strerror}. Set HEARTHLINK_STATE to a folder"
            " that this user may write."
        ) from None
    assert entry is not None and entry.state == "ready"
    return entry


@dataclass(slots=True)
class _Pull:
    """One run, under the model's lock: ``plan``, then ``check_space`` and ``load`` when something is ``missing``, then
    ``put_in_place``. Methods raise Failure and OSError."""

    shelf: Shelf
    hub: Hub
    choice: Choice
    meter: Meter
    remotes: tuple[RemoteFile, ...] = ()
    missing: tuple[RemoteFile, ...] = ()  # those whose part has yet to become whole
    record: Record | None = None

    def plan(self) -> None:
        """Ask the hub for every file, and find out which are here already."""
        reference = self.choice.reference
        first, *others = reference.files
        self.remotes = (self._look(reference, first),)
        # The others at the commit of the first: a branch may move at this moment.
        at = replace(reference, revision=self.remotes[0].commit)
        self.remotes += tuple(self._look(at, path) for path in others)
        self._check_pin()
        old, pending = Record.load(self.shelf.sidecar(reference)), Record.load(self.shelf.pending(reference))
        notes = [self._note(remote, old, pending) for remote in self.remotes]
        self.record = Record(reference, self.remotes[0].commit, tuple(notes))
        self.missing = tuple(remote for remote, note in zip(self.remotes, notes, strict=True) if not note.verified)

    def check_space(self) -> None:
        """Raise Failure when what is missing does not fit."""
        folder = self.shelf.path(self.choice.reference).parent
        needed = sum(remote.size - self._part_size(remote) for remote in self.missing) + RESERVE_BYTES
        if needed > free_bytes(folder):
            raise no_space(folder, needed)

    def load(self) -> None:
        assert self.record is not None
        left = sum(remote.size - self._part_size(remote) for remote in self.missing)
        total = self.record.size
        self._save()
        self.meter.begin(self.choice.reference.name, total, total - left)
        try:
            for remote in self.missing:
                self._load(remote)
        except Failure as failure:
            raise Failure(f"{failure}{self._kept()}", failure.status) from None
        except KeyboardInterrupt:
            raise Failure(f"Stopped.{self._kept()}", Status.INTERRUPTED) from None

    def put_in_place(self) -> None:
        """Give every whole part its name. Between the first and the last of several there is no record of the model, so
        that nobody takes a mixture of two for one."""
        assert self.record is not None
        reference = self.choice.reference
        parts = [(self.shelf.part(reference, file), self.shelf.path(reference, file)) for file in reference.files]
        fresh = [(part, path) for part, path in parts if part.exists()]
        if fresh:
            self.shelf.sidecar(reference).unlink(missing_ok=True)
        for part, path in fresh:
            os.replace(part, path)
        final = replace(self.record, pulled_at=int(time.time()))
        final.save(self.shelf.sidecar(reference))
        self.shelf.pending(reference).unlink(missing_ok=True)
        _sync_folder(self.shelf.path(reference).parent)

    def _look(self, reference: Reference, path: str) -> RemoteFile:
        patience = Patience(self.meter.note)
        while True:
            try:
                return self.hub.look(reference, path)
            except Passing as trouble:
                patience.wait(trouble)

    def _check_pin(self) -> None:
        """Raise Failure when the hub has another file than the one that the short name stands for."""
        if not self.choice.sha256:
            return
        (remote,) = self.remotes
        if remote.size != self.choice.size or remote.sha256 not in ("", self.choice.sha256):
            raise Failure(
                f"{self.hub.endpoint} offers another file than {self.choice} stands for (sha256"
                f" {remote.sha256 or 'unknown'}, {remote.size} bytes; {self.choice.sha256}, {self.choice.size} bytes"
                " are right). Nothing was loaded. Check HF_ENDPOINT."
            )
        self.remotes = (replace(remote, sha256=self.choice.sha256),)

    def _note(self, remote: RemoteFile, old: Record | None, pending: Record | None) -> FileNote:
        """What is here of a file. Its part stays only if it is a part of this very file; what is whole needs none."""
        reference = self.choice.reference
        path, part = self.shelf.path(reference, remote.path), self.shelf.part(reference, remote.path)
        note = FileNote(remote.path, remote.size, remote.etag, remote.sha256)
        known = old.file(remote.path) if old else None
        if path.exists() and _same(known, remote) and path.stat().st_size == remote.size:
            part.unlink(missing_ok=True)
            return replace(note, sha256=known.sha256 if known else "", verified=True)
        if known is None and remote.sha256 and path.exists() and _sha256(path) == remote.sha256:
            # Put there by a run that ended before it wrote its record.
            part.unlink(missing_ok=True)
            return replace(note, verified=True)
        begun = pending.file(remote.path) if pending else None
        if begun is None or not _same(begun, remote):
            part.unlink(missing_ok=True)
            return note
        if begun.verified and self._part_size(remote) == remote.size:
            return replace(note, sha256=begun.sha256, verified=True)
        return replace(note, validator=begun.validator if part.exists() else "")

    def _load(self, remote: RemoteFile) -> None:
        assert self.record is not None
        reference = self.choice.reference
        note = self.record.file(remote.path)
        assert note is not None
        part = self.shelf.part(reference, remote.path)

        def remember(validator: str) -> None:
            self._update(replace(note, validator=validator))

        sha256 = Download(self.hub, reference, remote, part, self.meter, note.validator, remember).run()
        try:
            read_header(part)
        except NotGGUFError as error:
            part.unlink(missing_ok=True)
            raise not_gguf(remote.path, str(error)) from None
        self._update(replace(note, sha256=sha256, validator="", verified=True))

    def _kept(self) -> str:
        """A sentence about what the next pull goes on from; where that is nothing, nothing is left behind."""
        if kept := sum(self._part_size(remote) for remote in self.remotes):
            return f" {amounts.size(kept)} are kept; the same command goes on from there."
        for file in self.choice.reference.files:
            self.shelf.part(self.choice.reference, file).unlink(missing_ok=True)
        self.shelf.pending(self.choice.reference).unlink(missing_ok=True)
        return ""

    def _update(self, note: FileNote) -> None:
        assert self.record is not None
        self.record = self.record.with_file(note)
        self._save()

    def _save(self) -> None:
        assert self.record is not None
        self.record.save(self.shelf.pending(self.choice.reference))

    def _part_size(self, remote: RemoteFile) -> int:
        part = self.shelf.part(self.choice.reference, remote.path)
        return min(part.stat().st_size, remote.size) if part.exists() else 0


def _same(known: FileNote | None, remote: RemoteFile) -> bool:
    """Whether a file noted earlier is the one that the hub has now."""
    if known is None or known.size != remote.size:
        return False
    if known.sha256 and remote.sha256:
        return known.sha256 == remote.sha256
    return bool(known.etag) and known.etag == remote.etag


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_folder(folder: Path) -> None:
    """Make the new names last through a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
