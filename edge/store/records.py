"""What every edge knows by heart of what the owner decided: keys, revocations, limits of single callers, maintenance.

It is small and changes seldom, so each process holds all of it and asks nobody while it serves; its store reads it
again within a second of a change.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from edge.principals import Principal, invite_of
from edge.store.errors import AdminError
from edge.store.keys import KeyRing
from shared.signing_keys import SigningKeys

_CLOSED = "This service is closed for a while by its owner. Please come back later."
_MAX_MESSAGE = 500


@dataclass(frozen=True, slots=True)
class Maintenance:
    """The edge is closed to all but admins since ``since`` (Unix seconds). ``message`` is what callers read; running
    answers go on unless ``ends_answers``."""

    message: str
    since: int
    ends_answers: bool = False

    @classmethod
    def begun(cls, message: str | None, now: float, *, ends_answers: bool) -> Maintenance:
        """One that begins ``now``. Raises AdminError for a message that is no line for people to read."""
        text = _CLOSED if message is None else message.strip()
        if not text or len(text) > _MAX_MESSAGE or not text.isprintable():
            raise AdminError(f"A message is one line of 1 to {_MAX_MESSAGE} characters: say why, and until when.")
        return cls(text, int(now), ends_answers)


class Records:
    """Filled by the store that owns it. Times are Unix seconds.

    ``tokens`` are revoked token ids (jti) and when each ends by itself. ``principals`` are callers all of whose tokens
    issued until then are revoked, and ``everyone`` is the same for all callers; 0 is never. ``invites`` are the ids of
    revoked invites. ``limits`` are single callers' own, by the names of ``plans.LIMITS``, over those of their plan.
    ``signing_keys`` is replaced as a whole when they change.
    """

    def __init__(self, signing_keys: SigningKeys, now: Callable[[], float] = time.time) -> None:
        self.keys = KeyRing(now)
        self.tokens: dict[str, int] = {}
        self.principals: dict[str, int] = {}
        self.everyone = 0
        self.invites: frozenset[str] = frozenset()
        self.limits: Mapping[str, Mapping[str, int | None]] = {}
        self.maintenance: Maintenance | None = None
        self.signing_keys = signing_keys

    def revoked_until(self, principal: Principal) -> int:
        """Tokens of the caller that were issued until then are revoked; 0 where none are."""
        return max(self.everyone, self.principals.get(principal.id, 0))

    def revoked(self, principal: Principal) -> bool:
        """Whether the credential that ``principal`` came in with is revoked."""
        issued = principal.issued_at
        return (
            principal.jti in self.tokens
            or (issued is not None and issued <= self.revoked_until(principal))
            or self.keys.revoked(principal.id)
            or (principal.kind == "invite" and invite_of(principal) in self.invites)
        )
