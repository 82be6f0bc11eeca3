"""What the owner does to a store, from the command line and by ``/admin``: the same functions, beside a running edge.

Every edge on the store knows of a change within a second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from edge.plans import LIMITS
from edge.principals import may_be_principal
from edge.store.errors import AdminError, NoSuchError
from edge.store.invites import InviteInfo
from edge.store.keys import KeyInfo
from edge.store.records import Maintenance
from shared.signing_keys import LONGEST_TOKEN, SigningKeys


@dataclass(frozen=True, slots=True)
class Standing:
    """One caller today (UTC): tokens ``used``, tokens ``reserved`` by ``running`` answers, and ``limits`` of its own,
    None where it has just its plan's. ``revoked_at`` (Unix seconds): tokens issued until then are refused."""

    principal: str
    used: int
    reserved: int
    running: int
    limits: Mapping[str, int | None] | None = None
    revoked_at: int | None = None


# Far above what anybody means, and small enough for every store's numbers.
_MAX_LIMIT = 10**15


def checked_limits(changes: Mapping[str, int | None]) -> dict[str, int | None]:
    """Raises AdminError for what are no limits of a caller."""
    for name, limit in changes.items():
        if name not in LIMITS:
            raise AdminError(f"{name[:80]!r} is not a limit. There are: {', '.join(LIMITS)}.")
        if limit is not None and not (isinstance(limit, int) and 0 <= limit <= _MAX_LIMIT):
            raise AdminError(f"{name} is a number from 0 to {_MAX_LIMIT}, or none for no limit.")
    return dict(changes)


class Admin(Protocol):
    """``open`` it before anything else and ``close`` it at the end. Every method raises AdminError for what cannot be
    done, NoSuchError where nothing has that name, StoreError when the store cannot be used. Times are Unix seconds.
    Whether a plan exists is for the caller to check."""

    async def open(self) -> None: ...

    async def create_key(
        self, name: str, plan: str, scopes: Sequence[str], expires: int | None = None
    ) -> tuple[KeyInfo, str]:
        """A new API key and its text, which is kept nowhere."""
        ...

    async def list_keys(self) -> list[KeyInfo]: ...

    async def revoke_key(self, which: str) -> KeyInfo:
        """By name, id, principal id, or its whole text."""
        ...

    async def create_invite(
        self, plan: str, uses: int, expires: int, name: str | None = None
    ) -> tuple[InviteInfo, str]: ...

    async def list_invites(self) -> list[InviteInfo]: ...

    async def revoke_invite(self, which: str) -> InviteInfo:
        """By name, id, or its whole text; with it, everybody it let in."""
        ...

    async def standing(self, principal_id: str) -> Standing: ...

    async def standings(self) -> list[Standing]:
        """Of all who used a token today or have limits of their own, those who used most first."""
        ...

    async def set_limits(self, principal_id: str, changes: Mapping[str, int | None]) -> Mapping[str, int | None]:
        """Give a caller limits of its own (names of ``plans.LIMITS``; None is no limit) besides those it has; returns
        all of them."""
        ...

    async def clear_limits(self, principal_id: str) -> None:
        """Back to the plan's. Raises NoSuchError when it has none of its own."""
        ...

    async def reset_usage(self, principal_id: str) -> None:
        """As if the caller had used nothing today and sent nothing this minute; running answers go on."""
        ...

    async def revoke_token(self, jti: str, expires: int) -> None: ...

    async def revoke_principal(self, principal_id: str) -> None:
        """All tokens of the caller that are out; an API key's principal with the key itself."""
        ...

    async def revoke_everyone(self) -> None:
        """All tokens that are out. API keys still open."""
        ...

    async def maintenance(self) -> Maintenance | None: ...

    async def set_maintenance(self, maintenance: Maintenance | None) -> None: ...

    async def signing_keys(self) -> SigningKeys:
        """Those of the edges on this store, made when there are none yet: what mints a token that they accept."""
        ...

    async def rotate_signing_keys(self, longest: int) -> SigningKeys:
        """``SigningKeys.rotated``, whose ValueError is an AdminError here. ``longest`` are the seconds that a token may
        last at most, which keep the old key that long; with 0 every token ends."""
        ...

    async def close(self) -> None:
        """Idempotent."""
        ...


async def known_caller(admin: Admin, principal_id: str) -> str:
    """``principal_id``, where there can be such a caller: of all but keys nothing is kept until they ask. Raises
    NoSuchError for a mistyped one, before something is decided about nobody."""
    known = may_be_principal(principal_id)
    if known and principal_id.startswith("key_"):
        known = any(key.principal_id == principal_id for key in await admin.list_keys())
    if not known:
        raise NoSuchError(
            f"No caller is called {principal_id[:80]!r}: give the principal of an audit line or of GET /v1/me."
        )
    return principal_id


async def renew_signing_keys(admin: Admin, *, leaked: bool) -> SigningKeys:
    """The next key signs from now on, and tokens that are out stay valid until they end. ``leaked``: somebody else may
    have the keys, so all of them are new and no such token is valid; edges end the answers that run on one. Raises as
    ``rotate_signing_keys``."""
    if not leaked:
        return await admin.rotate_signing_keys(LONGEST_TOKEN)
    await admin.revoke_everyone()  # first: where that fails, nobody was told that it is done
    return await admin.rotate_signing_keys(0)
