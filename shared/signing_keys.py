"""The keys that access tokens are signed with.

    next       verifies already, so that every edge knows it before the first token is signed with it
    current    signs
    old        verify until the last token that they signed has ended

A rotation makes next current and current old, and draws another next. Nobody's token stops working, on any edge.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass, field, replace

# No token lasts longer, wherever it is minted: a token is not in any list, so what shall live longer is an API key.
LONGEST_TOKEN = 366 * 86_400  # seconds
# 256 bits, 43 characters as urlsafe text.
_SECRET_BYTES = 32
# A key for each week of the longest token, and more. Each costs 2 µs for a token that none of them signed.
_MOST_OLD = 64
# An edge knows a rotation within two seconds; the next one waits longer, so that no edge meets a key it never heard of.
_APART_SECONDS = 5


@dataclass(frozen=True, slots=True)
class OldKey:
    """``until``, in Unix seconds, is when the last token signed with it has ended."""

    key: str = field(repr=False)
    until: int


@dataclass(frozen=True, slots=True)
class SigningKeys:
    """``old`` are the oldest first; ``since``, in Unix seconds, is when the last rotation was, 0 before the first."""

    current: str = field(repr=False)
    next: str = field(repr=False)
    old: tuple[OldKey, ...] = ()
    since: int = 0

    @classmethod
    def new(cls) -> SigningKeys:
        return cls(_draw(), _draw())

    @property
    def verifying(self) -> tuple[str, ...]:
        """All keys a token may be signed with, the one that signs at the end."""
        return (*(old.key for old in self.old), self.next, self.current)

    def rotated(self, now: int, longest: int) -> SigningKeys:
        """The keys after a rotation at ``now`` (Unix seconds), with tokens out that last ``longest`` seconds at most.

        With 0 all of them are new, because somebody else may have these, and every token ends. Raises ValueError, with
        a sentence for the owner, seconds after another rotation, and when too many old keys are kept.
        """
        if longest <= 0:
            return replace(SigningKeys.new(), since=now)
        if abs(now - self.since) < _APART_SECONDS:
            raise ValueError(
                "The signing keys were rotated a moment ago, and an edge may not know the next one yet."
                f" Try again in {_APART_SECONDS} seconds."
            )
        kept = tuple(old for old in self.old if old.until > now)
        if len(kept) >= _MOST_OLD:
            raise ValueError(
                f"{_MOST_OLD} old keys are kept already, each until its last token has ended. Rotate less often; or run"
                " hearthlink key rotate --leaked, which replaces all keys and ends every token that is out."
            )
        return SigningKeys(self.next, _draw(), (*kept, OldKey(self.current, now + longest)), now)

    def to_json(self) -> str:
        old = [{"key": old.key, "until": old.until} for old in self.old]
        return json.dumps({"next": self.next, "current": self.current, "old": old, "since": self.since})

    @classmethod
    def from_json(cls, text: str) -> SigningKeys:
        """Raises ValueError for anything that ``to_json`` did not write."""
        try:
            found = json.loads(text)
            old = tuple(OldKey(_checked(one["key"]), int(one["until"])) for one in found["old"])
            return cls(_checked(found["current"]), _checked(found["next"]), old, int(found["since"]))
        except (KeyError, TypeError, OverflowError, RecursionError):
            # "from None", and no word of what was found: it may be a key.
            raise ValueError("does not hold signing keys") from None

    @classmethod
    def from_list(cls, text: str, now: int) -> SigningKeys:
        """Keys as an earlier version wrote them: a JSON list, oldest first, whose last one signs. Raises ValueError."""
        try:
            *old, current = (_checked(key) for key in _list(json.loads(text)))
        except RecursionError:
            raise ValueError("does not hold signing keys") from None
        return cls(current, _draw(), tuple(OldKey(key, now + LONGEST_TOKEN) for key in old))


def _draw() -> str:
    return secrets.token_urlsafe(_SECRET_BYTES)


def _list(found: object) -> list[object]:
    if not isinstance(found, list) or not found:
        raise ValueError("is not a list of keys")
    return found


def _checked(key: object) -> str:
    if not isinstance(key, str) or len(key) < _SECRET_BYTES:
        raise ValueError("holds a key that is too short")
    return key
