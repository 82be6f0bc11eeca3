"""How many answers the tokens that are good for so many have started, in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from edge.principals import Principal
from edge.store import refusals
from shared.contract.errors import ApiError


class TokenUses:
    """``keep(jti, used, expires_at)`` writes one token's count down, for as long as the token lives (Unix seconds)."""

    def __init__(self, keep: Callable[[str, int, int], None]) -> None:
        self._used: dict[str, int] = {}
        self._keep = keep

    def load(self, used: Mapping[str, int]) -> None:
        """Go on with these counts: those of all tokens that have not ended."""
        self._used = dict(used)

    def refusal(self, principal: Principal) -> ApiError | None:
        if principal.uses is None or self._used.get(principal.jti or "", 0) < principal.uses:
            return None
        return refusals.token_exhausted(principal.uses)

    def take(self, principal: Principal) -> None:
        if principal.uses is not None and principal.jti is not None and principal.expires_at is not None:
            used = self._used[principal.jti] = self._used.get(principal.jti, 0) + 1
            self._keep(principal.jti, used, principal.expires_at)
