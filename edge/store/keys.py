"""API keys, ``hlk_<id>_<secret>``: shown once when made, kept as a hash, found by id. The same in every store."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from edge.principals import SECONDS_PER_DAY, Principal
from edge.store.codes import Code, check_name, matches
from edge.store.errors import AdminError, NoSuchError
from shared.contract.errors import ApiError
from shared.contract.secrets import API_KEY

# A hundred years: what shall live longer has no end.
LONGEST_SECONDS = 100 * 366 * SECONDS_PER_DAY
_CODE = Code(API_KEY, secret_bytes=32)
_WORD = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_PRINCIPAL = "key_"


@dataclass(frozen=True, slots=True)
class KeyInfo:
    """One key without its secret. Times are Unix seconds; ``revoked_at`` None means it still opens."""

    id: str
    name: str
    plan: str
    scopes: tuple[str, ...]
    created_at: int
    expires_at: int | None = None
    revoked_at: int | None = None

    @property
    def principal_id(self) -> str:
        """How the audit line and the limits name this key; tokens made with it carry it too."""
        return _PRINCIPAL + self.id


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key that was drawn and not kept yet. A store keeps ``info`` and ``digest``; only its maker gets ``text``."""

    info: KeyInfo
    text: str
    digest: bytes


def draw(name: str, plan: str, scopes: Sequence[str], expires: int | None, now: int) -> NewKey:
    """A key called ``name``; ``expires`` and ``now`` are Unix seconds. Whether ``plan`` exists is for the caller to
    check, that no living key has the name is for the store. Raises AdminError."""
    check_name(name, "a key")
    if not all(_WORD.fullmatch(word) for word in (plan, *scopes)):
        raise AdminError("A plan or scope is one word of letters, digits, '.', '_', ':' or '-'.")
    if expires is not None and expires <= now:
        raise AdminError("The key would be expired at once: choose an end in the future.")
    if expires is not None and expires - now > LONGEST_SECONDS:
        raise AdminError("No key with an end lasts longer than a hundred years: choose an earlier end, or none.")
    key_id, text, digest = _CODE.make()
    return NewKey(KeyInfo(key_id, name, plan, tuple(scopes), now, expires), text, digest)


def name_taken(name: str) -> AdminError:
    return AdminError(f"There is a key called {name!r} already: revoke it first, or choose another name.")


def find(keys: Iterable[KeyInfo], which: str) -> KeyInfo:
    """The living one of ``keys`` that is ``which``: a name, id, principal id, or whole text. Raises NoSuchError."""
    code = _CODE.split(which)
    key_id = code[0] if code else which.removeprefix(_PRINCIPAL)
    for info in keys:
        if info.revoked_at is None and (info.name == which or info.id == key_id):
            return info
    shown = "that" if code else repr(which[:80])
    raise NoSuchError(f"No living key is {shown}: list the keys to see their names and ids.")


class KeyRing:
    """The keys of a store in memory: a lookup is two dictionary reads and a hash."""

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._living: dict[str, tuple[bytes, Principal]] = {}
        self._revoked: frozenset[str] = frozenset()

    def load(self, keys: Iterable[tuple[KeyInfo, bytes]]) -> None:
        """Have just these ``keys``, each with the digest that is kept of it."""
        rows = list(keys)
        self._living = {info.id: (digest, _principal(info)) for info, digest in rows if info.revoked_at is None}
        self._revoked = frozenset(info.principal_id for info, _ in rows if info.revoked_at is not None)

    def lookup(self, text: str) -> Principal:
        """The principal of key ``text``. Raises ApiError ``invalid_token`` when it is malformed, unknown, revoked or
        expired; the text is not repeated."""
        code = _CODE.split(text)
        if code is None:
            raise _invalid("Check that it was copied whole.")
        key_id, digest = code
        kept, principal = self._living.get(key_id, (None, None))
        if not matches(digest, kept) or principal is None:
            raise _invalid("It may have been revoked. Ask the owner of this edge for another one.")
        if principal.expires_at is not None and principal.expires_at <= self._now():
            raise _invalid("It has expired. Ask the owner of this edge for another one.")
        return principal

    def revoked(self, principal_id: str) -> bool:
        """Whether ``principal_id`` is that of a revoked key."""
        return principal_id in self._revoked


def key_of(principal_id: str) -> str | None:
    """The id of the API key whose principal this is, None for any other principal."""
    return principal_id.removeprefix(_PRINCIPAL) if principal_id.startswith(_PRINCIPAL) else None


def _principal(info: KeyInfo) -> Principal:
    return Principal(info.principal_id, "key", info.plan, info.scopes, expires_at=info.expires_at)


def _invalid(why: str) -> ApiError:
    return ApiError("invalid_token", f"The API key is not valid here. {why}")
