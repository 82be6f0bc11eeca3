"""``hf:owner/repo[@revision]/file.gguf``: one model on a hub, in one file or in shards. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import quote, unquote

from shared import model_names
from shared.model_names import ENDING, HUB, Shards

DEFAULT_REVISION = "main"
_FORM = "hf:owner/repo/file.gguf, or hf:owner/repo@revision/file.gguf"
# What a hub allows for owners, repositories and parts of a git reference. No leading point: never "..", never hidden.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,95}")
_REVISION = re.compile(rf"{_NAME.pattern}(?:/{_NAME.pattern}){{0,3}}")
# A part of a path: printable, no separator of any system, not hidden; with ".part.json" below 255 bytes.
_PART = re.compile(r'[^\x00-\x1f\x7f-\x9f/\\:*?"<>|.][^\x00-\x1f\x7f-\x9f/\\:*?"<>|]*')
_PART_BYTES = 240
_MAX_PARTS = 8
_MAX_SHARDS = 500  # far above any model: the largest have some 50
_PAGE = re.compile(
    r"https?://[^/]+/(?P<owner>[^/]+)/(?P<repo>[^/]+)/(?:resolve|blob)/(?P<revision>[^/]+)/(?P<file>[^?#]+)"
)


class NoReferenceError(ValueError):
    """``str(error)`` is a sentence that gives the right form."""


@dataclass(frozen=True, slots=True)
class Reference:
    """A model. ``file`` is its path in the repository, of several shards the first, which names all of them."""

    owner: str
    repo: str
    file: str
    revision: str = DEFAULT_REVISION

    def __str__(self) -> str:
        at = "" if self.revision == DEFAULT_REVISION else f"@{quote(self.revision, safe='')}"
        return f"{HUB}{self.owner}/{self.repo}{at}/{self.file}"

    @property
    def files(self) -> tuple[str, ...]:
        """The paths of all files, in order: one, or every shard."""
        shards = Shards.of(self.file)
        return (self.file,) if shards is None else shards.files

    @property
    def name(self) -> str:
        """What people call it: the file's name without ending and shard number."""
        return model_names.title(self.file)


def is_reference(text: str) -> bool:
    """Whether ``text`` means a model on a hub, well written or not."""
    return text.startswith(HUB)


def parse(text: str) -> Reference:
    """Read a reference. Raises NoReferenceError."""
    if page := _PAGE.fullmatch(text):
        at = "" if page["revision"] == DEFAULT_REVISION else f"@{page['revision']}"
        meant = f"hf:{page['owner']}/{page['repo']}{at}/{page['file']}"
        raise NoReferenceError(f"A model is not named by its URL. Write {meant}")
    owner, _, rest = text.removeprefix(HUB).partition("/")
    repo, _, file = rest.partition("/")
    repo, at, revision = repo.partition("@")
    revision = unquote(revision) if at else DEFAULT_REVISION
    if not is_reference(text) or not _NAME.fullmatch(owner) or not _NAME.fullmatch(repo):
        raise NoReferenceError(f"{text[:200]!r} does not name a model on a hub. Write {_FORM}.")
    if not _REVISION.fullmatch(revision):
        raise NoReferenceError(
            f"{text[:200]!r} has no usable revision after the @. Write the name of a branch or tag, or a commit;"
            " a / in it as %2F."
        )
    return Reference(owner, repo, _file(file, text), revision)


def _file(path: str, text: str) -> str:
    """The path of the (first) file. Raises NoReferenceError."""
    parts = path.split("/")
    if not path.lower().endswith(ENDING):
        raise NoReferenceError(f"{text[:200]!r} names no GGUF file of that repository. Write {_FORM}.")
    if len(parts) > _MAX_PARTS or not all(
        _PART.fullmatch(part) and len(part.encode("utf-8", "replace")) <= _PART_BYTES for part in parts
    ):
        raise NoReferenceError(f"{text[:200]!r} has a path that cannot be kept on this machine.")
    shards = Shards.of(path)
    if shards is None:
        return path
    if not 1 <= shards.index <= shards.count <= _MAX_SHARDS:
        raise NoReferenceError(f"{text[:200]!r} says shard {shards.index} of {shards.count}, which cannot be.")
    return shards.file(1)
