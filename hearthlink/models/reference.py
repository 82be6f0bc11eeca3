"""``hf:owner/repo[@revision]/file.gguf``: one model on a hub, in one file or in shards. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import quote, unquote

PREFIX = "hf:"
DEFAULT_REVISION = "main"
_FORM = "hf:owner/repo/file.gguf, or hf:owner/repo@revision/file.gguf"
# What a hub allows for owners, repositories and parts of a git reference. No leading point: never "..", never hidden.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,95}")
_REVISION = re.compile(rf"{_NAME.pattern}(?:/{_NAME.pattern}){{0,3}}")
# A part of a path: printable, no separator of any system, not hidden; with ".part.json" below 255 bytes.
_PART = re.compile(r'[^\x00-\x1f\x7f-\x9f/\\:*?"<>|.][^\x00-\x1f\x7f-\x9f/\\:*?"<>|]*')
_PART_BYTES = 240
_MAX_PARTS = 8
# As llama.cpp writes and finds them: llama_split_path, "%s-%05d-of-%05d.gguf".
_SHARD = re.compile(r"(?P<stem>.+)-(?P<index>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.gguf)", re.IGNORECASE)
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
        return f"{PREFIX}{self.owner}/{self.repo}{at}/{self.file}"

    @property
    def files(self) -> tuple[str, ...]:
        """The paths of all files, in order: one, or every shard."""
        shard = _SHARD.fullmatch(self.file)
        if shard is None:
            return (self.file,)
        stem, count, suffix = shard["stem"], int(shard["count"]), shard["suffix"]
        return tuple(f"{stem}-{index:05}-of-{count:05}{suffix}" for index in range(1, count + 1))

    @property
    def name(self) -> str:
        """What people call it: the file's name without ending and shard number."""
        last = self.file.rpartition("/")[2]
        shard = _SHARD.fullmatch(last)
        return shard["stem"] if shard else last[: -len(".gguf")]


def is_reference(text: str) -> bool:
    """Whether ``text`` means a model on a hub, well written or not."""
    return text.startswith(PREFIX)


def parse(text: str) -> Reference:
    """Read a reference. Raises NoReferenceError."""
    if page := _PAGE.fullmatch(text):
        at = "" if page["revision"] == DEFAULT_REVISION else f"@{page['revision']}"
        meant = f"hf:{page['owner']}/{page['repo']}{at}/{page['file']}"
        raise NoReferenceError(f"A model is not named by its URL. Write {meant}")
    owner, _, rest = text.removeprefix(PREFIX).partition("/")
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
    if not path.lower().endswith(".gguf"):
        raise NoReferenceError(f"{text[:200]!r} names no GGUF file of that repository. Write {_FORM}.")
    if len(parts) > _MAX_PARTS or not all(
        _PART.fullmatch(part) and len(part.encode("utf-8", "replace")) <= _PART_BYTES for part in parts
    ):
        raise NoReferenceError(f"{text[:200]!r} has a path that cannot be kept on this machine.")
    shard = _SHARD.fullmatch(path)
    if shard is None:
        return path
    index, count = int(shard["index"]), int(shard["count"])
    if not 1 <= index <= count <= _MAX_SHARDS:
        raise NoReferenceError(f"{text[:200]!r} says shard {index} of {count}, which cannot be.")
    return f"{shard['stem']}-00001-of-{count:05}{shard['suffix']}"
