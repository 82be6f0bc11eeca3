"""The GGUF files that the embedded runtime may load: the one that was set, and those below a folder."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from loguru import logger

from node.runtimes.gguf import Header, NotGGUFError
from node.runtimes.model_file import read_model
from shared.model_names import ENDING, Shards, title

_MAX_MODELS = 1000
_MAX_DEPTH = 6  # pulled models lie four folders deep: owner, repository, revision, and the repository's own
_LONGEST_ID = 256


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A model that can be loaded. ``path`` is its first shard; ``projector`` the file that makes it see images."""

    id: str
    path: Path
    header: Header
    changed: float  # when the file was, in seconds since 1970
    projector: Path | None = None


def model_id(path: Path) -> str:
    """What callers name the model in ``path``."""
    return re.sub(r"\s+", "-", title(path.name))[:_LONGEST_ID]


class ModelFolder:
    """``first`` and what is below ``folder``; neither needs to be there. Blocking: its methods belong in a thread, one
    at a time."""

    def __init__(self, first: Path | None, folder: Path | None) -> None:
        self.first = first
        self.folder = folder
        # What became of the others, by the id they would have: the rest of a sentence about the file.
        self.unfit: Mapping[str, str] = {}
        self._read: dict[Path, tuple[tuple[int, int], Header | str]] = {}
        self._left_out: set[Path] = set()  # as the log has it

    def scan(self) -> dict[str, ModelFile]:
        """The models by id, ``first`` first, then by path. A file that is no whole model is left out, and one whose
        name is taken is called by its path below the folder. Raises nothing."""
        seen = dict(self._headers())
        projectors = [(path, header) for path, header in seen.items() if header.kind == "mmproj" and header.projects_to]
        found: dict[str, ModelFile] = {}
        unfit = {model_id(path): why for path, (_, why) in self._read.items() if isinstance(why, str)}
        for path, header in seen.items():
            inside = self.folder is not None and path.is_relative_to(self.folder)
            if not (inside or path == self.first):
                continue
            if header.kind != "model":
                unfit[model_id(path)] = f"is no model by itself ({header.kind})"
                continue
            name = model_id(path)
            if name in found and self.folder is not None and inside:
                name = str(path.relative_to(self.folder).with_suffix(""))[:_LONGEST_ID]
            if name not in found and self._can_be_named(name, path):
                found[name] = ModelFile(name, path, header, _changed(path), _projector(path, header, projectors))
        self.unfit = dict(sorted(unfit.items()))
        return found

    def _can_be_named(self, name: str, path: Path) -> bool:
        """No JSON has a name that is no UTF-8, and so no caller and no edge."""
        try:
            name.encode()
        except UnicodeEncodeError:
            self._leave_out(path, "has a name that is no UTF-8, so rename it")
            return False
        return True

    def _leave_out(self, path: Path, why: str) -> None:
        if path not in self._left_out:
            self._left_out.add(path)
            named = str(path) if str(path).isprintable() else ascii(str(path))
            logger.warning("the file {} is left out as a model: it {}", named, why)

    def _headers(self) -> Iterator[tuple[Path, Header]]:
        """Reads no file twice that is still the same, and says once which are no models: not of one that is still
        being written."""
        known, self._read = self._read, {}
        for path in self._paths():
            try:
                state = path.stat()
            except OSError:
                continue
            mark = (state.st_mtime_ns, state.st_size)
            before = known.get(path)
            # The shards of a model may still be coming, which its first one does not show.
            still = before[1] if before is not None and before[0] == mark else None
            header = still if isinstance(still, Header) else _header(path)
            self._read[path] = (mark, header)
            if isinstance(header, Header):
                yield path, header
            elif header == still:
                self._leave_out(path, header)

    def _paths(self) -> list[Path]:
        below = sorted(_files(self.folder)) if self.folder is not None else []
        if self.first is None:
            return below[:_MAX_MODELS]
        beside = [path for path in sorted(_listed(self.first.parent)) if "mmproj" in path.name.lower()]
        return list(dict.fromkeys((self.first, *beside, *below)))[:_MAX_MODELS]


def _projector(path: Path, header: Header, projectors: list[tuple[Path, Header]]) -> Path | None:
    """The first one beside the model that is made for a model of its width."""
    return next(
        (found for found, other in projectors if found.parent == path.parent and other.projects_to == header.width),
        None,
    )


def _files(folder: Path) -> Iterator[Path]:
    """Whole models and first shards; links to files count, links to folders do not."""
    depth = len(folder.parts)
    for at, folders, names in os.walk(folder):
        if len(Path(at).parts) - depth >= _MAX_DEPTH:
            folders.clear()
        yield from (Path(at, name) for name in names if _may_be_model(name))


def _listed(folder: Path) -> Iterator[Path]:
    try:
        yield from (Path(item.path) for item in os.scandir(folder) if _may_be_model(item.name))
    except OSError:
        return


def _may_be_model(name: str) -> bool:
    shards = Shards.of(name)
    return name.lower().endswith(ENDING) and (shards is None or shards.index == 1)


def _header(path: Path) -> Header | str:
    """Else the rest of a sentence about the file, without its path."""
    try:
        return read_model(path)
    except FileNotFoundError as error:
        return f"lacks a part, {Path(error.filename or path).name}"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    except NotGGUFError as error:
        return str(error)


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
