"""Invites, ``hli_<id>_<secret>``: shown once when made, kept as a hash, good for so many callers until they end. The
same in every store."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from edge.principals import SECONDS_PER_DAY, Principal
from edge.store.codes import Code, check_name
from edge.store.errors import AdminError, NoSuchError
from shared.contract.secrets import INVITE

# Invites that are not valid, tried from one address; whoever mistypes more often than this is guessing.
TRIES_PER_MINUTE = 5
# Bounds of one invite.
LONGEST_SECONDS = 366 * SECONDS_PER_DAY
MOST_USES = 10_000
# An invite goes to people who were not chosen one by one: it never gives the right to administer.
_SCOPES = ("chat",)
_CODE = Code(INVITE, secret_bytes=16)  # shorter than a key: people pass it on by hand
_PLAN = re.compile(r"[A-Za-z0-9._:-]{1,64}")
# A token is minted a moment after its invite was found valid, and needs a second to live.
LAST_SECONDS = 1


@dataclass(frozen=True, slots=True)
class InviteInfo:
    """One invite without its secret: it let ``used`` callers in, of ``uses`` that it may. Times are Unix seconds."""

    id: str
    name: str | None
    plan: str
    uses: int
    used: int
    created_at: int
    expires_at: int
    revoked_at: int | None = None

    def living(self, now: float) -> bool:
        """Neither revoked nor at its end; it may be used up."""
        return self.revoked_at is None and now < self.expires_at - LAST_SECONDS


@dataclass(frozen=True, slots=True)
class NewInvite:
    """An invite that was drawn, not kept yet. A store keeps ``info`` and ``digest``; only its maker gets ``text``."""

    info: InviteInfo
    text: str
    digest: bytes


def draw(plan: str, uses: int, expires: int, name: str | None, now: int) -> NewInvite:
    """An invite for ``uses`` callers; ``expires`` and ``now`` are Unix seconds. Whether ``plan`` exists is for the
    caller to check, that no living invite has the name is for the store. Raises AdminError."""
    if name is not None:
        check_name(name, "an invite")
    if _PLAN.fullmatch(plan) is None:
        raise AdminError("A plan is one word of letters, digits, '.', '_', ':' or '-'.")
    if uses < 1 or expires <= now:
        raise AdminError("The invite would be of no use: give it one use at least, and an end in the future.")
    if uses > MOST_USES or expires - now > LONGEST_SECONDS:
        days = LONGEST_SECONDS // SECONDS_PER_DAY
        raise AdminError(f"An invite has at most {MOST_USES} uses and lasts {days} days: make another one later.")
    invite_id, text, digest = _CODE.make()
    return NewInvite(InviteInfo(invite_id, name, plan, uses, 0, now, expires), text, digest)


def name_taken(name: str | None) -> AdminError:
    return AdminError(f"There is an invite called {name!r} already: revoke it first, or choose another name.")


def find(invites: Iterable[InviteInfo], which: str) -> InviteInfo:
    """The one of ``invites`` that is not revoked and is ``which``: a name, id, or whole text. Raises NoSuchError."""
    code = _CODE.split(which)
    invite_id = code[0] if code else which
    for info in invites:
        if info.revoked_at is None and (info.name == which or info.id == invite_id):
            return info
    shown = "that" if code else repr(which[:80])
    raise NoSuchError(f"No living invite is {shown}: list the invites to see their names and ids.")


def split(text: str) -> tuple[str, bytes] | None:
    """Id and digest of ``text``; None when it is no invite."""
    return _CODE.split(text)


def guest(principal_id: str, plan: str, expires_at: int, origin: str | None) -> Principal:
    """Whom an invite of ``plan`` that ends at ``expires_at`` lets in, locked to the page's ``origin``."""
    return Principal(principal_id, "invite", plan, _SCOPES, origin=origin, expires_at=expires_at)
