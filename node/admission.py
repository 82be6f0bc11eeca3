"""Who may call the node: a bearer token from its list, compared in constant time. The list has two while one is
rotated."""

from __future__ import annotations

import hmac
from collections.abc import Sequence

from shared.asgi.types import Scope, header
from shared.contract.errors import ApiError


class Admission:
    def __init__(self, tokens: Sequence[str]) -> None:
        self.accept(tokens)

    def accept(self, tokens: Sequence[str]) -> None:
        """Replace the list; links that are up stay up."""
        self._tokens = [token.encode() for token in tokens]

    def check(self, scope: Scope) -> None:
        """Raises ApiError ``missing_token`` or ``invalid_token``; says which setting must match, never what was
        sent."""
        given = header(scope, b"authorization")
        if given is None:
            raise ApiError("missing_token", "The node wants its bearer token: Authorization: Bearer hln_….")
        scheme, _, token = given.partition(b" ")
        token = token.strip()
        known = [hmac.compare_digest(token, mine) for mine in self._tokens]
        if scheme.lower() != b"bearer" or not any(known):
            text = "The node token does not match. Give the edge (edge.upstreams.NAME.token) one of node.tokens."
            raise ApiError("invalid_token", text)
