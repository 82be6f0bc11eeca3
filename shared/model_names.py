"""How models and their files are called: by a path, by a name, and in shards. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

# What a reference to a model on a hub begins with: hf:owner/repo/file.gguf.
HUB = "hf:"
ENDING = ".gguf"
# As many as the five digits of a shard's name can count.
MAX_SHARDS = 99_999
# As llama.cpp writes and finds them: llama_split_path, "%s-%05d-of-%05d.gguf".
_SHARD = re.compile(r"(?P<stem>.+)-(?P<index>\d{5})-of-(?P<count>\d{5})(?P<ending>\.gguf)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Shards:
    """A model in ``count`` files, as the name of one of them, number ``index`` from 1 on, tells."""

    stem: str
    index: int
    count: int
    ending: str = ENDING

    @classmethod
    def of(cls, file: str) -> Shards | None:
        """None when ``file`` (a name or path) is no shard's."""
        found = _SHARD.fullmatch(file)
        return found and cls(found["stem"], int(found["index"]), int(found["count"]), found["ending"])

    def file(self, index: int) -> str:
        """The name of number ``index``; the first is what a runtime loads."""
        return f"{self.stem}-{index:05}-of-{self.count:05}{self.ending}"

    @property
    def files(self) -> tuple[str, ...]:
        """All, in order."""
        return tuple(self.file(index) for index in range(1, self.count + 1))


def title(file: str) -> str:
    """What people call the model in ``file``, a path: its last part without ending and shard number."""
    last = file.rpartition("/")[2]
    shards = Shards.of(last)
    if shards is not None:
        return shards.stem
    return last[: -len(ENDING)] if last.lower().endswith(ENDING) else last


def is_name(text: str) -> bool:
    """Whether ``text`` names a model and not its file: a reference to a hub, or a word that could be no path of a GGUF
    file. A file that is called like that all the same is written ``./word``."""
    is_path = "/" in text or text.startswith((".", "~")) or text.lower().endswith(ENDING)
    return text.startswith(HUB) or not is_path
