"""Which slot a request gets: the runtime keeps the prompt of its last answer in each, and reads only what is new."""

from __future__ import annotations

from collections import defaultdict
from itertools import islice

# Free slots that are looked at for one of the same chat type: many enough to find one, few enough to cost nothing.
_LOOKED_AT = 32


class Slots:
    """Numbers below ``limit``. A prefix is a chat type, which may be empty, a NUL, and the principal."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held: set[int] = set()
        self._free: dict[int, str] = {}  # that somebody had, and whose prefix they hold; the one longest free first
        self._by_prefix: defaultdict[str, dict[int, None]] = defaultdict(dict)
        self._untouched = list(range(limit - 1, -1, -1))

    def take(self, prefix: str) -> int:
        """The slot that this prefix had last; else one that nobody has had; else, of the half that is longest free, one
        of the same chat type, whose prompt need not be read again, or the first. There must be a free one below the
        limit."""
        if own := self._by_prefix.get(prefix):
            slot = next(reversed(own))
        elif self._untouched:
            slot = self._untouched.pop()
        else:
            slot = self._alike(prefix.partition("\0")[0])
        self._forget(slot)
        self._held.add(slot)
        return slot

    def give_back(self, slot: int, prefix: str) -> None:
        """``prefix`` is what its cache holds now."""
        self._held.discard(slot)
        if slot < self._limit:
            self._free[slot] = prefix
            self._by_prefix[prefix][slot] = None

    def set_limit(self, limit: int) -> None:
        """Slots above it are held until they are given back, and not taken again."""
        self._limit = limit
        for slot in [slot for slot in self._free if slot >= limit]:
            self._forget(slot)
        touched = self._free.keys() | self._held
        self._untouched = [slot for slot in range(limit - 1, -1, -1) if slot not in touched]

    def _alike(self, chat_type: str) -> int:
        oldest = next(iter(self._free))
        if not chat_type:
            return oldest
        looked_at = islice(self._free.items(), min(len(self._free) // 2, _LOOKED_AT))
        return next((slot for slot, had in looked_at if had.partition("\0")[0] == chat_type), oldest)

    def _forget(self, slot: int) -> None:
        prefix = self._free.pop(slot, None)
        if prefix is None:
            return
        del self._by_prefix[prefix][slot]
        if not self._by_prefix[prefix]:
            del self._by_prefix[prefix]
